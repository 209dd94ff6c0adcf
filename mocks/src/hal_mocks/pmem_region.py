"""What a mock region remembers, for every process: namespaces, the files that are its memory, poison, power cycles.

A region is two sparse files. ``memory`` is what all processors see: caches and media together, mapped by every holder.
``media`` is what has reached the persistence domain and is written by flush and drain alone. Only a power failure
tells them apart: see :mod:`hal_mocks.pmem_crash`. A region whose caches are in the domain, or that is volatile, needs
no ``media``. Killing a process loses nothing, because the kernel keeps the pages.

``page`` is a page of 64-bit words that all holders map: word 0 is the epoch (every power failure and every taking-back
begins a new one, and handles of an older one are dead), word 1 counts changes of the record, which lies in two files by
turns: the even and the odd ones. So a change is one store, and a process killed on its way there has changed nothing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hal.errors import DeviceGone
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import (
    NAMESPACE_ALIGNMENT_BYTES,
    ByteRange,
    Namespace,
    NamespaceMode,
    PersistenceDomain,
    Region,
    merged,
    without,
)
from hal_mocks.base import GONE, wait_out
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Dimm, PmemRegion
from hal_mocks.machine import Machine
from hal_mocks.pmem_files import copy_data, create_sparse

_PAGE_BYTES = 64


def region_id(region: PmemRegion) -> str:
    """Return the device's id: the interleave set's cookie."""
    return "pmem-" + region.set_cookie.removeprefix("0x")


def dimm_id(dimm: Dimm) -> str:
    """Return the id of a DIMM as a device of its own."""
    return f"dimm-{dimm.serial}"


class Record(msgspec.Struct, kw_only=True):
    """What is written down."""

    epoch: int = 0
    generation: int = 0
    created: int = 0
    dirty_shutdowns: int = 0
    namespaces: tuple[Namespace, ...] = ()


_DECODER = msgspec.json.Decoder(Record)


def recorded(folder: Path) -> Record | None:
    """Return what is written down in a region's folder, or None as long as nobody has looked at the region."""
    try:
        while True:
            changes = _changes(folder)
            if not changes:
                return None
            content = _record_path(folder, changes).read_bytes()
            if _changes(folder) == changes:  # else it was overtaken, and the file may be half of a newer one
                return _DECODER.decode(content)
    except FileNotFoundError:
        return None


def _changes(folder: Path) -> int:
    with (folder / "page").open("rb") as file:
        return int.from_bytes(file.read(16)[8:], "little")


def _record_path(folder: Path, changes: int) -> Path:
    return folder / ("record-odd.json" if changes % 2 else "record-even.json")


class RegionStore:
    """One region's state in the machine's folder."""

    def __init__(self, machine: Machine, region: PmemRegion) -> None:
        self.machine = machine
        self.region = region
        self.device_id = region_id(region)
        self.domain = PersistenceDomain(region.persistence_domain)
        self.folder = machine.state.device(self.device_id)
        self.page = self._map_page()
        if not self.page[1]:
            with self.locked():
                if not self.page[1]:
                    self.save(Record(namespaces=_initial_namespaces(region)))

    def _map_page(self) -> memoryview:
        descriptor = os.open(self.folder / "page", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < _PAGE_BYTES:
                os.ftruncate(descriptor, _PAGE_BYTES)
            return memoryview(mmap.mmap(descriptor, _PAGE_BYTES)).cast("Q")
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the region's lock among processes."""
        with self.machine.state.locked(f"{self.device_id}.lock"):
            yield

    def load(self) -> Record:
        """Return what is written down."""
        while True:
            changes = self.page[1]
            content = _record_path(self.folder, changes).read_bytes()
            if self.page[1] == changes:  # else it was overtaken, and the file may be half of a newer one
                return _DECODER.decode(content)

    def save(self, record: Record) -> None:
        """Replace the record in one step; call under :meth:`locked`."""
        before = self.load().namespaces if self.page[1] else record.namespaces
        changes = self.page[1] + 1
        _record_path(self.folder, changes).write_bytes(msgspec.json.encode(record))
        self.page[1] = changes
        self.page[0] = record.epoch
        if record.namespaces != before:
            self.machine.changed()

    # -- files --------------------------------------------------------------------------------------------------------

    def memory_path(self, epoch: int) -> Path:
        """Return the file that all processors see in an epoch, made if need be."""
        return create_sparse(self.folder / f"memory-{epoch}", self.region.size_bytes)

    def media_path(self) -> Path | None:
        """Return the file behind the persistence domain, or None where there is no difference."""
        if self.domain is not PersistenceDomain.MEMORY_CONTROLLER:
            return None
        return create_sparse(self.folder / "media", self.region.size_bytes)

    def begin_epoch(self, record: Record, source: Path | None) -> None:
        """Give the region a new memory file with the bytes of ``source`` (None: zeros), and end all open handles.

        A process that still has the old file mapped writes into a file that nobody else can reach.
        """
        old = self.folder / f"memory-{record.epoch}"
        record.epoch += 1
        fresh = self.folder / f"memory-{record.epoch}"
        fresh.unlink(missing_ok=True)  # left by a failure that was itself interrupted
        create_sparse(fresh, self.region.size_bytes)
        if source is not None:
            copy_data(source, fresh)
        self.save(record)
        self.machine.state.touch()
        old.unlink(missing_ok=True)

    # -- who has a namespace mapped -----------------------------------------------------------------------------------

    def use(self, namespace: Namespace) -> int:
        """Return a descriptor that marks the namespace as mapped for as long as it is open."""
        descriptor = os.open(self._use_path(namespace), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def in_use(self, namespace: Namespace) -> bool:
        """True while any process has the namespace mapped."""
        try:
            descriptor = os.open(self._use_path(namespace), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _use_path(self, namespace: Namespace) -> Path:
        return self.folder / f"mapped-{namespace.uuid}"

    # -- poison -------------------------------------------------------------------------------------------------------

    def poison(self, faults: tuple[Fault, ...]) -> tuple[ByteRange, ...]:
        """Return the poisoned granules of the region: what its bad-block faults hit."""
        return merged([self._granules(fault) for fault in faults if fault.type is FaultType.BAD_BLOCK])

    def _granules(self, fault: Fault) -> ByteRange:
        granule = self.region.granule_bytes
        first = fault.offset // granule * granule
        last = -(-(fault.offset + max(fault.length, 1)) // granule) * granule
        return ByteRange(first, min(last, self.region.size_bytes) - first)

    def clear_poison(self, hole: ByteRange) -> None:
        """Take a range away from the bad-block faults that hold now; what is left of them stays."""
        state = self.machine.state
        with state.locked():
            now = self.machine.clock.now()
            kept: list[Fault] = []
            for fault in state.faults():
                ours = fault.device == self.device_id and fault.type is FaultType.BAD_BLOCK and fault.active(now)
                if not ours:
                    kept.append(fault)
                    continue
                kept.extend(
                    msgspec.structs.replace(fault, offset=part.offset, length=part.length)
                    for part in without((self._granules(fault),), hole)
                )
            state.set_faults(tuple(kept))

    # -- namespaces ---------------------------------------------------------------------------------------------------

    def meet_dimms(self, step: str, deadline: Deadline) -> None:
        """Raise ``DeviceGone`` if a DIMM is lost, wait with one that hangs: bytes are interleaved over all of them."""
        for dimm in self.region.dimms:
            for fault in self.machine.faults_of(dimm_id(dimm)):
                if fault.type is FaultType.HANG:
                    wait_out(self.machine, self.device_id, step, deadline)
                if fault.type in GONE:
                    raise DeviceGone(
                        f"{dimm.name}, over which the region is interleaved, is lost",
                        device=self.device_id,
                        during=step,
                        hint="ndctl list -D shows the DIMMs; reseat or replace it",
                    )

    def free_extents(self, record: Record) -> list[ByteRange]:
        """Return what no namespace covers, in whole 2 MiB, in order."""
        free: tuple[ByteRange, ...] = (ByteRange(0, self.region.size_bytes),)
        for namespace in record.namespaces:
            free = without(free, ByteRange(namespace.offset_bytes, namespace.size_bytes))
        aligned: list[ByteRange] = []
        for extent in free:
            start = _round_up(extent.offset)
            length = (extent.end - start) // NAMESPACE_ALIGNMENT_BYTES * NAMESPACE_ALIGNMENT_BYTES
            if length > 0:
                aligned.append(ByteRange(start, length))
        return aligned

    def next_namespace(
        self, record: Record, mode: NamespaceMode, size_bytes: int, sector_bytes: int
    ) -> Namespace | None:
        """Return what a new namespace would be, or None if no free extent is large enough (first fit)."""
        for extent in self.free_extents(record):
            if extent.length >= size_bytes:
                taken = {namespace.name for namespace in record.namespaces}
                index = next(n for n in range(len(taken) + 1) if self._name(n) not in taken)
                return Namespace(
                    name=self._name(index),
                    # The same state gives the same uuid, so that a plan can be repeated and compared.
                    uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.device_id}/{record.created}")),
                    mode=mode,
                    size_bytes=size_bytes,
                    offset_bytes=extent.offset,
                    sector_bytes=sector_bytes if mode is NamespaceMode.SECTOR else 0,
                )
        return None

    def _name(self, index: int) -> str:
        digits = "".join(filter(str.isdigit, self.region.name)) or "0"
        return f"namespace{digits}.{index}"


def region_facts(store: RegionStore, faults: tuple[Fault, ...]) -> Region:
    """Return the region as it is now."""
    region = store.region
    free = store.free_extents(store.load())
    return Region(
        name=region.name,
        set_cookie=region.set_cookie,
        size_bytes=region.size_bytes,
        available_bytes=max((extent.length for extent in free), default=0),
        persistence_domain=store.domain,
        media=region.media,
        line_bytes=region.line_bytes,
        granule_bytes=region.granule_bytes,
        dimms=tuple(dimm.serial for dimm in region.dimms),
        locked=any(dimm.locked for dimm in region.dimms),
        encrypted=any(dimm.encrypted for dimm in region.dimms),
        read_only=any(fault.type is FaultType.READ_ONLY for fault in faults),
    )


def _round_up(offset: int) -> int:
    return -(-offset // NAMESPACE_ALIGNMENT_BYTES) * NAMESPACE_ALIGNMENT_BYTES


def _initial_namespaces(region: PmemRegion) -> tuple[Namespace, ...]:
    found: list[Namespace] = []
    offset = 0
    for given in region.namespaces:
        found.append(
            Namespace(
                name=given.name,
                uuid=given.uuid,
                mode=NamespaceMode(given.mode),
                size_bytes=min(given.size_bytes, region.size_bytes - offset),
                offset_bytes=offset,
                sector_bytes=4096 if given.mode == NamespaceMode.SECTOR else 0,
            )
        )
        offset = _round_up(offset + given.size_bytes)
    return tuple(found)
