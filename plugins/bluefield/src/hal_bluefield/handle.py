"""An opened card. See :mod:`hal.interfaces.dpu` for what each verb must do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import NoReturn

import msgspec

from hal.drivers.guard import Guard
from hal.drivers.opened import OpenedDevice
from hal.errors import DeviceBusy, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.dpu import (
    BootReport,
    BootState,
    Buffer,
    ConsoleLine,
    DpuMode,
    FlowAction,
    FlowMatch,
    FlowRule,
    Image,
    ModeReport,
    NvmeExposure,
    Offload,
    ResetLevel,
    Service,
    ServiceSpec,
)
from hal.interfaces.operation import Operation
from hal.model.attributes import Attribute
from hal.model.device import Device
from hal_bluefield import boot
from hal_bluefield.card import Card
from hal_bluefield.rshim import Console
from hal_bluefield.telemetry import read_telemetry

_CONSOLE_PAUSE_SECONDS = 0.02


class BlueField(OpenedDevice):
    """A card in this process. Its services and flow rules bear the lease's fence, and end with it."""

    def __init__(self, card: Card, device: Device, guard: Guard) -> None:
        super().__init__(device, guard)
        self._card = card
        self._console: Console | None = None
        self._lines: list[ConsoleLine] = []
        self._reading = threading.Lock()

    def _begin(self, step: str, deadline: Deadline | None, *, cores: bool = False) -> Deadline:
        self._enter(step, deadline)
        limit = or_default(deadline)
        self._card.admit(step, limit, cores=cores)
        return limit

    def _release(self) -> None:
        self._leave_console()
        self._card.close()

    def _abandon(self) -> None:
        self._leave_console()

    def _leave_console(self) -> None:
        console, self._console = self._console, None
        if console is not None:
            console.close()

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return what BMC and cores measure."""
        self._enter("telemetry", deadline)
        return read_telemetry(self._card, or_default(deadline))

    def children(self, *, deadline: Deadline | None = None) -> Sequence[str]:
        """Return the ids of the card's NICs."""
        self._enter("children", deadline)
        rnics = self._device.value("rnics")
        return tuple(map(str, rnics)) if isinstance(rnics, tuple) else ()

    # Mode, boot, image, console

    def mode(self, *, deadline: Deadline | None = None) -> ModeReport:
        """Return the mode now and the one that was chosen for the next power cycle."""
        self._enter("mode", deadline)
        current, _ = self._card.mode("mode", or_default(deadline))
        pending = self._card.record.read().pending
        return ModeReport(current=current, pending=pending if pending is not current else None)

    def set_mode(self, mode: DpuMode, *, deadline: Deadline | None = None) -> ModeReport:
        """Choose the next mode, through the BMC."""
        step = "set_mode"
        limit = self._begin(step, deadline)
        bmc = self._card.need_bmc(step)
        if mode not in (DpuMode.DPU, DpuMode.NIC):
            raise InvalidArgument(
                f"the host cannot choose {mode}", device=self._device.id, during=step, hint="dpu or nic"
            )
        current, _ = self._card.mode(step, limit)
        bmc.set_mode(mode, step, limit)
        pending = mode if mode is not current else None
        self._card.record.change(lambda record: msgspec.structs.replace(record, pending=pending), step)
        return ModeReport(current=current, pending=pending)

    def boot(self, *, deadline: Deadline | None = None) -> BootReport:
        """Return how far the card has come."""
        return boot.read_boot(self._card, "boot", self._begin("boot", deadline))

    def reset(self, level: ResetLevel = ResetLevel.SOFT, *, deadline: Deadline | None = None) -> Operation[None]:
        """Restart the card's cores: soft by rshim, hard by the BMC."""
        self._begin("reset", deadline)
        self._forget_rules("reset")
        return boot.reset(self._card, ResetLevel(level), deadline)

    def power_cycle(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Power cycle the card through its BMC."""
        self._begin("power_cycle", deadline)
        self._forget_rules("power_cycle")
        return boot.power_cycle(self._card, deadline)

    def image(self, *, deadline: Deadline | None = None) -> Image:
        """Return what the card boots."""
        return boot.read_image(self._card, self._begin("image", deadline))

    def push_image(self, image: Buffer | str | PathLike[str], *, deadline: Deadline | None = None) -> Operation[Image]:
        """Push a boot stream by rshim."""
        self._begin("push_image", deadline)
        return boot.push_image(self._card, image, deadline)

    def read_console(self, since: int = 0, *, deadline: Deadline | None = None) -> Sequence[ConsoleLine]:
        """Return lines that have come since the handle began to read; ``at`` is when they were read."""
        self._begin("read_console", deadline)
        with self._reading:
            if self._console is None:
                rshim = self._card.need_rshim("read_console")
                self._console = Console(rshim.folder / "console", self._device.id)
            now = time.time()
            for text in self._console.pull("read_console"):
                self._lines.append(ConsoleLine(number=len(self._lines), at=now, text=text))
            return tuple(self._lines[max(0, since) :])

    def console(self, since: int = 0, *, deadline: Deadline | None = None) -> Iterator[str]:
        """Yield the text line by line, until the deadline if there is one."""
        self._begin("console", deadline)
        return self._follow(since, deadline)

    def _follow(self, since: int, deadline: Deadline | None) -> Iterator[str]:
        pause = threading.Event()
        while True:
            lines = self.read_console(since)
            for line in lines:
                yield line.text
            since += len(lines)
            if deadline is None or deadline.expired:
                return
            if not lines:
                pause.wait(min(_CONSOLE_PAUSE_SECONDS, deadline.remaining_seconds))

    # Services

    def deploy(self, spec: ServiceSpec, *, deadline: Deadline | None = None) -> Operation[Service]:
        """Start a container on the card's cores."""
        limit = self._begin("deploy", deadline, cores=True)
        services, fence = self._card.services("deploy", limit), self._guard.fence
        return Operation.spawn(self._device.id, "deploy", lambda _: services.deploy(spec, fence, limit))

    def services(self, *, deadline: Deadline | None = None) -> Sequence[Service]:
        """Return all services."""
        limit = self._begin("services", deadline, cores=True)
        return tuple(found.service for found in self._card.services("services", limit).all("services", limit))

    def stop(self, name: str, *, grace_seconds: float = 5.0, deadline: Deadline | None = None) -> Operation[Service]:
        """Stop a service."""
        self._begin("stop", deadline, cores=True)
        limit = deadline or Deadline.after(grace_seconds + 10.0)
        services = self._card.services("stop", limit)
        return Operation.spawn(self._device.id, "stop", lambda _: services.stop(name, grace_seconds, limit))

    def logs(self, name: str, *, tail_bytes: int = 65536, deadline: Deadline | None = None) -> str:
        """Return the end of a service's output."""
        limit = self._begin("logs", deadline, cores=True)
        return self._card.services("logs", limit).logs(name, tail_bytes, limit)

    # Engines: they need DOCA, which has no interface that can be called from here

    def offloads(self, *, deadline: Deadline | None = None) -> Sequence[Offload]:
        """Return nothing: the engines are reached through DOCA alone."""
        self._begin("offloads", deadline)
        return ()

    def offload(
        self, name: str, buffer: Buffer, *, deadline: Deadline | None = None, **parameters: object
    ) -> Operation[bytes]:
        """Refuse: the engines are reached through DOCA alone."""
        self._begin("offload", deadline)
        self._needs_doca("offload", f"{name} runs on an engine of the card")

    # Flow rules, virtual functions, NVMe

    def flows(self, *, deadline: Deadline | None = None) -> Sequence[FlowRule]:
        """Return the flow rules."""
        limit = self._begin("flows", deadline, cores=True)
        return tuple(self._card.flows("flows").all("flows", limit))

    def add_flow(
        self, match: FlowMatch, action: FlowAction, *, priority: int = 100, deadline: Deadline | None = None
    ) -> FlowRule:
        """Add a flow rule."""
        limit = self._begin("add_flow", deadline, cores=True)
        return self._card.flows("add_flow").add(match, action, priority, self._guard.fence, limit)

    def delete_flow(self, rule_id: int, *, deadline: Deadline | None = None) -> None:
        """Delete a flow rule."""
        limit = self._begin("delete_flow", deadline, cores=True)
        self._card.flows("delete_flow").delete(rule_id, limit)

    def vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many virtual functions there are on all ports."""
        self._begin("vf_count", deadline)
        return self._card.functions().count("vf_count")

    def max_vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many there can be on all ports."""
        self._begin("max_vf_count", deadline)
        return self._card.functions().most("max_vf_count")

    def set_vf_count(self, count: int, *, deadline: Deadline | None = None) -> None:
        """Make virtual functions, the first port's first."""
        self._begin("set_vf_count", deadline)
        self._card.functions().set(count, "set_vf_count")

    def nvme_backings(self, *, deadline: Deadline | None = None) -> Mapping[str, int]:
        """Refuse: emulated drives are made by SNAP, which is part of DOCA."""
        self._begin("nvme_backings", deadline, cores=True)
        self._needs_doca("nvme_backings", "drives are emulated by SNAP")

    def expose_nvme(
        self, name: str, *, size_bytes: int, backing: str = "memory", deadline: Deadline | None = None
    ) -> NvmeExposure:
        """Refuse, as :meth:`nvme_backings`."""
        self._begin("expose_nvme", deadline, cores=True)
        self._needs_doca("expose_nvme", "drives are emulated by SNAP")

    def nvme_exposures(self, *, deadline: Deadline | None = None) -> Sequence[NvmeExposure]:
        """Refuse, as :meth:`nvme_backings`."""
        self._begin("nvme_exposures", deadline, cores=True)
        self._needs_doca("nvme_exposures", "drives are emulated by SNAP")

    def remove_nvme(self, name: str, *, deadline: Deadline | None = None) -> None:
        """Refuse, as :meth:`nvme_backings`."""
        self._begin("remove_nvme", deadline, cores=True)
        self._needs_doca("remove_nvme", "drives are emulated by SNAP")

    def _needs_doca(self, step: str, what: str) -> NoReturn:
        raise Unsupported(
            f"{what}, which needs DOCA", device=self._device.id, during=step, hint="deploy a service that uses DOCA"
        )

    def _forget_rules(self, step: str) -> None:
        """A card that restarts has no rules: what is remembered of them is not true any more."""
        if self._card.known_mode(step, Deadline.after(5.0)) is None:
            return
        self._card.record.change(lambda record: msgspec.structs.replace(record, rules=()), step)


def ready_to_prepare(card: Card, deadline: Deadline) -> None:
    """Raise ``DeviceBusy`` for a card that boots; what cannot be told does not stand in the way."""
    try:
        state = boot.read_boot(card, "prepare", deadline).state
    except Unsupported:
        return
    if state is not BootState.READY:
        raise DeviceBusy(
            f"the card boots: it is at {state}", device=card.id, during="prepare", hint="wait until it is ready"
        )
