"""Atomics that the owner of the memory carries out: what a NIC of software does where UCX does not.

With ``UCP_ERR_HANDLING_MODE_PEER``, without which a dead peer is silence, UCX has no fetching atomics over TCP. So
there an atomic is a control message, done by the thread that makes progress on the owner's side, one after another.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

from hal.interfaces.rnic import ATOMIC_BYTES, Access
from hal_rdma.ucx.declarations import SEQ_CST
from hal_rdma.ucx.library import Library
from hal_rdma.ucx.region import UcxRegion

ADD, SWAP = 1, 2

_CHANGE = struct.Struct("<BQQQQ")
_WORD_MASK = (1 << 64) - 1


class Change(NamedTuple):
    """An atomic on one word: the verb, the region's number, the address as peers say it, and the operands."""

    verb: int
    region: int
    address: int
    first: int
    second: int

    def encode(self) -> bytes:
        """Return it as bytes."""
        return _CHANGE.pack(*self)


def decode_change(told: bytes) -> Change | None:
    """Return what the bytes say, None if they are no change."""
    return Change(*_CHANGE.unpack(told)) if len(told) == _CHANGE.size else None


class Changer:
    """Carries out changes on the regions of one opened NIC."""

    def __init__(self, library: Library, regions: Mapping[int, UcxRegion]) -> None:
        self._library = library
        self._regions = regions
        self._lock = Lock()

    def apply(self, change: Change) -> int | None:
        """Return what was there before, or None if region, bounds, right or alignment forbid it."""
        region = self._regions.get(change.region)
        if region is None:
            return None
        offset = change.address - region.address
        inside = 0 <= offset <= region.length_bytes - ATOMIC_BYTES
        if not inside or change.address % ATOMIC_BYTES or not region.access & Access.REMOTE_ATOMIC:
            return None
        atomics = self._library.atomics
        if atomics is None:
            return self._apply_alone(region, offset, change)
        if change.verb == ADD:
            return int(atomics.fetch_add(change.address, change.first, SEQ_CST))
        word = self._library.ffi.new("uint64_t*", change.first)
        atomics.compare_exchange(change.address, word, change.second, SEQ_CST, SEQ_CST)
        return int(word[0])

    def _apply_alone(self, region: UcxRegion, offset: int, change: Change) -> int:
        """Without libatomic: nobody else changes this memory but through here."""
        with self._lock:
            word = region.view[offset : offset + ATOMIC_BYTES].cast("Q")
            before: int = word[0]
            if change.verb == ADD:
                word[0] = (before + change.first) & _WORD_MASK
            elif before == change.first:
                word[0] = change.second
            return before
