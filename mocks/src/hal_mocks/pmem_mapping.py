"""A mapped namespace of the mock: a zero-copy view of the region's memory, and flush and drain towards its media."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hal.errors import AccessDenied, InvalidArgument, UncorrectableError
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import ByteRange, Namespace, overlap
from hal_mocks.buffers import as_bytes
from hal_mocks.faults import Fault, FaultType
from hal_mocks.pmem_files import zero
from hal_mocks.pmem_region import RegionStore

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

Enter = Callable[[str, Deadline | None], tuple[Fault, ...]]


class _Pending(threading.local):
    """What this thread has flushed and not drained: a drain orders only the flushes of its own processor."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, bytes]] = []


class MockMapping:
    """A namespace in this process. The verbs ask the handle's ``enter`` first, as the handle's own do."""

    def __init__(self, store: RegionStore, namespace: Namespace, epoch: int, enter: Enter, *, read_only: bool) -> None:
        self._store = store
        self._namespace = namespace
        self._enter = enter
        self._read_only = read_only
        self._base = namespace.offset_bytes
        self._length = self._size = namespace.size_bytes
        self._line = store.region.line_bytes
        self._use: int | None = store.use(namespace)
        self._memory = _map(store.memory_path(epoch), self._base, self._size, writable=not read_only)
        media = None if read_only else store.media_path()
        self._media = None if media is None else _map(media, self._base, self._size, writable=True)
        self._pending = _Pending()

    @property
    def namespace(self) -> Namespace:
        """The namespace as it was when it was mapped."""
        return self._namespace

    @property
    def size_bytes(self) -> int:
        """Length of the mapping."""
        return self._length

    @property
    def read_only(self) -> bool:
        """True if it was mapped for reading only."""
        return self._read_only

    @property
    def buffer(self) -> memoryview:
        """The memory itself. On the mock a load from a poisoned place gives stale bytes instead of a signal."""
        return self._memory

    def array(self, dtype: DTypeLike = "u1") -> NDArray[np.generic]:
        """Return the same memory as a NumPy array."""
        import numpy as np

        kind = np.dtype(dtype)
        return np.frombuffer(self._memory, dtype=kind, count=self._length // kind.itemsize)

    def flush(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Remember the lines as they are now; :meth:`drain` makes them durable."""
        self._check_write("flush", offset, length, self._enter("flush", deadline))
        if self._media is not None and length:
            first, end = self._lines(offset, length)
            self._pending.lines.append((first, bytes(self._memory[first:end])))

    def drain(self, *, deadline: Deadline | None = None) -> None:
        """Make durable what this thread has flushed."""
        self._enter("drain", deadline)
        self._drain()

    def persist(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Flush a range and drain."""
        self._check_write("persist", offset, length, self._enter("persist", deadline))
        self._persist(offset, length)

    def memcpy_persist(self, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy bytes in and make them durable."""
        source = as_bytes(data, self._store.device_id, "memcpy_persist")
        length = len(source)
        faults = self._enter("memcpy_persist", deadline)
        self._check_write("memcpy_persist", offset, length, faults)
        if faults:
            self._refuse_poison("memcpy_persist", offset, length, faults)
        self._memory[offset : offset + length] = source
        self._persist(offset, length)

    def read(self, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes out, never poison."""
        faults = self._enter("read", deadline)
        end = offset + length
        if offset < 0 or length < 0 or end > self._size:
            raise self._refused("read", offset, length)
        if faults:
            self._refuse_poison("read", offset, length, faults)
        return bytes(self._memory[offset:end])

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges within the namespace."""
        return within(self._store.poison(self._enter("bad_blocks", deadline)), self._namespace)

    def clear_poison(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Zero whole granules durably and take them from the bad blocks."""
        self._check_write("clear_poison", offset, length, self._enter("clear_poison", deadline))
        granule = self._store.region.granule_bytes
        if offset % granule or length % granule or not length:
            raise InvalidArgument(
                f"offset {offset} and length {length} are not whole granules of {granule} bytes",
                device=self._store.device_id,
                during="clear_poison",
                hint=f"round out to multiples of {granule}",
            )
        self._memory[offset : offset + length] = bytes(length)
        if self._media is not None:
            self._media[offset : offset + length] = bytes(length)
        self._store.clear_poison(ByteRange(self._base + offset, length))

    def close(self) -> None:
        """Unmap; memory that the caller still holds a view of stays until that goes too."""
        self._size = -1  # so that every range is outside
        self._pending.lines.clear()
        if self._use is not None:
            os.close(self._use)
            self._use = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_use", None) is not None:
            self.close()

    def _lines(self, offset: int, length: int) -> tuple[int, int]:
        line = self._line
        return offset // line * line, min(-(-(offset + length) // line) * line, self._size)

    def _drain(self) -> None:
        lines = self._pending.lines
        if self._media is not None and lines:
            for first, content in lines:
                self._media[first : first + len(content)] = content
            lines.clear()

    def _persist(self, offset: int, length: int) -> None:
        self._drain()
        if self._media is not None and length:
            first, end = self._lines(offset, length)
            self._media[first:end] = self._memory[first:end]

    def _check_write(self, step: str, offset: int, length: int, faults: tuple[Fault, ...]) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise self._refused(step, offset, length)
        if self._read_only or (faults and any(fault.type is FaultType.READ_ONLY for fault in faults)):
            raise AccessDenied(
                "read-only",
                device=self._store.device_id,
                during=step,
                hint="map it for writing; if the region itself turned read-only, its DIMMs are worn: save the data",
            )

    def _refuse_poison(self, step: str, offset: int, length: int, faults: tuple[Fault, ...]) -> None:
        hit = overlap(self._store.poison(faults), self._base + offset, length)
        if hit is not None:
            first = max(hit.offset - self._base, offset)
            raise UncorrectableError(
                f"poison at byte {first} of {self._namespace.name}",
                device=self._store.device_id,
                during=step,
                hint="restore the range from a copy after clear_poison(), which zeroes it",
            )

    def _refused(self, step: str, offset: int, length: int) -> InvalidArgument:
        if self._size < 0:
            why, hint = "the mapping is closed", "map the namespace again"
        else:
            why = f"bytes {offset} to {offset + length} are outside of {self._namespace.name} of {self._size} bytes"
            hint = "offsets count from the start of the namespace"
        return InvalidArgument(why, device=self._store.device_id, during=step, hint=hint)


def within(poison: Sequence[ByteRange], namespace: Namespace) -> tuple[ByteRange, ...]:
    """Return the part of a region's bad ranges that lies in a namespace, relative to its start."""
    start, end = namespace.offset_bytes, namespace.offset_bytes + namespace.size_bytes
    found: list[ByteRange] = []
    for bad in poison:
        first, last = max(bad.offset, start), min(bad.end, end)
        if first < last:
            found.append(ByteRange(first - start, last - first))
    return tuple(found)


def wipe(path: Path, namespace: Namespace) -> None:
    """Make a namespace's bytes zero in one of the region's files."""
    zero(path, namespace.offset_bytes, namespace.size_bytes)


def _map(path: Path, offset: int, length: int, *, writable: bool) -> memoryview:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=protection, offset=offset))
    finally:
        os.close(descriptor)
