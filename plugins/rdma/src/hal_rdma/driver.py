"""The driver ``rdma``: what ``hal.drivers.contract.Driver`` asks for, and the facet ``Reports``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hal.drivers.contract import Discovery, Grant, HostRoot, Problem, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.errors import DeadlineExceeded, DeviceGone, DeviceNotFound, HalError, NotReady, Unsupported
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal.model.health import Action, Condition, Severity
from hal_rdma.counters import numbers, read_counters
from hal_rdma.finding import DRIVER, Cards, Found, find_nics, is_still_there
from hal_rdma.health import PortHistory, judge_history

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal.model.event import Event
    from hal_rdma.devlink import Reporter
    from hal_rdma.handle import RdmaNic
    from hal_rdma.transport import Transport

_SOFTWARE = "HAL_RDMA_SOFTWARE"


class RdmaDriver:
    """Drives what ``class/infiniband`` lists, and the software NICs that the environment names."""

    name = DRIVER

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str] | None = None) -> None:
        self._hosts = tuple(hosts)
        self._environ = dict(os.environ if environ is None else environ)
        self._fences = Fences(fence_folder(self._environ))
        self._cards = Cards()
        self._seen: dict[str, Found] = {}
        self._histories: dict[tuple[str, int], PortHistory] = {}

    def readiness(self) -> Readiness:
        """Say whether there is a NIC, and what stands between it and data."""
        from hal_rdma.readiness import judge

        return judge(self._hosts, self._environ)

    def discover(self, deadline: Deadline) -> Discovery:
        """Find all NICs, those on recorded trees and in software included."""
        found, problems = self._look(deadline)
        return Discovery(devices=tuple(one.device for one in found), problems=tuple(problems))

    def _look(self, deadline: Deadline) -> tuple[list[Found], list[Problem]]:
        found, problems = find_nics(self._hosts, deadline, self._cards)
        here = self._here
        if here is not None and self._environ.get(_SOFTWARE, "").strip():
            from hal_rdma.software import software_devices

            try:
                software = software_devices(self._environ, here, driver=DRIVER)
            except HalError as error:
                problems.append(Problem(source=_SOFTWARE, step="discover", detail=error.message, hint=error.hint or ""))
            else:
                found += [Found(device=device, host=here) for device in software]
        self._seen.update((one.device.id, one) for one in found)
        return found, problems

    @property
    def _here(self) -> HostRoot | None:
        """The running machine, if it is among those to look at: only there can data move."""
        return next((host for host in self._hosts if host.root is None), None)

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now: of ports, of counters since earlier looks, of firmware reporters."""
        from hal_rdma.devlink import judge_reporters

        before = dict(self._seen)
        now = {one.device.id: one for one in self._look(deadline)[0]}
        reporters = self._ask_firmware([now[one] for one in device_ids if one in now], deadline)
        conditions: list[Condition] = []
        for device_id in device_ids:
            found = now.get(device_id)
            if found is not None:
                conditions += found.device.conditions
                conditions += self._judge(found)
                address = found.device.location.pci_address or ""
                conditions += judge_reporters(device_id, reporters.get(address, ()), time.time())
            elif device_id in before:
                conditions.append(_lost(device_id))
            else:
                raise _not_found(device_id, "sample")
        return conditions

    def _ask_firmware(self, found: Sequence[Found], deadline: Deadline) -> dict[str, tuple[Reporter, ...]]:
        from hal_rdma.devlink import ask_devlink

        live = any(one.host.root is None and one.device.location.pci_address for one in found)
        return ask_devlink(deadline) if live else {}

    def _judge(self, found: Found) -> list[Condition]:
        """Read the counters, add them to what is known of each port, and judge."""
        if not found.ports:
            return []
        conditions: list[Condition] = []
        with HostTree(found.host.root) as host:
            for port in found.ports:
                history = self._histories.setdefault((found.device.id, port.number), PortHistory())
                counters = read_counters(host.sys, found.rdma_name, port.number, port.link_layer)
                now = time.monotonic()
                history.observe(now, port, numbers(counters))
                conditions += judge_history(found.device.id, port, history, now)
        return conditions

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence of a NIC that is still there; it needs nothing else."""
        found = self._find(device_id, "prepare", deadline)
        self._refuse_tree(found, "prepare")
        self._fences.raise_to(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence: handles of an older one have died by their guard. A NIC that is gone is let go."""
        if device_id not in self._seen:
            self._find(device_id, "unprepare", deadline)
        if self._seen[device_id].host.root is None:
            self._fences.raise_to(device_id, grant, "unprepare")

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> RdmaNic:
        """Open a NIC in this process, with the transport that can carry its data."""
        from hal.drivers.guarded import Call
        from hal_rdma.handle import RdmaNic
        from hal_rdma.transport import Opening, choose

        found = self._find(device_id, "open", deadline)
        self._refuse_tree(found, "open")
        guard.check()
        choice = choose(found.device, self._environ)
        nic = RdmaNic(found.device, guard, found.host, found.rdma_name)
        opening = Opening(
            device=found.device,
            environ=self._environ,
            check=guard.check,
            enter=nic._enter,  # noqa: SLF001 - what every verb of the handle begins with, lent to its transport
            ports=nic.read_ports,
        )

        def work() -> Transport:
            return choice.open(opening)

        call = Call(work, f"open {device_id}")  # firmware that hangs keeps a thread, not us
        error: BaseException | None = call.error
        if not call.join(deadline):
            error = DeadlineExceeded(
                "the device did not open in time",
                device=device_id,
                during="open",
                hint="look at dmesg; a firmware that hangs needs a reset",
            )
        elif call.error is not None:
            error = call.error
        if error is not None:
            nic.close()
            if isinstance(error, HalError):
                raise error
            raise NotReady(
                f"the transport {choice.name} cannot open it: {type(error).__name__}: {error}",
                device=device_id,
                during="open",
                hint="HAL_RDMA_TRANSPORT names another one",
            ) from error
        assert call.value is not None
        nic.attach(choice, call.value)
        return nic

    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield what comes, goes and changes until the deadline; a loss of events is one, and everything is looked at
        again.
        """
        from hal_rdma.watching import watch

        return watch(self, self._here is not None, deadline)

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, device_id: str, step: str, deadline: Deadline) -> Found:
        seen = self._seen.get(device_id)
        if seen is not None and is_still_there(seen):
            return seen
        known = seen is not None
        for one in self._look(deadline)[0]:
            if one.device.id == device_id:
                return one
        if known:
            raise DeviceGone(
                "the kernel has listed it before and does not any more",
                device=device_id,
                during=step,
                hint="look at dmesg; the NIC fell off its bus, or its module was unloaded",
            )
        raise _not_found(device_id, step)

    def _refuse_tree(self, found: Found, step: str) -> None:
        if found.host.root is not None:
            raise Unsupported(
                f"{found.host.node} is a recorded tree: it can be looked at, not used",
                device=found.device.id,
                during=step,
                hint="unset HAL_SYSFS_ROOT on the machine that has the NIC, or use mock hardware: HAL_MACHINE=dgx-h100",
            )


def driver_with_verbs(hosts: Sequence[HostRoot], environ: Mapping[str, str] | None = None) -> RdmaDriver:
    """Return a driver whose library is loaded before the first device is opened: for processes that start under a
    deadline, on machines where loading it takes seconds. Raises ``NotReady`` where there is none.
    """
    from hal_rdma.verbs.binding import load_verbs

    load_verbs()
    return RdmaDriver(hosts, environ)


def _lost(device_id: str) -> Condition:
    now = time.time()
    return Condition(
        device=device_id,
        type="NotEnumerated",
        severity=Severity.FATAL,
        evidence="class/infiniband has listed it before and does not any more",
        source=DRIVER,
        action=Action.REBOOT,
        first_seen_at=now,
        last_seen_at=now,
    )


def _not_found(device_id: str, step: str) -> DeviceNotFound:
    return DeviceNotFound("no RDMA NIC of that id", device=device_id, during=step, hint="hal-probe list --kind rnic")
