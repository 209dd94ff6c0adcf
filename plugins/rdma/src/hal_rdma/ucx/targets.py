"""Memory of the peer's that this side may reach: a key once it has been opened, asked about and unpacked.

Where the peer's memory can be mapped here (``ucp_rkey_ptr``: shared memory that UCX allocated) a put is a copy, and an
atomic is the processor's own. Everywhere else it is UCX's work.
"""

from __future__ import annotations

import platform
from typing import Any

from hal.interfaces.rnic import Access
from hal_rdma.ucx import declarations as c
from hal_rdma.ucx.keys import Key
from hal_rdma.ucx.library import Library

ORDERED = platform.machine() in ("x86_64", "AMD64", "i686")
"""These processors let nobody see two stores in another order than they were made."""


class Target:
    """One region of the peer's. ``view`` is its memory if it is mapped here, else None."""

    __slots__ = ("key", "pointer", "rkey", "view")

    def __init__(self, key: Key, rkey: Any, pointer: Any, library: Library) -> None:
        self.key = key
        self.rkey = rkey
        self.view: memoryview | None = None
        self.pointer = 0
        if pointer is not None:
            self.view = memoryview(library.ffi.buffer(pointer, key.length)).cast("B")
            self.pointer = int(library.ffi.cast("uintptr_t", pointer))

    def allows(self, right: Access, address: int, length: int) -> bool:
        """True if these bytes are inside and the right was given."""
        offset = address - self.key.address
        return bool(self.key.access & right) and offset >= 0 and offset + length <= self.key.length


def unpack(key: Key, ep: Any, library: Library) -> tuple[int, Target | None]:
    """Let UCX unpack a key, and map the memory if it can be; UCX's status and the target."""
    ffi, ucp = library.ffi, library.ucp
    rkey, pointer = ffi.new("ucp_rkey_h*"), ffi.new("void**")
    packed = ffi.from_buffer(key.packed)
    status: int = ucp.ucp_ep_rkey_unpack(ep, packed, rkey)
    if status != c.OK:
        return status, None
    # A processor that reorders stores needs a barrier at every flush, which libatomic has.
    usable = ORDERED or library.atomics is not None
    mapped = usable and ucp.ucp_rkey_ptr(rkey[0], key.address, pointer) == c.OK and pointer[0] != ffi.NULL
    return status, Target(key, rkey[0], pointer[0] if mapped else None, library)


class Targets:
    """The targets of one connection by the bytes of their key.

    ``writes``, ``reads`` and ``words`` are for the verbs' short way: what is in there is mapped and allowed. The first
    two hold first address, length and view; the last the first and last address of a word, and what to add to one to
    find it here. A key that dies is taken out of all of them, and its view is released, so that a copy that is about to
    begin fails instead.
    """

    def __init__(self) -> None:
        self.all: dict[bytes, Target] = {}
        self.writes: dict[bytes, tuple[int, int, memoryview]] = {}
        self.reads: dict[bytes, tuple[int, int, memoryview]] = {}
        self.words: dict[bytes, tuple[int, int, int]] = {}
        self.dead: set[int] = set()
        self._retired: list[Target] = []

    def add(self, sealed: bytes, target: Target, *, atomics: bool) -> None:
        """Keep a target under its key."""
        key = target.key
        self.all[sealed] = target
        if target.view is None:
            return
        if key.access & Access.REMOTE_WRITE:
            self.writes[sealed] = (key.address, key.length, target.view)
        if key.access & Access.REMOTE_READ:
            self.reads[sealed] = (key.address, key.length, target.view)
        if key.access & Access.REMOTE_ATOMIC and atomics:
            self.words[sealed] = (key.address, key.address + key.length - 8, target.pointer - key.address)

    def forget(self, number: int) -> bool:
        """Put a region's keys away for good; True if one was UCX's work, which may be under way."""
        self.dead.add(number)
        dead = [sealed for sealed, target in self.all.items() if target.key.region == number]
        return sum([self._retire(sealed) for sealed in dead]) > 0

    def clear(self) -> None:
        """Put everything away."""
        for sealed in tuple(self.all):
            self._retire(sealed)

    def _retire(self, sealed: bytes) -> bool:
        for quick in (self.writes, self.reads, self.words):
            quick.pop(sealed, None)
        target = self.all.pop(sealed)
        self._retired.append(target)
        if target.view is not None:
            target.view.release()
        return target.view is None

    def orphan(self) -> None:
        """Empty the short ways and touch nothing else."""
        for quick in (self.writes, self.reads, self.words):
            quick.clear()

    def destroy(self, library: Library) -> None:
        """Let UCX forget what was put away; its requests have ended, and no other thread uses the connection."""
        self.clear()
        retired, self._retired = self._retired, []
        for target in retired:
            library.ucp.ucp_rkey_destroy(target.rkey)
