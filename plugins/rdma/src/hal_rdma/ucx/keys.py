"""What crosses between processes as bytes: the address of an endpoint, and the remote key of a region.

Both are ours, with UCX's own bytes inside: UCX believes whatever it is given, and a wrong key would be a write to a
wrong address. A key says which opened NIC made it (16 random bytes, drawn at every opening), which region, its bounds
and rights, and ends in a keyed checksum. The secret of the checksum travels in the address, so whoever is connected,
and nobody else, can tell a true key from a forged one before anything crosses.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import NamedTuple

import msgspec

_KEY = struct.Struct("<4s16sQQQI")
_KEY_MAGIC = b"hUK1"
_ADDRESS_MAGIC = b"hUA1"
_SEAL_BYTES = 16
SECRET_BYTES = 32


class Key(NamedTuple):
    """A remote key, opened: who made it, which region, from where, how long, what is allowed, and UCX's own key."""

    owner: bytes
    region: int
    address: int
    length: int
    access: int
    packed: bytes


def seal_key(key: Key, secret: bytes) -> bytes:
    """Return a key as the bytes that a peer is given."""
    head = _KEY.pack(_KEY_MAGIC, key.owner, key.region, key.address, key.length, key.access)
    told = head + key.packed
    return told + _seal(told, secret)


def open_key(sealed: bytes, owner: bytes, secret: bytes) -> Key | None:
    """Return what a key says, or None if ``owner`` did not make it: forged, cut, changed, or somebody else's."""
    if len(sealed) < _KEY.size + _SEAL_BYTES:
        return None
    told, seal = sealed[:-_SEAL_BYTES], sealed[-_SEAL_BYTES:]
    if not hmac.compare_digest(_seal(told, secret), seal):
        return None
    magic, maker, region, address, length, access = _KEY.unpack_from(told)
    if magic != _KEY_MAGIC or maker != owner:
        return None
    return Key(maker, region, address, length, access, bytes(told[_KEY.size :]))


def _seal(told: bytes, secret: bytes) -> bytes:
    return hashlib.blake2s(told, key=secret, digest_size=_SEAL_BYTES).digest()


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where an endpoint is.

    ``family`` is ``shared memory`` or what else carries the bytes; ``version`` UCX's, since two versions need not
    understand each other. ``boot``, ``namespace``, ``pid`` and ``started`` name the process: whether it lives can be
    watched by those who share them. ``owner`` and ``secret`` belong to the opened NIC, ``token`` to this endpoint: a
    message without it is dropped.
    """

    family: str
    version: str
    boot: str
    namespace: int
    pid: int
    started: int
    owner: bytes
    secret: bytes
    token: int
    worker: bytes


def encode_address(address: Address) -> bytes:
    """Return an address as bytes."""
    told = _ADDRESS_MAGIC + msgspec.msgpack.encode(address)
    return told + hashlib.blake2s(told, digest_size=_SEAL_BYTES).digest()


def decode_address(told: bytes) -> Address | None:
    """Return an address, or None for bytes that are none."""
    body, check = told[:-_SEAL_BYTES], told[-_SEAL_BYTES:]
    if not body.startswith(_ADDRESS_MAGIC) or hashlib.blake2s(body, digest_size=_SEAL_BYTES).digest() != check:
        return None
    try:
        return msgspec.msgpack.decode(body[len(_ADDRESS_MAGIC) :], type=Address)
    except msgspec.DecodeError:
        return None


class Process(NamedTuple):
    """What tells one process from all others: the boot, its PID name space, its number, and when it started."""

    boot: str
    namespace: int
    pid: int
    started: int


def this_process() -> Process:
    """Return this process."""
    pid = os.getpid()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
        return Process(boot.read().strip(), os.stat("/proc/self/ns/pid").st_ino, pid, started_at(pid) or 0)


def started_at(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (``proc(5)``: field 22), None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
