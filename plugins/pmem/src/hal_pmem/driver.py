"""The driver: what ``hal.drivers.contract.Driver`` asks for, and the facets ``Scrubs`` and ``Reports``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hal.drivers.contract import READY, Cause, Discovery, Grant, HostRoot, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceBusy, DeviceGone, DeviceNotFound, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.model.device import Device
from hal.model.event import Event
from hal.model.health import Action, Condition, Severity
from hal.model.kind import Kind
from hal_pmem.baseline import Baseline, baseline_file
from hal_pmem.discovery import NAME, Look, add_files, look_at
from hal_pmem.file_setup import VARIABLE
from hal_pmem.files import FileRegion
from hal_pmem.handle import OpenedRegion
from hal_pmem.health import condition
from hal_pmem.kernel import KernelRegion
from hal_pmem.tools import Tools

_SCRUB_SECONDS = 3600.0
_REMEDY = f"set {VARIABLE}=/path/of/region.pmem=256M for a region in a file"


class PmemDriver:
    """Drives regions of persistent memory, of CXL memory and of files. Creating one touches nothing."""

    name = NAME

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str]) -> None:
        self._hosts = tuple(hosts)
        self._environ = dict(environ)
        self._tools = Tools(self._environ)
        self._baseline = Baseline(baseline_file(self._environ))
        self._fences = Fences(fence_folder(self._environ))
        self._seen: dict[str, Device] = {}
        self._files: dict[str, FileRegion] = {}

    def readiness(self) -> Readiness:
        """Say whether there is anything to look at, or what is in the way."""
        if self._environ.get(VARIABLE):
            return READY
        for host in self._hosts:
            for bus in ("nd", "dax", "cxl"):
                folder = host.path("sys", "bus", bus, "devices")
                if not folder.is_dir() and host.root is not None:
                    folder = host.path("bus", bus, "devices")
                try:
                    if next(folder.iterdir(), None) is not None:
                        return READY
                except OSError:
                    continue
        if any(host.path("sys", "bus", "nd").is_dir() for host in self._hosts):
            detail = "libnvdimm is loaded and shows no NVDIMM, and there is no DAX or CXL memory"
            return Readiness(cause=Cause.NO_HARDWARE, detail=detail, remedy=_REMEDY)
        detail = "no libnvdimm, DAX or CXL bus in /sys: no persistent memory, or its modules are not loaded"
        return Readiness(
            cause=Cause.NO_DRIVER, detail=detail, remedy=f"modprobe -a nfit nd_pmem device_dax; or {_REMEDY}"
        )

    def discover(self, deadline: Deadline) -> Discovery:
        """Return regions, modules and region files, with their conditions."""
        return self._look(deadline).discovery()

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Look again. What was there and is not any more has a condition that says so."""
        only_files = self._files and all(one in self._files for one in device_ids)
        look = self._look_at_files() if only_files else self._look(deadline)
        now = {device.id: device for device in look.devices}
        found: list[Condition] = []
        for device_id in device_ids:
            if device_id in now:
                found += now[device_id].conditions
            elif device_id in self._seen:
                evidence = "it was there before, and is not any more"
                found.append(condition(device_id, "NotEnumerated", Severity.FATAL, evidence, 0.0, Action.REBOOT))
            else:
                raise _not_found(device_id, "sample")
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse what cannot be leased, then remember the fence."""
        device = self._find(device_id, "prepare", deadline)
        if not device.allocatable:
            raise self._refusal(device, "prepare")
        self._backing(device, "prepare").region()
        self._refuse_locked(device, "prepare")
        self._fences.raise_to(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Prove that no process can reach the region any more: ``DeviceBusy`` while one still has it mapped.

        Memory that is mapped cannot be taken away from a process without ending it, so the region stays fenced until
        the mapping is gone.
        """
        device = self._find(device_id, "unprepare", deadline)
        self._fences.raise_to(device_id, grant, "unprepare")
        if not device.allocatable:
            return
        try:
            used = self._backing(device, "unprepare").used()
        except DeviceGone:
            return  # what is not there, nobody reaches
        if used:
            raise DeviceBusy(used, device=device_id, during="unprepare", hint="end the process that has it mapped")

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> OpenedRegion:
        """Open a region of the running machine in this process."""
        device = self._find(device_id, "open", deadline)
        if not device.allocatable:
            raise self._refusal(device, "open")
        guard.check()
        self._refuse_locked(device, "open")
        backing = self._backing(device, "open")
        backing.region()
        return OpenedRegion(device, guard, backing)

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Erase every namespace's bytes, clear the bad blocks that the kernel can, and take note of dirty shutdowns."""
        limit = or_default(deadline, _SCRUB_SECONDS)
        device = self._find(device_id, "scrub", limit)
        if not device.allocatable:
            raise self._refusal(device, "scrub")
        backing = self._backing(device, "scrub")

        def work(operation: Operation[None]) -> None:
            backing.scrub(limit, operation.report)
            self._baseline.accept(self._dirty_shutdowns(device))

        return Operation.spawn(device_id, "scrub", work)

    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield what changes: uevents at once, conditions that no uevent tells by looking again."""
        from hal_pmem.events import watch

        yield from watch(self._hosts, self._look, deadline)

    def close(self) -> None:
        """Nothing is held."""

    def _look(self, deadline: Deadline) -> Look:
        look = look_at(self._hosts, self._environ, self._tools, self._baseline, deadline)
        self._remember(look)
        return look

    def _look_at_files(self) -> Look:
        look = Look()
        for host in self._hosts:
            if host.root is None:
                add_files(look, host, self._environ)
        self._remember(look)
        return look

    def _remember(self, look: Look) -> None:
        self._seen.update((device.id, device) for device in look.devices)
        self._files.update(look.files)

    def _find(self, device_id: str, step: str, deadline: Deadline) -> Device:
        if device_id not in self._seen:
            self._look(deadline)
        device = self._seen.get(device_id)
        if device is None:
            raise _not_found(device_id, step)
        return device

    def _backing(self, device: Device, step: str) -> FileRegion | KernelRegion:
        file = self._files.get(device.id)
        return file if file is not None else KernelRegion(device, self._tools, step)

    def _refusal(self, device: Device, step: str) -> Unsupported:
        if device.kind is not Kind.PMEM:
            return Unsupported(
                "a module is not leased by itself",
                device=device.id,
                during=step,
                hint="claim the region that its bytes belong to: kind pmem",
            )
        return Unsupported(
            "this region can be looked at and not used: it was recorded, is system memory, or has no size",
            device=device.id,
            during=step,
            hint="open it on the machine that it was recorded on, without HAL_SYSFS_ROOT",
        )

    def _refuse_locked(self, device: Device, step: str) -> None:
        if device.value("locked") is True:
            raise AccessDenied(
                "a module of the region is locked", device=device.id, during=step, hint="ndctl unlock-dimm all"
            )

    def _dirty_shutdowns(self, region: Device) -> dict[str, int]:
        named = region.value("dimms")
        found: dict[str, int] = {}
        for one in named if isinstance(named, tuple) else ():
            module = self._seen.get(str(one))
            count = module.value("dirty_shutdown_count") if module is not None else None
            if isinstance(count, int):
                found[str(one)] = count
        return found


def _not_found(device_id: str, step: str) -> DeviceNotFound:
    return DeviceNotFound("no persistent memory of that id", device=device_id, during=step, hint="hal-probe list")
