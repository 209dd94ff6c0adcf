"""Persistent memory that watches its stores: a :class:`hal.interfaces.pmem.Mapping` to try a structure on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from hal.errors import AccessDenied, InvalidArgument
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import ByteRange, Namespace, NamespaceMode, PersistenceDomain
from hal_mocks.crash.stores import LINE_BYTES, Lines, Store, pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

_DEVICE = "crash-memory"
_OURS = str(Path(__file__).parent)


class WatchedBuffer:
    """What :attr:`CrashMemory.buffer` gives: reads and assigns like a ``memoryview`` of format ``B``, ``H``, ``I`` or
    ``Q``, and tells the memory of every assignment. It is no buffer for C code: use :meth:`CrashMemory.array` for that.
    """

    __slots__ = ("_item", "_memory")

    def __init__(self, memory: CrashMemory, item_bytes: int = 1) -> None:
        self._memory = memory
        self._item = item_bytes

    def __len__(self) -> int:
        return self._memory.size_bytes // self._item

    def cast(self, format: str) -> WatchedBuffer:
        """Return the same memory as unsigned words: ``H``, ``I`` or ``Q``; an assignment of one is one store."""
        sizes = {"B": 1, "H": 2, "I": 4, "Q": 8}
        if format not in sizes:
            raise InvalidArgument(
                f"format {format!r} cannot be watched", device=_DEVICE, during="cast", hint="B, H, I or Q; or array()"
            )
        return WatchedBuffer(self._memory, sizes[format])

    def _range(self, key: int | slice) -> tuple[int, int]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise InvalidArgument(
                    "only slices of step 1 can be watched", device=_DEVICE, during="buffer", hint="array()"
                )
            return start * self._item, max(0, stop - start) * self._item
        index = key + len(self) if key < 0 else key
        if not 0 <= index < len(self):
            raise IndexError(f"{key} of {len(self)}")
        return index * self._item, self._item

    def __getitem__(self, key: int | slice) -> Any:
        offset, length = self._range(key)
        data = self._memory.load(offset, length)
        if isinstance(key, slice):
            view = memoryview(data)
            return view if self._item == 1 else view.cast("H" if self._item == 2 else "I" if self._item == 4 else "Q")
        return int.from_bytes(data, sys.byteorder)

    def __setitem__(self, key: int | slice, value: Any) -> None:
        offset, length = self._range(key)
        if isinstance(key, slice):
            data = bytes(memoryview(value).cast("B"))
            if len(data) != length:
                raise ValueError(f"{len(data)} bytes do not fit a slice of {length}")
        else:
            data = int(value).to_bytes(self._item, sys.byteorder)
        self._memory.store(offset, data)


class CrashMemory:
    """Memory whose every store, flush and drain is recorded, as one namespace mapped by one process.

    ``on_moment`` is called before whatever shrinks what may be lost (a drain, a promise): :func:`explore` looks at the
    images there. Stores through :meth:`array` are found by comparing at the next verb. The domain decides what a power
    failure takes: what was not drained (``memory_controller``), nothing (``cpu_cache``), everything (``none``).
    """

    read_only = False

    def __init__(
        self,
        size_bytes: int = 0,
        *,
        image: Buffer | None = None,
        domain: PersistenceDomain = PersistenceDomain.MEMORY_CONTROLLER,
        line_bytes: int = LINE_BYTES,
        on_moment: Callable[[CrashMemory, str], None] | None = None,
    ) -> None:
        if (size_bytes <= 0) == (image is None):
            raise InvalidArgument("give a size or an image", device=_DEVICE, during="create", hint="CrashMemory(4096)")
        self.durable = bytearray(size_bytes) if image is None else bytearray(image)
        self.seen = bytearray(self.durable)
        self.lines = Lines(line_bytes)
        self.domain = domain
        self.promises: tuple[object, ...] = ()
        self._raw = bytearray(self.durable)
        self._arrays = False
        self._count = 0
        self._moment = on_moment
        self._closed = False
        self.namespace = Namespace(
            name=_DEVICE, uuid=_DEVICE, mode=NamespaceMode.DEVDAX, size_bytes=len(self.durable), offset_bytes=0
        )

    @property
    def size_bytes(self) -> int:
        """Length of the memory."""
        return len(self.durable)

    @property
    def buffer(self) -> Any:
        """The memory, watched; assign to it as to a ``memoryview``."""
        return WatchedBuffer(self)

    def array(self, dtype: DTypeLike = "u1") -> NDArray[np.generic]:
        """Return the memory as a NumPy array. What is stored through it is found at the next verb, its order lost."""
        import numpy as np

        self._arrays = True
        kind = np.dtype(dtype)
        whole: NDArray[np.generic] = np.frombuffer(self._raw, dtype=kind, count=self.size_bytes // kind.itemsize)
        return whole

    def load(self, offset: int, length: int) -> bytes:
        """Return bytes as the processors see them."""
        self._inside("load", offset, length)
        return bytes(self._raw[offset : offset + length])

    def store(self, offset: int, data: bytes) -> None:
        """Store bytes, watched: each aligned word of 8 bytes is a store of its own, in order."""
        self._inside("store", offset, len(data))
        self._notice()
        where = _caller()
        for at, piece in pieces(offset, data):
            self._record([(at, piece)], where)
            self._raw[at : at + len(piece)] = piece
            if self.domain is PersistenceDomain.CPU_CACHE:
                self._tell(f"after a store, {where}")  # what is visible is durable: each moment is an image

    def flush(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Ask for the write-back of a range's lines as they are now."""
        self._inside("flush", offset, length)
        self._notice()
        self.lines.flush(threading.get_ident(), offset, length)

    def drain(self, *, deadline: Deadline | None = None) -> None:
        """Wait for this thread's flushes."""
        self._notice()
        self._tell(f"before a drain, {_caller()}")
        for store in self.lines.drain(threading.get_ident()):
            self.durable[store.offset : store.offset + len(store.data)] = store.data

    def persist(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Flush a range and drain."""
        self.flush(offset, length)
        self.drain()

    def memcpy_persist(self, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Store bytes, flush them and drain."""
        plain = bytes(memoryview(data).cast("B"))
        self.store(offset, plain)
        self.persist(offset, len(plain))

    def read(self, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes out."""
        return self.load(offset, length)

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return nothing: this memory has no poison."""
        return ()

    def clear_poison(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Replace a range by zeros, durably."""
        self.memcpy_persist(offset, bytes(length))

    def promise(self, fact: object) -> None:
        """Tell the examination what the program has promised to its user by now (an append that returned): images from
        here on are checked with it.
        """
        self._notice()
        self._tell(f"before the promise {fact!r}")
        self.promises = (*self.promises, fact)

    def image(self, kept: Sequence[Store]) -> bytes:
        """Return the durable bytes after a power failure that kept these stores of those not drained."""
        image = bytearray(self.durable)
        for store in sorted(kept, key=lambda each: each.number):
            image[store.offset : store.offset + len(store.data)] = store.data
        return bytes(image)

    def close(self) -> None:
        """Unmap; a power failure may still take what was not drained."""
        if not self._closed:
            self._notice()
            self._tell("at the end")
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, moment: str) -> None:
        if self._moment is not None:
            self._moment(self, moment)

    def _record(self, batch: Sequence[tuple[int, bytes]], where: str) -> None:
        stores = []
        for offset, data in batch:
            self._count += 1
            stores.append(Store(self._count, offset, data, where))
            self.seen[offset : offset + len(data)] = data
        if self.domain is PersistenceDomain.CPU_CACHE:
            for store in stores:
                self.durable[store.offset : store.offset + len(store.data)] = store.data
        elif self.domain is PersistenceDomain.MEMORY_CONTROLLER:
            self.lines.add(stores)

    def _notice(self) -> None:
        """Find what was stored unwatched since the last look."""
        if not self._arrays or self._raw == self.seen:
            return
        import numpy as np

        whole = len(self._raw) // 8 * 8
        changed = np.flatnonzero(
            np.frombuffer(self._raw, "u8", whole // 8) != np.frombuffer(self.seen, "u8", whole // 8)
        )
        batch = [(int(word) * 8, bytes(self._raw[int(word) * 8 : int(word) * 8 + 8])) for word in changed]
        if self._raw[whole:] != self.seen[whole:]:
            batch.append((whole, bytes(self._raw[whole:])))
        self._record(batch, f"through array(), before {_caller()}")

    def _inside(self, step: str, offset: int, length: int) -> None:
        if self._closed:
            raise InvalidArgument("the memory is closed", device=_DEVICE, during=step, hint="map it again")
        if self.read_only and step in ("store", "flush"):
            raise AccessDenied("mapped read-only", device=_DEVICE, during=step, hint="map it for writing")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidArgument(
                f"[{offset}, {offset + length}) is not within the {self.size_bytes} bytes",
                device=_DEVICE,
                during=step,
                hint="offsets count from the mapping's start",
            )


def _caller() -> str:
    """Return the lines of the program that asked, the nearest first, three at most."""
    frame: FrameType | None = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < 3:
        code = frame.f_code
        ours = code.co_filename.startswith(_OURS)
        if ours and found:
            break  # what called the program is the examination itself
        if not ours:
            found.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return " < ".join(found)
