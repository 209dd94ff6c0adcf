"""Persistent memory: a region, its namespaces, and mappings whose stores are durable once flushed and drained.

The words and rules are those of libndctl and of the SNIA NVM programming model as libpmem implements it: a store is
durable after a flush of its cache line and a drain; the atomic unit is 8 aligned bytes; stores to different lines
become durable in any order, and a line may be written back at any time without being asked. "Persistent" is a property
of the region, so volatile CXL memory has the same interface with the domain ``none``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import msgspec

from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

NAMESPACE_ALIGNMENT_BYTES = 2 << 20
"""Namespaces start and end on 2 MiB: libndctl's default alignment, one huge page."""

ATOMIC_BYTES = 8
"""What becomes durable as a whole: 8 aligned bytes (Intel SDM, and the SNIA model)."""


class PersistenceDomain(StrEnum):
    """Where a store is safe from a power failure (sysfs ``persistence_domain``)."""

    CPU_CACHE = "cpu_cache"
    MEMORY_CONTROLLER = "memory_controller"
    NONE = "none"


class NamespaceMode(StrEnum):
    """How the kernel offers a namespace. Only ``fsdax`` and ``devdax`` can be mapped."""

    RAW = "raw"
    SECTOR = "sector"
    FSDAX = "fsdax"
    DEVDAX = "devdax"

    @property
    def mappable(self) -> bool:
        """True if programs can load and store its bytes directly."""
        return self in (NamespaceMode.FSDAX, NamespaceMode.DEVDAX)


class ByteRange(msgspec.Struct, frozen=True, order=True):
    """A range of bytes: ``offset`` and ``length``."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """A region as it is now.

    ``line_bytes`` is what a flush covers, ``granule_bytes`` what the media writes and poisons at a time.
    ``available_bytes`` is the largest namespace that could be created.
    """

    name: str
    set_cookie: str
    size_bytes: int
    available_bytes: int
    persistence_domain: PersistenceDomain
    media: str
    line_bytes: int
    granule_bytes: int
    dimms: tuple[str, ...] = ()
    locked: bool = False
    encrypted: bool = False
    read_only: bool = False


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace: ``offset_bytes`` is its place in the region, ``bad_blocks`` are relative to its own start.

    ``sector_bytes`` is the block size of a ``sector`` namespace, 0 for the others.
    """

    name: str
    uuid: str
    mode: NamespaceMode
    size_bytes: int
    offset_bytes: int
    sector_bytes: int = 0
    bad_blocks: tuple[ByteRange, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The first of two steps: what would be created or destroyed, for a person or a policy to look at.

    ``destroys`` says in words what is lost for good. ``token`` ties the plan to the state in which it was made:
    :meth:`NamespacePlans.confirm` refuses it once the region's namespaces have changed.
    """

    action: str
    region: str
    namespace: Namespace
    destroys: tuple[str, ...]
    token: str


@runtime_checkable
class Mapping(Protocol):
    """A namespace in this process's address space. Offsets count from the namespace's start.

    After the lease has ended the verbs raise, but memory that was handed out stays mapped: loads and stores through
    ``buffer`` are plain instructions and ask nobody.
    """

    @property
    def namespace(self) -> Namespace:
        """The namespace as it was when it was mapped."""
        ...

    @property
    def size_bytes(self) -> int:
        """Length of the mapping."""
        ...

    @property
    def read_only(self) -> bool:
        """True if it was mapped for reading only."""
        ...

    @property
    def buffer(self) -> memoryview:
        """The memory itself, format ``B``, not a copy.

        A store through it can be seen by every process at once and is durable after :meth:`persist`. A load from a
        poisoned place kills the process (SIGBUS) on hardware: use :meth:`read` where that may be.
        """
        ...

    def array(self, dtype: DTypeLike = "u1") -> NDArray[np.generic]:
        """Return the same memory as a NumPy array of one dimension; a rest too small for an element is left out."""
        ...

    def flush(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Start writing back the cache lines of a range, with the content they have now (CLWB).

        A later store to the same line is not covered. Raises ``InvalidArgument`` outside the mapping,
        ``AccessDenied`` if it is read-only.
        """
        ...

    def drain(self, *, deadline: Deadline | None = None) -> None:
        """Wait until what this thread has flushed is durable (SFENCE)."""
        ...

    def persist(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Flush a range and drain (``pmem_persist``)."""
        ...

    def memcpy_persist(self, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy bytes in and make them durable (``pmem_memcpy_persist``). Not atomic beyond 8 aligned bytes.

        Raises as :meth:`flush`, and ``UncorrectableError`` if the range holds poison, which must be cleared first.
        """
        ...

    def read(self, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes out. Raises ``UncorrectableError``, naming the first bad byte, rather than return poison."""
        ...

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges, in order (sysfs ``badblocks``)."""
        ...

    def clear_poison(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Replace a range by zeros, durably, and take it from the bad blocks (ND_CMD_CLEAR_ERROR).

        Offset and length must be whole granules, else ``InvalidArgument``. All bytes of the range are lost.
        """
        ...

    def close(self) -> None:
        """Unmap. Idempotent; flushes that were not drained may or may not become durable."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class NamespacePlans(Protocol):
    """Creating and destroying namespaces, each in two steps: plan, look at it, confirm."""

    def plan_create(
        self, mode: NamespaceMode, size_bytes: int, *, sector_bytes: int = 4096, deadline: Deadline | None = None
    ) -> Plan:
        """Plan a namespace of whole 2 MiB; nothing is changed.

        Raises ``InvalidArgument`` for a size that is not, or does not fit into one free extent.
        """
        ...

    def plan_destroy(self, namespace: str, *, deadline: Deadline | None = None) -> Plan:
        """Plan to destroy a namespace with all its bytes; nothing is changed.

        Raises ``DeviceBusy`` while it is mapped, by whomever.
        """
        ...

    def confirm(self, plan: Plan, *, deadline: Deadline | None = None) -> Operation[Namespace]:
        """Carry a plan out; the result is the namespace created or destroyed.

        Fails with ``InvalidArgument`` if the region's namespaces changed since the plan was made or the plan is not
        one of this region's, ``DeviceBusy`` if the namespace was mapped meanwhile, ``AccessDenied`` on a read-only
        region.
        """
        ...


@runtime_checkable
class Namespaces(Protocol):
    """Looking at namespaces and mapping them."""

    def namespaces(self, *, deadline: Deadline | None = None) -> Sequence[Namespace]:
        """Return the namespaces by their place in the region."""
        ...

    def map(self, namespace: str, *, read_only: bool = False, deadline: Deadline | None = None) -> Mapping:
        """Map a namespace by its name or uuid.

        Raises ``InvalidArgument`` if there is none, ``Unsupported`` for ``raw`` and ``sector``, ``AccessDenied`` if
        the region is locked, or read-only and ``read_only`` was not asked for.
        """
        ...

    def deep_flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Push what is durable out of the memory controllers into the media themselves (sysfs ``deep_flush``).

        A drain is enough as long as the platform keeps its promise at a power failure; this is for when it does not.
        ``Unsupported`` where nothing is durable.
        """
        ...

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges of the whole region, offsets from its start."""
        ...


@runtime_checkable
class Pmem(NamespacePlans, Namespaces, Handle, Protocol):
    """An opened region.

    Telemetry has ``temperature_celsius``, ``spares_percent``, ``life_used_percent``, ``dirty_shutdown_count`` and
    ``health_state``, each absent with a reason where the DIMM does not tell (SMART by libndctl, CXL health info).
    """

    def region(self, *, deadline: Deadline | None = None) -> Region:
        """Return the region as it is now."""
        ...


def overlap(ranges: Sequence[ByteRange], offset: int, length: int) -> ByteRange | None:
    """Return the first of some ranges that shares a byte with another, None if none does."""
    end = offset + length
    for candidate in ranges:
        if candidate.offset < end and offset < candidate.end:
            return candidate
    return None


def without(ranges: Sequence[ByteRange], hole: ByteRange) -> tuple[ByteRange, ...]:
    """Return ranges with the bytes of another taken out."""
    left: list[ByteRange] = []
    for part in ranges:
        if part.end <= hole.offset or hole.end <= part.offset:
            left.append(part)
            continue
        if part.offset < hole.offset:
            left.append(ByteRange(part.offset, hole.offset - part.offset))
        if hole.end < part.end:
            left.append(ByteRange(hole.end, part.end - hole.end))
    return tuple(left)


def merged(ranges: Sequence[ByteRange]) -> tuple[ByteRange, ...]:
    """Return the same bytes as ranges in order that neither overlap nor touch."""
    joined: list[ByteRange] = []
    for part in sorted(ranges):
        if not part.length:
            continue
        if joined and part.offset <= joined[-1].end:
            last = joined[-1]
            joined[-1] = ByteRange(last.offset, max(last.end, part.end) - last.offset)
        else:
            joined.append(part)
    return tuple(joined)
