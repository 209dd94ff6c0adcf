"""A region of the running machine that libnvdimm, CXL or the DAX bus shows."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from hal.errors import (
    AccessDenied,
    DeviceBusy,
    DeviceError,
    DeviceGone,
    HardwareFault,
    InvalidArgument,
    OutOfMemory,
    Unsupported,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import (
    NAMESPACE_ALIGNMENT_BYTES,
    ByteRange,
    Namespace,
    NamespaceMode,
    PersistenceDomain,
    Region,
    merged,
    overlap,
)
from hal.model.attributes import Attribute
from hal.model.device import Device, alias
from hal_pmem import locks, wiping
from hal_pmem.backing import Attachment, within
from hal_pmem.files import LINE_BYTES
from hal_pmem.memory import Persistence, map_memory
from hal_pmem.mounts import mounted_at
from hal_pmem.ndctl import Ndctl
from hal_pmem.poison import SECTOR_BYTES, BadBlockList, parse_badblocks
from hal_pmem.spaces import Space, dax_space, line, number, region_spaces
from hal_pmem.telemetry import region_telemetry
from hal_pmem.tools import Tools
from hal_pmem.users import user_of

_T = TypeVar("_T")
_CLEAR_SECONDS = 60.0


class KernelRegion:
    """One region. Creating the object looks where it is; nothing is held open."""

    def __init__(self, device: Device, tools: Tools, step: str = "open") -> None:
        self.id = device.id
        self._device = device
        self._tools = tools
        self._ndctl = Ndctl(tools, device.id)
        self._lists: dict[str, BadBlockList] = {}
        self.name = alias(device, "nd") or ""
        self._dax = alias(device, "dax") or ""
        self.folder = os.path.realpath(f"/sys/bus/nd/devices/{self.name}") if self.name else ""
        if not (os.path.isdir(self.folder) if self.name else self._dax):
            raise self._gone(step)

    def region(self) -> Region:
        """Return the region as sysfs shows it now."""
        spaces = self.spaces("region")
        attributes = self._device.attributes
        named = self._device.value("dimms")
        total = number(self.folder + "/size") if self.name else None
        size = total or max((space.namespace.size_bytes for space in spaces), default=0)
        return Region(
            name=self.name or self._dax,
            set_cookie=line(self.folder + "/set_cookie") if self.name else "",
            size_bytes=size,
            available_bytes=self._available() if self.name else 0,
            persistence_domain=self.domain(),
            media=str(attributes["media"].value or "unknown"),
            line_bytes=LINE_BYTES,
            granule_bytes=SECTOR_BYTES,
            dimms=tuple(str(one).removeprefix("dimm-") for one in named) if isinstance(named, tuple) else (),
            locked=self._device.value("locked") is True,
            encrypted=self._device.value("encrypted") is True,
            read_only=bool(number(self.folder + "/read_only")) if self.name else False,
        )

    def domain(self) -> PersistenceDomain:
        """Return what the platform promises; none where it does not say (``unknown``)."""
        text = line(self.folder + "/persistence_domain") if self.name else "none"
        try:
            return PersistenceDomain(text)
        except ValueError:
            return PersistenceDomain.NONE

    def spaces(self, step: str) -> list[Space]:
        """Return the namespaces with their nodes. Raises ``DeviceGone`` if the region went."""
        if self.name:
            if not os.path.isdir(self.folder):
                raise self._gone(step)
            return region_spaces(self.folder)
        space = dax_space(self._dax)
        if space is None:
            raise self._gone(step)
        return [space]

    def namespaces(self) -> tuple[Namespace, ...]:
        """Return the namespaces by their place, each with its bad blocks."""
        spaces = self.spaces("namespaces")
        bad = self._bad(spaces)
        return tuple(
            msgspec.structs.replace(
                one.namespace, bad_blocks=within(bad, one.namespace.offset_bytes, one.namespace.size_bytes)
            )
            for one in spaces
        )

    def state(self) -> str:
        """Return the namespaces as text: a new one has a new uuid."""
        return repr([(one.namespace.name, one.namespace.uuid, one.namespace.size_bytes) for one in self.spaces("plan")])

    def attach(self, namespace: Namespace, *, read_only: bool) -> Attachment:
        """Map device DAX directly, and an fsdax namespace without a file system as a block device, by msync."""
        space = self._space(namespace, "map")
        if not space.node:
            raise DeviceBusy(
                f"{namespace.name} has no device node: it is disabled, or used as system memory",
                device=self.id,
                during="map",
                hint=f"ndctl enable-namespace {namespace.name}",
            )
        where = "" if space.is_dax else mounted_at(space.node)
        if where:
            raise DeviceBusy(
                f"{space.node} is mounted at {where}",
                device=self.id,
                during="map",
                hint=f"use a region file on it: HAL_PMEM_FILES={where}/region.pmem=SIZE",
            )

        def work() -> Attachment:
            descriptor = os.open(space.node, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                locks.hold(descriptor, 0, space.usable_bytes)
                memory = map_memory(
                    space.node,
                    descriptor,
                    0,
                    space.usable_bytes,
                    read_only=read_only,
                    device_dax=space.is_dax,
                    block=not space.is_dax,
                )
            except BaseException:
                os.close(descriptor)
                raise
            if not self.name:  # volatile memory: libpmem calls all device DAX persistent, and the kernel knows better
                memory = msgspec.structs.replace(memory, persistence=Persistence.NONE)
            return Attachment(
                memory=memory,
                path=space.node,
                descriptor=descriptor,
                base_bytes=0,
                size_bytes=space.usable_bytes,
                granule_bytes=SECTOR_BYTES,
                readable=not space.is_dax,
                read_only=read_only,
                region_bytes=space.data_offset_bytes,
                badblocks=space.badblocks,
            )

        return self._do("map", work)

    def user_of(self, namespace: Namespace) -> str:
        """Return who uses a namespace: a mapping of ours, any process's mapping, or a mount."""
        space = next((one for one in self.spaces("look") if one.namespace.name == namespace.name), None)
        return "" if space is None or not space.node else self._do("look", lambda: user_of(space))

    def used(self) -> str:
        """Return which namespaces are mapped by processes, in words. A mount is the host's own and not a holder's."""
        found = []
        for space in self.spaces("unprepare"):
            user = self._do("look", lambda space=space: user_of(space)) if space.node else ""  # type: ignore[misc]
            if user and not user.startswith("mounted"):
                found.append(f"{space.namespace.name} is {user}")
        return "; ".join(found)

    def draft(self, mode: NamespaceMode, size_bytes: int, sector_bytes: int) -> Namespace:
        """Return what a new namespace would be, as far as it can be told before ndctl has made it."""
        if not self.name:
            raise Unsupported(
                "a DAX device of no region has one namespace for good",
                device=self.id,
                during="plan_create",
                hint=f"map {self._dax}",
            )
        align = max(number(self.folder + "/align") or 0, NAMESPACE_ALIGNMENT_BYTES)
        if size_bytes <= 0 or size_bytes % align or size_bytes > self._available():
            raise InvalidArgument(
                f"no place for a namespace of {size_bytes} bytes",
                device=self.id,
                during="plan_create",
                hint=f"whole multiples of {align} bytes, at most {self._available()}; "
                "one namespace over all of a region without labels must be destroyed first",
            )
        spaces = self.spaces("plan_create")
        end = max((one.namespace.offset_bytes + one.namespace.size_bytes for one in spaces), default=0)
        return Namespace(
            name=line(self.folder + "/namespace_seed") or f"{self.name}.next",
            uuid=str(uuid.uuid4()),
            mode=mode,
            size_bytes=size_bytes,
            offset_bytes=end,
            sector_bytes=sector_bytes if mode is NamespaceMode.SECTOR else 0,
        )

    def create(self, draft: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Create a namespace through ndctl."""
        self._refuse_changed(state, "create")
        name = self._ndctl.create(self.name, draft.mode, draft.size_bytes, draft.sector_bytes, draft.uuid, deadline)
        for namespace in self.namespaces():
            if namespace.name == name:
                return namespace
        raise HardwareFault(
            f"ndctl has created {name}, and sysfs does not show it",
            device=self.id,
            during="create",
            hint="ndctl list -Ni; dmesg",
        )

    def destroy(self, namespace: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Destroy a namespace through ndctl; one of a region without labels by writing labels."""
        self._refuse_changed(state, "destroy")
        self._ndctl.destroy(namespace.name, deadline)
        left = [one for one in self.spaces("destroy") if one.namespace.name == namespace.name]
        if left and left[0].namespace.uuid == namespace.uuid:
            modules = [name for name in self._module_names() if name]
            self._ndctl.write_labels(self.name, modules, deadline)
            if self._available() < namespace.size_bytes // 2:
                raise Unsupported(
                    f"{namespace.name} spans a region whose modules keep no labels; it was emptied and stays",
                    device=self.id,
                    during="destroy",
                    hint="ndctl create-namespace --force --reconfig changes its mode",
                )
        return namespace

    def bad_blocks(self) -> tuple[ByteRange, ...]:
        """Return the poisoned ranges from the region's start: its own list, and those of its block devices."""
        return self._bad(self.spaces("bad_blocks"))

    def bad_blocks_of(self, attachment: Attachment) -> tuple[ByteRange, ...]:
        """Return the bad ranges of a mapped namespace: one read where there are none."""
        region = self._region_list()
        own = self._list(attachment.badblocks) if attachment.badblocks else ()
        if not region and not own:
            return ()
        found = within(region, attachment.region_bytes, attachment.size_bytes)
        return merged((*found, *within(own, 0, attachment.size_bytes)))

    def clear(self, attachment: Attachment, offset: int, length: int) -> None:
        """Let the kernel clear the poison and write zeros; ``HardwareFault`` if it is listed still."""

        def work() -> None:
            if attachment.readable:
                wiping.zero_block_device(attachment.path, attachment.base_bytes + offset, length)
            else:
                space = next(one for one in self.spaces("clear_poison") if one.node == attachment.path)
                if overlap(self.bad_blocks_of(attachment), offset, length) is not None:
                    self._ndctl.clear_errors(space.namespace.name, Deadline.after(_CLEAR_SECONDS))
                wiping.zero_memory(attachment.memory, offset, length)

        self._do("clear_poison", work)
        left = overlap(self.bad_blocks_of(attachment), offset, length)
        if left is not None:
            raise HardwareFault(
                f"the kernel could not clear the bad block at byte {left.offset}",
                device=self.id,
                during="clear_poison",
                hint="the module or its firmware cannot; keep the range unused, and replace the module",
            )

    def deep_flush(self, deadline: Deadline) -> None:
        """Write the region's ``deep_flush``; ``Unsupported`` where the firmware gave no addresses to flush by."""
        if number(self.folder + "/deep_flush") == 0:
            raise Unsupported(
                "the firmware tells no flush hint addresses: nothing goes further than the memory controller",
                device=self.id,
                during="deep_flush",
                hint="rely on the persistence domain, or power down in order",
            )

        def work() -> None:
            with open(self.folder + "/deep_flush", "w", encoding="ascii") as file:
                file.write("1\n")

        self._do("deep_flush", work)
        deadline.check(device=self.id, during="deep_flush")

    def telemetry(self, deadline: Deadline) -> Mapping[str, Attribute]:
        """Return what ndctl or cxl says of the region's modules now."""
        return region_telemetry(self._tools, self._module_names(), deadline)

    def scrub(self, deadline: Deadline, report: Callable[[float], None]) -> None:
        """Zero what every namespace shows, and clear its poison. Raises ``DeviceBusy`` while one is used."""
        spaces = [space for space in self.spaces("scrub") if space.node]
        for number_, space in enumerate(spaces):
            user = self._do("scrub", lambda space=space: user_of(space))  # type: ignore[misc]
            if user:
                raise DeviceBusy(
                    f"{space.namespace.name} is {user}", device=self.id, during="scrub", hint="let it go first"
                )
            deadline.check(device=self.id, during="scrub")
            bad = self._bad([space])
            if bad and space.is_dax:
                self._ndctl.clear_errors(space.namespace.name, deadline)
            self._do("scrub", lambda space=space: wiping.zero_space(space, deadline))  # type: ignore[misc]
            report((number_ + 1) / len(spaces))

    # --- helpers

    def _available(self) -> int:
        extent = number(self.folder + "/max_available_extent")
        return extent if extent is not None else number(self.folder + "/available_size") or 0

    def _module_names(self) -> list[str]:
        names = []
        for place in range(number(self.folder + "/mappings") or 0) if self.name else ():
            names.append(line(f"{self.folder}/mapping{place}").partition(",")[0])
        return names

    def _space(self, namespace: Namespace, step: str) -> Space:
        for space in self.spaces(step):
            if space.namespace.name == namespace.name and space.namespace.uuid == namespace.uuid:
                return space
        raise self._gone(step)

    def _refuse_changed(self, state: str, step: str) -> None:
        if self.state() != state:
            raise InvalidArgument(
                "the region's namespaces have changed meanwhile",
                device=self.id,
                during=step,
                hint="look at the namespaces, and plan again",
            )

    def _bad(self, spaces: list[Space]) -> tuple[ByteRange, ...]:
        found = list(self._region_list())
        for space in spaces:
            if space.badblocks:
                listed = parse_badblocks(line(space.badblocks))
                found += [ByteRange(part.offset + space.data_offset_bytes, part.length) for part in listed]
        return merged(found)

    def _region_list(self) -> tuple[ByteRange, ...]:
        return self._list(self.folder + "/badblocks") if self.name else ()

    def _list(self, path: str) -> tuple[ByteRange, ...]:
        if path not in self._lists:
            self._lists[path] = BadBlockList(path)
        return self._lists[path].ranges()

    def _gone(self, step: str) -> DeviceGone:
        return DeviceGone(
            f"{self.name or self._dax or 'the region'} is not in /sys any more",
            device=self.id,
            during=step,
            hint="ndctl list -Ri; dmesg says why the kernel gave it up",
        )

    def _do(self, step: str, work: Callable[[], _T]) -> _T:
        """Do what the kernel may refuse, and say in words how it did."""
        try:
            return work()
        except OSError as error:
            raise self._error(error, step) from None

    def _error(self, error: OSError, step: str) -> DeviceError:
        words = f"{error.filename or self.name}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            return AccessDenied(words, device=self.id, during=step, hint="run as root, or chmod the device node")
        if isinstance(error, BlockingIOError):
            return DeviceBusy(words, device=self.id, during=step, hint="somebody else is changing it; try again")
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return DeviceGone(words, device=self.id, during=step, hint="ndctl list -RNi; udev may make its node later")
        if error.errno == errno.EOPNOTSUPP:
            return Unsupported(words, device=self.id, during=step, hint="apt install libpmem1")
        if error.errno == errno.ENOMEM:
            return OutOfMemory(words, device=self.id, during=step, hint="ulimit -v; free address space")
        return HardwareFault(words, device=self.id, during=step, hint="dmesg says what the kernel met")
