"""What two sides tell each other: addresses and remote keys as bytes, with a version and a checksum.

A checksum guards against bytes that are no key, or were cut or mixed up on their way; the right to reach memory is
the NIC's to check, by its own key and protection domain. ``session`` is a number of the handle that made the bytes.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from hal.interfaces.rnic import Access

SESSION_BYTES = 8
_VERSION = 1
_KEY_MAGIC, _ADDRESS_MAGIC = b"hK", b"hA"
_KEY = struct.Struct("<2sBBIQQ8s")
_ADDRESS = struct.Struct("<2sBBBBHIII16sQI8s")
_SUM = struct.Struct("<I")


class RemoteKey(NamedTuple):
    """A region as its owner told it: bounds, rights, the NIC's key."""

    start: int
    end: int
    access: Access
    key: int
    session: bytes


class Address(NamedTuple):
    """One side's queue pair, and what the other must know of it.

    ``mtu`` is ``ibv_mtu`` (1 is 256 bytes, 5 is 4096); ``pulse`` and ``pulse_key`` name one readable byte, with which
    a peer finds out that everything before has arrived and that this side is alive; ``patience_us`` is how long this
    side's sends wait for a receive.
    """

    link_layer: int
    mtu: int
    lid: int
    queue: int
    sequence: int
    reads: int
    gid: bytes
    pulse: int
    pulse_key: int
    patience_us: int
    session: bytes


def pack_key(key: RemoteKey) -> bytes:
    """Return a remote key's bytes."""
    body = _KEY.pack(_KEY_MAGIC, _VERSION, int(key.access), key.key, key.start, key.end - key.start, key.session)
    return body + _SUM.pack(zlib.crc32(body))


def unpack_key(data: bytes) -> RemoteKey | None:
    """Return the key that bytes are, or None if they are none."""
    body = _checked(data, _KEY)
    if body is None:
        return None
    magic, version, access, key, start, length, session = _KEY.unpack(body)
    if magic != _KEY_MAGIC or version != _VERSION or access & ~0xF:
        return None
    return RemoteKey(start, start + length, Access(access), key, session)


def pack_address(address: Address) -> bytes:
    """Return an address's bytes."""
    body = _ADDRESS.pack(
        _ADDRESS_MAGIC,
        _VERSION,
        address.link_layer,
        address.mtu,
        address.reads,
        address.lid,
        address.queue,
        address.sequence,
        address.patience_us,
        address.gid,
        address.pulse,
        address.pulse_key,
        address.session,
    )
    return body + _SUM.pack(zlib.crc32(body))


def unpack_address(data: bytes) -> Address | None:
    """Return the address that bytes are, or None if they are none, or of another version."""
    body = _checked(data, _ADDRESS)
    if body is None:
        return None
    magic, version, layer, mtu, reads, lid, queue, sequence, patience, gid, pulse, key, session = _ADDRESS.unpack(body)
    if magic != _ADDRESS_MAGIC or version != _VERSION or not 1 <= mtu <= 5 or layer not in (1, 2):
        return None
    return Address(layer, mtu, lid, queue, sequence, reads, gid, pulse, key, patience, session)


def _checked(data: bytes, form: struct.Struct) -> bytes | None:
    data = bytes(data)
    if len(data) != form.size + _SUM.size:
        return None
    body = data[: form.size]
    return body if zlib.crc32(body) == _SUM.unpack(data[form.size :])[0] else None
