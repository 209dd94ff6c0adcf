"""What a region in a file says about itself: a label in its first 2 MiB, as an NVDIMM has one in its label area.

Two slots hold the label by turns. A change writes the older one and syncs it, so that a power failure in between
leaves the newer one whole. A slot is a header (magic, CRC-32 of the rest, sequence number, length) and JSON.
"""

from __future__ import annotations

import os
import struct
import zlib

import msgspec

from hal.interfaces.pmem import NAMESPACE_ALIGNMENT_BYTES, ByteRange, Namespace, without

DATA_OFFSET_BYTES = NAMESPACE_ALIGNMENT_BYTES
"""Where the region's first byte lies in the file: whole huge pages stay whole on a DAX file system."""

_MAGIC = b"HALPMEM1"
_HEADER = struct.Struct("<8sIIQ")
_SLOT_BYTES = 512 << 10
_SLOTS = (0, _SLOT_BYTES)


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """The region's identity (16 hexadecimal digits), its size without the label area, and its namespaces in order.

    ``changes`` grows with every change, so that a plan made before can be told from one made after.
    """

    cookie: str
    size_bytes: int
    namespaces: tuple[Namespace, ...] = ()
    changes: int = 0

    def find(self, name: str) -> Namespace | None:
        """Return the namespace of a name or uuid."""
        return next((found for found in self.namespaces if name in (found.name, found.uuid)), None)

    def free_extents(self) -> tuple[ByteRange, ...]:
        """Return what no namespace covers, in order; all sizes are whole 2 MiB."""
        free: tuple[ByteRange, ...] = (ByteRange(0, self.size_bytes),)
        for namespace in self.namespaces:
            free = without(free, ByteRange(namespace.offset_bytes, namespace.size_bytes))
        return free

    def available_bytes(self) -> int:
        """Return the largest namespace that could be created."""
        return max((extent.length for extent in self.free_extents()), default=0)

    def place(self, size_bytes: int) -> int | None:
        """Return where a new namespace would start (first fit), None if it fits nowhere."""
        return next((extent.offset for extent in self.free_extents() if extent.length >= size_bytes), None)

    def next_name(self) -> str:
        """Return the first name that no namespace has."""
        taken = {namespace.name for namespace in self.namespaces}
        return next(f"namespace0.{number}" for number in range(len(taken) + 1) if f"namespace0.{number}" not in taken)

    def with_namespaces(self, namespaces: tuple[Namespace, ...]) -> Label:
        """Return the label after a change."""
        ordered = tuple(sorted(namespaces, key=lambda namespace: namespace.offset_bytes))
        return msgspec.structs.replace(self, namespaces=ordered, changes=self.changes + 1)


_DECODER = msgspec.json.Decoder(Label)


def read_label(descriptor: int) -> Label | None:
    """Return the newest label of a file, None if it has none that is whole. Raises ``OSError``."""
    found = [slot for slot in (_read_slot(descriptor, offset) for offset in _SLOTS) if slot is not None]
    return max(found, key=lambda slot: slot[0])[1] if found else None


def write_label(descriptor: int, label: Label) -> None:
    """Replace the label durably; the caller is the only one who changes it. Raises ``OSError``."""
    slots = [_read_slot(descriptor, offset) for offset in _SLOTS]
    sequences = [slot[0] if slot is not None else 0 for slot in slots]
    oldest = sequences.index(min(sequences))
    content = msgspec.json.encode(label)
    if len(content) > _SLOT_BYTES - _HEADER.size:
        raise OSError(28, "the label area is full: too many namespaces")
    sequence = max(sequences) + 1
    header = _HEADER.pack(_MAGIC, _checksum(sequence, content), len(content), sequence)
    os.pwrite(descriptor, header + content, _SLOTS[oldest])
    os.fsync(descriptor)


def _read_slot(descriptor: int, offset: int) -> tuple[int, Label] | None:
    header = os.pread(descriptor, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return None
    magic, checksum, length, sequence = _HEADER.unpack(header)
    if magic != _MAGIC or length > _SLOT_BYTES - _HEADER.size:
        return None
    content = os.pread(descriptor, length, offset + _HEADER.size)
    if len(content) != length or checksum != _checksum(sequence, content):
        return None
    try:
        return sequence, _DECODER.decode(content)
    except msgspec.MsgspecError:
        return None


def _checksum(sequence: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(sequence.to_bytes(8, "little")))
