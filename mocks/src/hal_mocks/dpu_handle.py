"""An opened mock DPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import pairwise
from os import PathLike

from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceBusy, HardwareFault, InvalidArgument, Unsupported
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
from hal_mocks.base import MockHandle, tell_lies
from hal_mocks.dpu_flows import add_flow_rule, delete_flow_rule, flow_rules
from hal_mocks.dpu_offloads import offloads_of, start_offload
from hal_mocks.dpu_restart import push_image, restart
from hal_mocks.dpu_services import ServiceTable
from hal_mocks.dpu_state import CardState, find_card
from hal_mocks.dpu_telemetry import measure
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine

_CONSOLE_POLL_SECONDS = 0.02
_FW_FATAL_CODE = 0x10
_STARTS = {ResetLevel.SOFT: BootState.UEFI, ResetLevel.HARD: BootState.ROM}


class MockDpu(MockHandle):
    """See :class:`hal.interfaces.dpu.Dpu`."""

    def __init__(self, machine: Machine, device: Device, guard: Guard) -> None:
        super().__init__(machine, device, guard)
        self._card = find_card(machine, device.id)
        self._services = ServiceTable(self._card)
        self._engines = {
            mode: {offload.name: offload for offload in offloads_of(self._card.dpu, mode)} for mode in DpuMode
        }

    def _admit(self, step: str, deadline: Deadline | None) -> CardState:
        """Let the host in if the mode lets it: what works on a card that is still booting or has failed."""
        self._enter(step, deadline)
        state = self._card.state()
        if state.mode is DpuMode.RESTRICTED:
            raise AccessDenied(
                "the card is in restricted mode: its host may not touch it",
                device=self._id,
                during=step,
                hint="the card's own controller (BMC) can leave the mode",
            )
        return state

    def _ready(self, step: str, deadline: Deadline | None, *, cores: bool = False) -> CardState:
        """Let the host in if the card works, and with ``cores`` if its cores do."""
        state = self._admit(step, deadline)
        for fault in self._machine.faults_of(self._id):
            if fault.type is FaultType.FW_FATAL:
                raise HardwareFault(
                    "the card's firmware has stopped (devlink reporter fw_fatal)",
                    device=self._id,
                    during=step,
                    hint="reset the card",
                    code=fault.code if fault.code is not None else _FW_FATAL_CODE,
                )
        boot = state.boot
        if boot is not None and self._machine.clock.now() < boot.ready_at:
            raise DeviceBusy(
                f"the card boots: {boot.at(self._machine.clock.now())[0]}",
                device=self._id,
                during=step,
                hint="wait for the reset's operation, or until boot() says ready",
            )
        if cores and state.mode is DpuMode.NIC:
            raise Unsupported(
                "the card's cores are inactive in NIC mode",
                device=self._id,
                during=step,
                hint="set_mode(dpu) and a power cycle",
            )
        return state

    def mode(self, *, deadline: Deadline | None = None) -> ModeReport:
        """Return the mode now and the pending one."""
        self._enter("mode", deadline)
        state = self._card.state()
        return ModeReport(current=state.mode, pending=state.pending_mode)

    def set_mode(self, mode: DpuMode, *, deadline: Deadline | None = None) -> ModeReport:
        """Remember the mode for the next power cycle; the current one takes a pending one back."""
        self._admit("set_mode", deadline)
        try:
            wanted = DpuMode(mode)
        except ValueError:
            raise InvalidArgument(
                f"no mode {mode!r}", device=self._id, during="set_mode", hint=f"one of {', '.join(DpuMode)}"
            ) from None
        with self._card.locked():
            current = self._card.state().mode
            state = self._card.change(pending_mode=None if wanted is current else wanted)
        return ModeReport(current=state.mode, pending=state.pending_mode)

    def boot(self, *, deadline: Deadline | None = None) -> BootReport:
        """Return how far the card has come."""
        state = self._admit("boot", deadline)
        if state.boot is None:
            return BootReport(state=BootState.READY, since_at=state.since)
        now = self._machine.clock.now()
        current, since_at = state.boot.at(now)
        stages = state.boot.stages
        spans = {
            stage: round(left_at - entered_at, 6)
            for (stage, entered_at), (_, left_at) in pairwise(stages)
            if left_at <= now
        }
        return BootReport(state=current, since_at=since_at, stage_seconds=spans, boots=state.boots)

    def reset(self, level: ResetLevel = ResetLevel.SOFT, *, deadline: Deadline | None = None) -> Operation[None]:
        """Restart the cores, or the whole card."""
        self._admit("reset", deadline)
        try:
            start = _STARTS[level]
        except KeyError:
            raise InvalidArgument(
                f"no reset {level!r}", device=self._id, during="reset", hint=f"one of {', '.join(ResetLevel)}"
            ) from None
        return restart(self._machine, self._card, start, f"{level} reset", deadline)

    def power_cycle(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Take the power away and give it back."""
        self._admit("power_cycle", deadline)
        return restart(self._machine, self._card, BootState.OFF, "power_cycle", deadline)

    def image(self, *, deadline: Deadline | None = None) -> Image:
        """Return what the card boots."""
        self._admit("image", deadline)
        return self._card.image()

    def push_image(self, image: Buffer | str | PathLike[str], *, deadline: Deadline | None = None) -> Operation[Image]:
        """Write an image and boot from it; also the way out of a boot that hangs."""
        self._admit("push_image", deadline)
        return push_image(self._machine, self._card, image, deadline)

    def read_console(self, since: int = 0, *, deadline: Deadline | None = None) -> tuple[ConsoleLine, ...]:
        """Return the lines from ``since`` on that have come so far."""
        self._admit("read_console", deadline)
        now = self._machine.clock.now()
        return tuple(line for line in self._card.console() if line.number >= since and line.at <= now)

    def console(self, since: int = 0, *, deadline: Deadline | None = None) -> Iterator[str]:
        """Yield lines; the lease is checked at every look."""
        self._admit("read_console", deadline)
        return self._follow(since, deadline)

    def _follow(self, since: int, deadline: Deadline | None) -> Iterator[str]:
        pause = threading.Event()
        while True:
            for line in self.read_console(since):
                since = line.number + 1
                yield line.text
            if deadline is None or deadline.expired:
                return
            pause.wait(min(_CONSOLE_POLL_SECONDS, deadline.remaining_seconds))

    def deploy(self, spec: ServiceSpec, *, deadline: Deadline | None = None) -> Operation[Service]:
        """Start a service as a process of this host."""
        self._ready("deploy", deadline, cores=True)
        self._services.check(spec)
        now, fence = self._machine.clock.now(), self._guard.fence
        return Operation.spawn(self._id, "deploy", lambda _: self._services.deploy(spec, fence, now))

    def services(self, *, deadline: Deadline | None = None) -> tuple[Service, ...]:
        """Return all services, oldest first."""
        self._ready("services", deadline, cores=True)
        return self._services.services()

    def stop(self, name: str, *, grace_seconds: float = 5.0, deadline: Deadline | None = None) -> Operation[Service]:
        """SIGTERM, after the grace SIGKILL, to all processes of the service."""
        self._ready("stop", deadline, cores=True)
        limit = or_default(deadline, grace_seconds + 10.0)
        return Operation.spawn(self._id, "stop", lambda _: self._services.stop(name, grace_seconds, limit))

    def logs(self, name: str, *, tail_bytes: int = 65536, deadline: Deadline | None = None) -> str:
        """Return the end of a service's output."""
        self._ready("logs", deadline, cores=True)
        return self._services.logs(name, tail_bytes)

    def offloads(self, *, deadline: Deadline | None = None) -> tuple[Offload, ...]:
        """Return what the card computes in its mode."""
        state = self._ready("offloads", deadline)
        return tuple(self._engines[state.mode].values())

    def offload(
        self, name: str, buffer: Buffer, *, deadline: Deadline | None = None, **parameters: object
    ) -> Operation[bytes]:
        """Compute one function on this host."""
        state = self._ready("offload", deadline)
        return start_offload(self._id, self._engines[state.mode], name, buffer, parameters)

    def add_flow(
        self, match: FlowMatch, action: FlowAction, *, priority: int = 100, deadline: Deadline | None = None
    ) -> FlowRule:
        """Add a rule to the card's switch."""
        self._ready("add_flow", deadline)
        return add_flow_rule(self._card, match, action, priority)

    def delete_flow(self, rule_id: int, *, deadline: Deadline | None = None) -> None:
        """Take a rule away."""
        self._ready("delete_flow", deadline)
        delete_flow_rule(self._card, rule_id)

    def flows(self, *, deadline: Deadline | None = None) -> tuple[FlowRule, ...]:
        """Return all rules with their counters."""
        self._ready("flows", deadline)
        return flow_rules(self._card)

    def vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many virtual functions there are."""
        return self._ready("vf_count", deadline).vf_count

    def max_vf_count(self, *, deadline: Deadline | None = None) -> int:
        """Return how many there can be."""
        self._ready("max_vf_count", deadline)
        return self._card.dpu.max_vfs

    def set_vf_count(self, count: int, *, deadline: Deadline | None = None) -> None:
        """Make so many virtual functions."""
        self._ready("set_vf_count", deadline)
        most = self._card.dpu.max_vfs
        if not 0 <= count <= most:
            raise InvalidArgument(
                f"{count} virtual functions", device=self._id, during="set_vf_count", hint=f"0 to {most}"
            )
        with self._card.locked():
            current = self._card.state().vf_count
            if count and current and count != current:
                raise DeviceBusy(
                    f"there are {current} virtual functions",
                    device=self._id,
                    during="set_vf_count",
                    hint="set 0 first, as sriov_numvfs demands",
                )
            self._card.change(vf_count=count)

    def nvme_backings(self, *, deadline: Deadline | None = None) -> Mapping[str, int]:
        """Return the bytes that are left of the card's memory and of its drives."""
        return self._left(self._ready("nvme_backings", deadline, cores=True))

    def _left(self, state: CardState) -> dict[str, int]:
        drives = {drive.name: drive.size_bytes for drive in self._card.host.nvmes}
        left = {"memory": self._card.dpu.memory_bytes - self._services.reserved()[1]}
        left |= {name: drives[name] for name in self._card.dpu.nvme if name in drives}
        for exposure in state.exposures:
            left[exposure.backing] -= exposure.size_bytes
        return left

    def expose_nvme(
        self, name: str, *, size_bytes: int, backing: str = "memory", deadline: Deadline | None = None
    ) -> NvmeExposure:
        """Show a namespace with the lowest free id."""
        step = "expose_nvme"
        self._ready(step, deadline, cores=True)
        with self._card.locked():
            state = self._card.state()
            left = self._left(state)
            if backing not in left:
                raise InvalidArgument(
                    f"no backing {backing!r}", device=self._id, during=step, hint=f"one of {', '.join(left)}"
                )
            if not name or size_bytes <= 0 or size_bytes % 512:
                raise InvalidArgument(
                    f"{name!r} of {size_bytes} bytes",
                    device=self._id,
                    during=step,
                    hint="give a name and a multiple of 512 bytes",
                )
            if any(exposure.name == name for exposure in state.exposures) or size_bytes > left[backing]:
                raise DeviceBusy(
                    f"{name} is in use, or {backing} has only {left[backing]} bytes left",
                    device=self._id,
                    during=step,
                    hint="remove_nvme(), or ask for less",
                )
            taken = {exposure.nsid for exposure in state.exposures}
            nsid = next(number for number in range(1, len(taken) + 2) if number not in taken)
            exposure = NvmeExposure(name=name, nsid=nsid, size_bytes=size_bytes, backing=backing)
            exposures = sorted((*state.exposures, exposure), key=lambda item: item.nsid)
            self._card.change(exposures=tuple(exposures))
        return exposure

    def nvme_exposures(self, *, deadline: Deadline | None = None) -> tuple[NvmeExposure, ...]:
        """Return what is shown, by namespace id."""
        return self._ready("nvme_exposures", deadline, cores=True).exposures

    def remove_nvme(self, name: str, *, deadline: Deadline | None = None) -> None:
        """Take a namespace away."""
        self._ready("remove_nvme", deadline, cores=True)
        with self._card.locked():
            exposures = self._card.state().exposures
            left = tuple(exposure for exposure in exposures if exposure.name != name)
            if len(left) == len(exposures):
                raise InvalidArgument(
                    f"no exposure {name!r}", device=self._id, during="remove_nvme", hint="list nvme_exposures()"
                )
            self._card.change(exposures=left)

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return what can be measured in the card's mode and boot state."""
        faults = self._enter("telemetry", deadline)
        return tell_lies(measure(self._machine, self._card, self._services), faults)

    def children(self, *, deadline: Deadline | None = None) -> tuple[str, ...]:
        """Return the ids of the card's RDMA NICs."""
        self._enter("children", deadline)
        value = self._device.value("rnics")
        return tuple(str(item) for item in value) if isinstance(value, tuple) else ()
