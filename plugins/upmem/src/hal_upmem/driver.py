"""The driver: ranks and DIMMs of host discovery; what can be opened goes through the SDK's host library."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from hal.drivers.contract import READY, Cause, Discovery, Grant, HostRoot, Problem, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceBusy, DeviceGone, DeviceNotFound, DriverError, NotReady, Unsupported
from hal.host.driver import discover_host
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.model.attributes import known
from hal.model.device import Device
from hal.model.health import Action, Condition, Radius, Severity
from hal.model.kind import Kind
from hal_upmem.allocation import Allocation
from hal_upmem.binding import open_library
from hal_upmem.handle import UpmemRank
from hal_upmem.rank import Shape, shape_of

DRIVER = "upmem"
_ZEROS = bytes(1 << 20)


class UpmemDriver:
    """Drives UPMEM ranks; also ``Resets`` and ``Scrubs``.

    ``HAL_UPMEM_ROOT`` names the tree whose ranks the library speaks for, where that is not the running machine: a
    simulator's. In any other tree ranks are shown and left alone.
    """

    name = DRIVER

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str]) -> None:
        self._hosts = tuple(hosts)
        self._environ = environ
        self._fences = Fences(fence_folder(environ))
        self._seen: dict[str, tuple[Device, HostRoot]] = {}

    def readiness(self) -> Readiness:
        """Say whether there is a rank and a library to drive it."""
        folders = [host.path("sys", "class", "dpu_rank") for host in self._hosts]
        if not any(folder.is_dir() for folder in folders):
            return Readiness(
                cause=Cause.NO_DRIVER,
                detail="no /sys/class/dpu_rank: UPMEM's kernel module is not loaded",
                remedy="install UPMEM's driver package, then: modprobe dpu",
            )
        if not any(_names(folder) for folder in folders):
            return Readiness(cause=Cause.NO_HARDWARE, detail="no rank in /sys/class/dpu_rank", remedy="dmesg")
        try:
            open_library(self._environ)
        except NotReady as error:
            return Readiness(cause=Cause.NO_LIBRARY, detail=error.message, remedy=error.hint or "")
        except DriverError as error:
            return Readiness(cause=Cause.BROKEN, detail=error.message, remedy=error.hint or "")
        return READY

    def discover(self, deadline: Deadline) -> Discovery:
        """Return all ranks and the DIMMs they sit on."""
        devices: list[Device] = []
        problems: list[Problem] = []
        now = time.time()
        for host in self._hosts:
            try:
                found = discover_host(host, deadline=deadline)
            except DriverError as error:
                problems.append(Problem(source=host.node, step="discover", detail=error.message, hint=error.hint or ""))
                continue
            ranks = [device for device in found.devices if device.kind is Kind.UPMEM]
            dimms = {rank.parent for rank in ranks}
            devices += [self._describe(rank, host, now) for rank in ranks]
            devices += [
                msgspec.structs.replace(device, driver=DRIVER) for device in found.devices if device.id in dimms
            ]
        gone = {device_id: seen for device_id, seen in self._seen.items() if device_id not in {d.id for d in devices}}
        self._seen = {**gone, **{device.id: (device, self._host(device)) for device in devices}}
        return Discovery(devices=tuple(devices), problems=tuple(problems))

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now; a rank that was seen before and is not any more is lost."""
        now = {device.id: device for device in self.discover(deadline).devices}
        found: list[Condition] = []
        for device_id in device_ids:
            if device_id in now:
                found += now[device_id].conditions
            else:
                self._find(device_id, "sample", deadline)
                found.append(
                    _condition(
                        device_id, "DeviceLost", Severity.FATAL, "sysfs does not list it any more", Action.REBOOT
                    )
                )
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Raise the fence; a rank that another process owns is busy."""
        device, host = self._usable(device_id, "prepare", deadline)
        self._fences.raise_to(device_id, grant, "prepare")
        self._not_owned(device, host, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Raise the fence. ``DeviceBusy`` while a process still owns the rank: nothing but its end takes it away."""
        device, host = self._usable(device_id, "unprepare", deadline)
        self._fences.raise_to(device_id, grant, "unprepare")
        self._not_owned(device, host, "unprepare")

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> UpmemRank:
        """Allocate a rank to this process; its units are reset."""
        device, host = self._usable(device_id, "open", deadline)
        guard.check()
        shape = self._shape(device, host)
        return UpmemRank(self._allocate(device, shape, "open"), shape, device, guard)

    def close(self) -> None:
        """Nothing is held."""

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a rank: the library does so when it allocates one. ``DeviceBusy`` while a process owns it."""
        device, host = self._usable(device_id, "reset", or_default(deadline))
        shape = self._shape(device, host)

        def work(_: Operation[None]) -> None:
            self._allocate(device, shape, "reset").free()

        return Operation.spawn(device_id, "reset", work)

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Overwrite the MRAM of every working unit with zeros. WRAM and IRAM are set anew by the next program."""
        limit = or_default(deadline, 600.0)
        device, host = self._usable(device_id, "scrub", limit)
        shape = self._shape(device, host)

        def work(operation: Operation[None]) -> None:
            allocation = self._allocate(device, shape, "scrub")
            try:
                library = allocation.library
                for number, unit in enumerate(allocation.units.values(), 1):
                    dpu = library.ffi.cast("void *", unit.first)
                    for offset in range(0, shape.mram_bytes, len(_ZEROS)):
                        limit.check(device=device_id, during="scrub")
                        size = min(len(_ZEROS), shape.mram_bytes - offset)
                        code = library.lib.dpu_copy_to_mram(dpu, offset, library.ffi.from_buffer(_ZEROS), size)
                        library.check(code, device_id, "scrub")
                    operation.report(number / len(allocation.units))
            finally:
                allocation.free()

        return Operation.spawn(device_id, "scrub", work)

    def _describe(self, rank: Device, host: HostRoot, now: float) -> Device:
        shape = self._shape(rank, host)
        facts = dict(rank.attributes)
        facts["wram_bytes"] = known(shape.chip.wram_bytes, "sysfs:dpu_chip_id")
        facts["iram_bytes"] = known(shape.chip.iram_bytes, "sysfs:dpu_chip_id")
        facts["tasklets"] = known(shape.chip.tasklets, "sysfs:dpu_chip_id")
        facts["chip"] = known(shape.chip.name, "sysfs:dpu_chip_id")
        return msgspec.structs.replace(rank, driver=DRIVER, allocatable=self._ours(host), attributes=facts)

    def _shape(self, device: Device, host: HostRoot) -> Shape:
        try:
            chip = int((_folder(device, host) / "dpu_chip_id").read_text(), 0)
        except (OSError, ValueError):
            chip = None
        return shape_of(device, chip)

    def _ours(self, host: HostRoot) -> bool:
        spoken_for = self._environ.get("HAL_UPMEM_ROOT", "")
        if host.root is None or host.root == "/":
            return not spoken_for
        return bool(spoken_for) and os.path.realpath(spoken_for) == os.path.realpath(host.root)

    def _host(self, device: Device) -> HostRoot:
        return next(host for host in self._hosts if host.node == device.location.node)

    def _find(self, device_id: str, step: str, deadline: Deadline) -> tuple[Device, HostRoot]:
        if device_id not in self._seen:
            self.discover(deadline)
        found = self._seen.get(device_id)
        if found is None:
            raise DeviceNotFound("no UPMEM rank of that id", device=device_id, during=step, hint="hal-probe list")
        return found

    def _usable(self, device_id: str, step: str, deadline: Deadline) -> tuple[Device, HostRoot]:
        device, host = self._find(device_id, step, deadline)
        if device.kind is not Kind.UPMEM:
            raise Unsupported(
                "a DIMM is not leased; its ranks are", device=device_id, during=step, hint="hal-probe list"
            )
        if not self._ours(host):
            raise Unsupported(
                "the rank is in a tree that the host library does not speak for",
                device=device_id,
                during=step,
                hint="on the machine itself; HAL_UPMEM_ROOT for a simulator's tree",
            )
        return device, host

    def _allocate(self, device: Device, shape: Shape, step: str) -> Allocation:
        path = f"/dev/{device.name}"
        try:
            library = open_library(self._environ)
        except DriverError as error:
            raise Unsupported(error.message, device=device.id, during=step, hint=error.hint) from None
        if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            raise AccessDenied(
                f"{path} may not be opened", device=device.id, during=step, hint=f"join the group that owns {path}"
            )
        return Allocation(library, path, shape, device.id, step)

    def _not_owned(self, device: Device, host: HostRoot, step: str) -> None:
        folder = _folder(device, host)
        try:
            owned = (folder / "is_owned").read_text().strip()
        except OSError:
            if step == "unprepare":
                return  # a rank that is gone is let go
            raise DeviceGone("sysfs does not list it", device=device.id, during=step, hint="dmesg") from None
        if owned not in ("", "0"):
            raise DeviceBusy(
                "a process still owns the rank",
                device=device.id,
                during=step,
                hint=f"fuser -v /dev/{device.name}; end the process",
            )


def _folder(device: Device, host: HostRoot) -> Path:
    return host.path("sys", "class", "dpu_rank", device.name)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _condition(device: str, type: str, severity: Severity, evidence: str, action: Action) -> Condition:
    now = time.time()
    return Condition(
        device=device,
        type=type,
        severity=severity,
        evidence=evidence,
        source=DRIVER,
        action=action,
        radius=Radius.DEVICE,
        first_seen_at=now,
        last_seen_at=now,
    )
