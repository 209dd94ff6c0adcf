"""A mapped namespace; see :class:`hal.interfaces.pmem.Mapping` for what each verb must do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeadlineExceeded, InvalidArgument
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import ByteRange, Namespace
from hal_pmem.backing import Attachment, Backing
from hal_pmem.memory import Persistence
from hal_pmem.poison import copy_by_read, copy_by_write, refuse_poison

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer


class _RangeVerb(Protocol):
    def __call__(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None: ...


class PmemMapping:
    """A namespace in this process. ``persistence`` says what a persisted store survives.

    ``flush`` and ``persist`` are closures over what they need: they are the data path, and a look-up of an attribute
    costs as much as writing a cache line back.
    """

    flush: _RangeVerb
    """Start writing back the cache lines of a range, as they are now."""
    persist: _RangeVerb
    """Flush a range and wait until it is durable, as far as ``persistence`` says."""

    def __init__(self, backing: Backing, namespace: Namespace, attachment: Attachment, guard: Guard) -> None:
        self._backing = backing
        self._namespace = namespace
        self._attachment: Attachment | None = attachment
        self._check = guard.check
        self._length = self._size = attachment.size_bytes
        self._read_only = attachment.read_only
        self._persistence = attachment.memory.persistence
        self._why_not = "the mapping is closed"
        self._compile(attachment)

    def _compile(self, attachment: Attachment) -> None:
        check, refuse, memory = self._check, self._refuse, attachment.memory
        base, library_flush, library_persist = memory.address, memory.flush, memory.persist
        limit = -1 if self._read_only else self._size

        def flush(offset: int, length: int, *, deadline: Deadline | None = None) -> None:
            check()
            if deadline is not None or offset < 0 or length < 0 or offset + length > limit:
                refuse("flush", offset, length, deadline, store=True)
            library_flush(base + offset, length)

        def persist(offset: int, length: int, *, deadline: Deadline | None = None) -> None:
            check()
            if deadline is not None or offset < 0 or length < 0 or offset + length > limit:
                refuse("persist", offset, length, deadline, store=True)
            library_persist(base + offset, length)

        def shut() -> None:
            nonlocal limit, library_flush, library_persist
            limit = -1
            library_flush = library_persist = _unmapped  # a verb that somebody kept must not keep the memory

        self.flush, self.persist, self._shut = flush, persist, shut

    @property
    def namespace(self) -> Namespace:
        """The namespace as it was when it was mapped."""
        return self._namespace

    @property
    def size_bytes(self) -> int:
        """Length of the mapping: the namespace without what the kernel keeps for itself in it."""
        return self._length

    @property
    def read_only(self) -> bool:
        """True if it was mapped for reading only."""
        return self._read_only

    @property
    def persistence(self) -> Persistence:
        """What a persisted store survives here."""
        return self._persistence

    @property
    def is_open(self) -> bool:
        """True until it was closed."""
        return self._attachment is not None

    @property
    def buffer(self) -> memoryview:
        """The memory itself. A load from poison ends the process; :meth:`read` says so instead."""
        return self._enter("buffer", None).memory.view[:]

    def array(self, dtype: DTypeLike = "u1") -> NDArray[np.generic]:
        """Return the same memory as an array."""
        import numpy as np

        kind = np.dtype(dtype)
        view = self._enter("array", None).memory.view[:]
        whole: NDArray[np.generic] = np.frombuffer(view, dtype=kind, count=self._length // kind.itemsize)
        return whole

    def drain(self, *, deadline: Deadline | None = None) -> None:
        """Wait until what this thread has flushed is durable."""
        self._enter("drain", deadline).memory.drain()

    def memcpy_persist(self, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy bytes in and make them durable. Not atomic beyond 8 aligned bytes."""
        source = _as_bytes(data, self._backing.id)
        attachment = self._enter("memcpy_persist", deadline)
        length = source.nbytes
        self._refuse("memcpy_persist", offset, length, None, store=True)
        if not length:
            return
        bad = self._backing.bad_blocks_of(attachment)
        if bad:
            self._refuse_poison("memcpy_persist", bad, offset, length)
        attachment.memory.copy_persist(attachment.memory.address + offset, source)

    def read(self, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes out by a way on which poison is an error and no signal."""
        attachment = self._enter("read", deadline)
        self._refuse("read", offset, length, None)
        bad = self._backing.bad_blocks_of(attachment)
        if bad:
            self._refuse_poison("read", bad, offset, length)
        device, name = self._backing.id, self._namespace.name
        if attachment.readable:
            return copy_by_read(attachment.descriptor, attachment.base_bytes, offset, length, device=device, name=name)
        return copy_by_write(attachment.memory.view, offset, length, device=device, name=name)

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges that the kernel lists within the namespace."""
        return self._backing.bad_blocks_of(self._enter("bad_blocks", deadline))

    def clear_poison(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Replace whole granules by zeros, durably; raises ``HardwareFault`` where the kernel could not clear them."""
        attachment = self._enter("clear_poison", deadline)
        self._refuse("clear_poison", offset, length, None, store=True)
        granule = attachment.granule_bytes
        if offset % granule or length % granule:
            raise InvalidArgument(
                f"bytes {offset} to {offset + length} are no whole granules of {granule}",
                device=self._backing.id,
                during="clear_poison",
                hint=f"clear whole multiples of {granule} bytes",
            )
        if length:
            self._backing.clear(attachment, offset, length)

    def close(self) -> None:
        """Unmap; memory that was handed out stays until its last holder lets go. Idempotent."""
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            self._shut()
            self._size = -1
            attachment.memory.release()
            os.close(attachment.descriptor)

    def abandon(self) -> None:
        """Let go in a forked child, which shares the parent's lock and must not use its mapping."""
        self._why_not = "the mapping belongs to the process that was forked"
        self.close()

    def _enter(self, step: str, deadline: Deadline | None) -> Attachment:
        self._check()
        if deadline is not None:
            self._in_time(step, deadline)
        attachment = self._attachment
        if attachment is None:
            raise InvalidArgument(
                self._why_not, device=self._backing.id, during=step, hint="open the device and map the namespace again"
            )
        return attachment

    def _refuse(self, step: str, offset: int, length: int, deadline: Deadline | None, *, store: bool = False) -> None:
        """Raise what speaks against a verb on a range, if anything does."""
        if deadline is not None:
            self._in_time(step, deadline)
        if self._attachment is None:
            self._enter(step, None)
        if offset < 0 or length < 0 or offset + length > self._length:
            raise InvalidArgument(
                f"bytes {offset} to {offset + length} are outside of {self._namespace.name} of {self._length} bytes",
                device=self._backing.id,
                during=step,
                hint="offsets count from the start of the namespace",
            )
        if store and self._read_only:
            raise AccessDenied(
                "mapped for reading only", device=self._backing.id, during=step, hint="map it with read_only=False"
            )

    def _in_time(self, step: str, deadline: Deadline) -> None:
        if deadline.expired:
            raise DeadlineExceeded(
                "the deadline had passed before it began: nothing was done",
                device=self._backing.id,
                during=step,
                hint="give a later deadline",
            )

    def _refuse_poison(self, step: str, bad: Sequence[ByteRange], offset: int, length: int) -> None:
        refuse_poison(bad, offset, length, device=self._backing.id, step=step, name=self._namespace.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unmapped(address: int, length: int) -> None:
    """Stand where the library's calls stood; nothing gets here, since every range is refused before."""


def _as_bytes(data: Any, device: str) -> memoryview:
    """Return a contiguous buffer as bytes, without a copy."""
    try:
        view = memoryview(data)
        if view.format == "O" or not view.c_contiguous:
            raise TypeError("not contiguous bytes")
        return view if view.format == "B" and view.ndim == 1 else view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"not a contiguous buffer of bytes: {error}",
            device=device,
            during="memcpy_persist",
            hint="bytes, or numpy.ascontiguousarray(array).view('u1')",
        ) from None
