"""A region that is a plain file, honestly labelled: real bytes that outlive processes, on every machine.

The file carries its identity and its namespaces in a label (:mod:`hal_pmem.file_label`), so it keeps both wherever it
is moved. It is made durable by ``msync``; on a DAX file system by libpmem, as far as libpmem agrees.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from hal.errors import AccessDenied, DeviceBusy, DeviceGone, HardwareFault, InvalidArgument, OutOfMemory
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import (
    NAMESPACE_ALIGNMENT_BYTES,
    ByteRange,
    Namespace,
    NamespaceMode,
    PersistenceDomain,
    Region,
)
from hal.model.attributes import Absence, Attribute, absent, known
from hal_pmem import erase, locks
from hal_pmem.backing import Attachment, within
from hal_pmem.file_label import DATA_OFFSET_BYTES, Label, read_label, write_label
from hal_pmem.memory import Persistence, map_memory, persistence_of
from hal_pmem.mounts import Ground, look_below
from hal_pmem.poison import BadBlockList, in_file

LINE_BYTES = 64
GRANULE_BYTES = 4096
SOURCE = "file"
MEDIA = "file"
_T = TypeVar("_T")


class FileRegion:
    """One region file. Creating the object reads its label and where it lies; nothing is held open."""

    def __init__(self, path: str, label: Label) -> None:
        self.path = path
        self.id = "pmem-" + label.cookie
        self.name = os.path.basename(path).removesuffix(".pmem") or "region"
        self._first = label
        self._ground: Ground | None = None
        self._bad: BadBlockList | None = None

    @property
    def ground(self) -> Ground:
        """What the file lies on, looked at once."""
        if self._ground is None:
            self._ground = look_below(self.path)
        return self._ground

    def persistence(self) -> Persistence:
        """Return what a mapping of the file would have."""
        return self._do("discover", lambda: persistence_of(self.path))

    def domain(self) -> PersistenceDomain:
        """Return the domain that the kernel names for the device below, if stores reach it by themselves."""
        if self.persistence() is not Persistence.CPU_FLUSH:
            return PersistenceDomain.NONE
        return domain_below(self.ground.device)

    def label(self, step: str = "look") -> Label:
        """Return the label as it is now. Raises ``DeviceGone`` if the file is another or none."""
        with self._opened(step, os.O_RDONLY) as descriptor:
            return self._read(descriptor, step)

    def region(self) -> Region:
        """Return the file as a region."""
        label = self.label("region")
        return Region(
            name=self.name,
            set_cookie="0x" + label.cookie,
            size_bytes=label.size_bytes,
            available_bytes=label.available_bytes(),
            persistence_domain=self.domain(),
            media=MEDIA,
            line_bytes=LINE_BYTES,
            granule_bytes=GRANULE_BYTES,
            read_only=not os.access(self.path, os.W_OK),
        )

    def namespaces(self) -> tuple[Namespace, ...]:
        """Return the namespaces by their place, each with its bad blocks."""
        label, bad = self.label("namespaces"), self.bad_blocks()
        if not bad:
            return label.namespaces
        return tuple(
            msgspec.structs.replace(one, bad_blocks=within(bad, one.offset_bytes, one.size_bytes))
            for one in label.namespaces
        )

    def state(self) -> str:
        """Return how often the label changed."""
        return str(self.label("plan").changes)

    def attach(self, namespace: Namespace, *, read_only: bool) -> Attachment:
        """Map a namespace; it counts as used until the last of its memory is let go."""
        base = DATA_OFFSET_BYTES + namespace.offset_bytes

        def work() -> Attachment:
            descriptor = os.open(self.path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                with locks.exclusive(descriptor, shared=True):
                    if self._read(descriptor, "map").find(namespace.uuid) is None:
                        raise self._changed("map")
                    locks.hold(descriptor, base, namespace.size_bytes)
                memory = map_memory(self.path, descriptor, base, namespace.size_bytes, read_only=read_only)
            except BaseException:
                os.close(descriptor)
                raise
            return Attachment(
                memory=memory,
                path=self.path,
                descriptor=descriptor,
                base_bytes=base,
                size_bytes=namespace.size_bytes,
                granule_bytes=GRANULE_BYTES,
                readable=True,
                read_only=read_only,
            )

        return self._do("map", work)

    def user_of(self, namespace: Namespace) -> str:
        """Return "mapped by a process" if any has it."""
        base = DATA_OFFSET_BYTES + namespace.offset_bytes
        held = self._do("look", lambda: locks.is_held(self.path, base, namespace.size_bytes))
        return "mapped by a process" if held else ""

    def used(self) -> str:
        """Return which namespaces are mapped, in words; "" if none is."""
        names = [one.name for one in self.label("unprepare").namespaces if self.user_of(one)]
        return f"{', '.join(names)} still mapped by a process" if names else ""

    def draft(self, mode: NamespaceMode, size_bytes: int, sector_bytes: int) -> Namespace:
        """Return what a new namespace would be."""
        label = self.label("plan_create")
        offset = label.place(size_bytes) if size_bytes > 0 and size_bytes % NAMESPACE_ALIGNMENT_BYTES == 0 else None
        if offset is None:
            raise InvalidArgument(
                f"no place for a namespace of {size_bytes} bytes",
                device=self.id,
                during="plan_create",
                hint=f"whole multiples of 2 MiB, at most {label.available_bytes()} bytes",
            )
        return Namespace(
            name=label.next_name(),
            uuid=str(uuid.uuid4()),
            mode=mode,
            size_bytes=size_bytes,
            offset_bytes=offset,
            sector_bytes=sector_bytes if mode is NamespaceMode.SECTOR else 0,
        )

    def create(self, draft: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Zero the place and write the namespace into the label, in this order."""

        def change(descriptor: int, label: Label) -> tuple[Namespace, ...]:
            erase.erase(descriptor, DATA_OFFSET_BYTES + draft.offset_bytes, draft.size_bytes)
            os.fsync(descriptor)
            deadline.check(device=self.id, during="create")
            return (*label.namespaces, draft)

        self._change("create", state, change)
        return draft

    def destroy(self, namespace: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Take the namespace out of the label, then give its bytes back to nobody: they are erased."""

        def change(descriptor: int, label: Label) -> tuple[Namespace, ...]:
            if self.user_of(namespace):
                raise DeviceBusy(
                    f"{namespace.name} was mapped meanwhile",
                    device=self.id,
                    during="destroy",
                    hint="close the mapping first",
                )
            return tuple(one for one in label.namespaces if one.uuid != namespace.uuid)

        self._change("destroy", state, change)
        with self._opened("destroy", os.O_RDWR) as descriptor:
            erase.erase(descriptor, DATA_OFFSET_BYTES + namespace.offset_bytes, namespace.size_bytes)
        return namespace

    def bad_blocks(self) -> tuple[ByteRange, ...]:
        """Return where the file lies on bad blocks of its device."""
        bad = self._listed()
        if not bad:
            return ()
        with self._opened("bad_blocks", os.O_RDONLY) as descriptor:
            found = in_file(descriptor, bad, self.ground.start_bytes)
        return within(found, DATA_OFFSET_BYTES, self._first.size_bytes)

    def bad_blocks_of(self, attachment: Attachment) -> tuple[ByteRange, ...]:
        """Return the bad ranges of a mapped namespace; one read where the device has none."""
        bad = self._listed()
        if not bad:
            return ()
        found = in_file(attachment.descriptor, bad, self.ground.start_bytes)
        return within(found, attachment.base_bytes, attachment.size_bytes)

    def clear(self, attachment: Attachment, offset: int, length: int) -> None:
        """Write zeros, which clears poison where the kernel can; else let the file system choose other blocks."""
        place = attachment.base_bytes + offset

        def work() -> None:
            try:
                erase.overwrite(attachment.descriptor, place, length)
                os.fsync(attachment.descriptor)
            except OSError:
                erase.replace_blocks(attachment.descriptor, place, length)
                os.fsync(attachment.descriptor)
            if os.pread(attachment.descriptor, length, place).strip(b"\0"):
                raise HardwareFault(
                    "the bytes are not zero after clearing",
                    device=self.id,
                    during="clear_poison",
                    hint="copy what is left, and replace the module",
                )

        self._do("clear_poison", work)

    def deep_flush(self, deadline: Deadline) -> None:
        """Sync the file; on DAX the kernel asks the region below for its deep flush."""
        with self._opened("deep_flush", os.O_RDONLY) as descriptor:
            self._do("deep_flush", lambda: os.fsync(descriptor))
        deadline.check(device=self.id, during="deep_flush")

    def telemetry(self, deadline: Deadline) -> Mapping[str, Attribute]:
        """Return what a file can tell: where its blocks are bad, and nothing of modules."""
        silent = absent(Absence.UNSUPPORTED, SOURCE, "a file has no module of its own")
        names = ("temperature_celsius", "spares_percent", "life_used_percent", "dirty_shutdown_count", "health_state")
        return {
            **dict.fromkeys(names, silent),
            "bad_blocks": known(sum(part.length for part in self.bad_blocks()) // 512, "sysfs:badblocks"),
            "persistence": known(str(self.persistence()), "mmap"),
        }

    def scrub(self, deadline: Deadline, report: Callable[[float], None]) -> None:
        """Erase every byte of the region; namespaces stay. Raises ``DeviceBusy`` while any is mapped."""
        with self._opened("scrub", os.O_RDWR) as descriptor, locks.exclusive(descriptor):
            used = self.used()
            if used:
                raise DeviceBusy(used, device=self.id, during="scrub", hint="end the processes that have it mapped")
            size, step = self._read(descriptor, "scrub").size_bytes, 256 << 20
            for start in range(0, size, step):
                deadline.check(device=self.id, during="scrub")
                part = min(step, size - start)
                self._erase(descriptor, start, part)
                report((start + part) / size)
            os.fsync(descriptor)

    # --- under the lock

    def _erase(self, descriptor: int, start: int, length: int) -> None:
        self._do("scrub", lambda: erase.erase(descriptor, DATA_OFFSET_BYTES + start, length))

    def _change(self, step: str, state: str, change: Callable[[int, Label], tuple[Namespace, ...]]) -> None:
        with self._opened(step, os.O_RDWR) as descriptor, locks.exclusive(descriptor):
            label = self._read(descriptor, step)
            if str(label.changes) != state:
                raise self._changed(step)
            self._do(step, lambda: write_label(descriptor, label.with_namespaces(change(descriptor, label))))

    def _changed(self, step: str) -> InvalidArgument:
        return InvalidArgument(
            "the region's namespaces have changed meanwhile",
            device=self.id,
            during=step,
            hint="look at the namespaces, and plan again",
        )

    def _listed(self) -> tuple[ByteRange, ...]:
        if self._bad is None:
            self._bad = BadBlockList(self.ground.badblocks)
        return self._bad.ranges()

    def _read(self, descriptor: int, step: str) -> Label:
        label = self._do(step, lambda: read_label(descriptor))
        if label is None or label.cookie != self._first.cookie:
            raise DeviceGone(
                f"{self.path} is not this region any more", device=self.id, during=step, hint="hal-probe list"
            )
        return label

    @contextmanager
    def _opened(self, step: str, flags: int) -> Iterator[int]:
        descriptor = self._do(step, lambda: os.open(self.path, flags | os.O_CLOEXEC))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _do(self, step: str, work: Callable[[], _T]) -> _T:
        """Do what may fail in the file system, and say in words how it did."""
        try:
            return work()
        except FileNotFoundError:
            raise DeviceGone(
                f"{self.path} is gone", device=self.id, during=step, hint="put the file back, or forget the region"
            ) from None
        except PermissionError as error:
            raise AccessDenied(
                f"{self.path}: {error.strerror}", device=self.id, during=step, hint=f"chmod or chown {self.path}"
            ) from None
        except BlockingIOError:
            raise DeviceBusy(
                "the namespace is being changed", device=self.id, during=step, hint="try again in a moment"
            ) from None
        except OSError as error:
            if error.errno == 28:  # ENOSPC
                raise OutOfMemory(
                    f"{self.path}: {error.strerror}", device=self.id, during=step, hint="free space on its file system"
                ) from None
            raise HardwareFault(
                f"{self.path}: {error}", device=self.id, during=step, hint="dmesg says what the disk did"
            ) from None


def domain_below(device: str) -> PersistenceDomain:
    """Return the persistence domain of the region that a ``pmem`` block device belongs to; none where nobody says."""
    above = os.path.realpath(f"/sys/class/block/{device}/device") if device else "/"
    while above.count("/") > 2:
        try:
            with open(above + "/persistence_domain", encoding="ascii") as file:
                return PersistenceDomain(file.read().strip())
        except ValueError:
            return PersistenceDomain.NONE  # "unknown": nobody promises anything
        except OSError:
            above = os.path.dirname(above)
    return PersistenceDomain.NONE
