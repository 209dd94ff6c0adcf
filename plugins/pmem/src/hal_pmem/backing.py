"""What an opened region is made of: a region of the kernel's, or a file. The handle knows no difference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping as Mapped
from collections.abc import Sequence
from typing import Protocol

import msgspec

from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import ByteRange, Namespace, NamespaceMode, Region
from hal.model.attributes import Attribute
from hal_pmem.memory import Memory


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace mapped: its memory, and where its bytes are for reading and clearing without touching the mapping.

    ``descriptor`` is open on ``path``; the first byte is at ``base_bytes`` of it, and at ``region_bytes`` of the
    region. ``badblocks`` is the list of its own device node, if that has one. ``readable`` is False for device DAX,
    which has no read(2). ``granule_bytes`` is what can be cleared at a time.
    """

    memory: Memory
    path: str
    descriptor: int
    base_bytes: int
    size_bytes: int
    granule_bytes: int
    readable: bool
    read_only: bool
    region_bytes: int = 0
    badblocks: str = ""


class Backing(Protocol):
    """The verbs behind :class:`hal_pmem.handle.OpenedRegion`; all raise :mod:`hal.errors` naming ``step``."""

    @property
    def id(self) -> str:
        """The device's id."""
        ...

    def region(self) -> Region:
        """Return the region as it is now."""
        ...

    def namespaces(self) -> tuple[Namespace, ...]:
        """Return the namespaces by their place."""
        ...

    def state(self) -> str:
        """Return a text that differs whenever the namespaces do, also if they came back to what they were."""
        ...

    def attach(self, namespace: Namespace, *, read_only: bool) -> Attachment:
        """Map a namespace and mark it as used."""
        ...

    def user_of(self, namespace: Namespace) -> str:
        """Return who uses a namespace, in words; "" if nobody does."""
        ...

    def draft(self, mode: NamespaceMode, size_bytes: int, sector_bytes: int) -> Namespace:
        """Return what a new namespace would be; raise ``InvalidArgument`` if there is no place for it."""
        ...

    def create(self, draft: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Create a namespace if the state is still ``state``."""
        ...

    def destroy(self, namespace: Namespace, state: str, deadline: Deadline) -> Namespace:
        """Destroy a namespace if the state is still ``state`` and nobody uses it."""
        ...

    def bad_blocks(self) -> tuple[ByteRange, ...]:
        """Return the poisoned ranges of the region."""
        ...

    def bad_blocks_of(self, attachment: Attachment) -> tuple[ByteRange, ...]:
        """Return the poisoned ranges of a mapped namespace, from its start."""
        ...

    def clear(self, attachment: Attachment, offset: int, length: int) -> None:
        """Replace whole granules by zeros, durably."""
        ...

    def deep_flush(self, deadline: Deadline) -> None:
        """Push everything into the media."""
        ...

    def telemetry(self, deadline: Deadline) -> Mapped[str, Attribute]:
        """Return what can be measured."""
        ...


def digest(action: str, device: str, namespace: Namespace, state: str) -> str:
    """Return the token that ties a plan to what it does and to the state in which it was made."""
    content = msgspec.json.encode((action, device, namespace, state))
    return hashlib.sha256(content).hexdigest()[:32]


def within(bad: Sequence[ByteRange], start: int, length: int) -> tuple[ByteRange, ...]:
    """Return the part of some ranges that lies in another, relative to its start."""
    end = start + length
    return tuple(
        ByteRange(max(part.offset, start) - start, min(part.end, end) - max(part.offset, start))
        for part in bad
        if part.offset < end and start < part.end
    )
