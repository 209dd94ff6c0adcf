"""Registered memory, and who may reach it."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Self
from weakref import finalize

from hal.errors import InvalidArgument
from hal.interfaces.rnic import Access
from hal_rdma.ucx.context import Context, Mapped
from hal_rdma.ucx.keys import Key, seal_key

if TYPE_CHECKING:
    from hal_rdma.ucx.link import Link
    from hal_rdma.ucx.transport import UcxTransport

_REVOKING_SECONDS = 1.0
"""How long a peer has to put a closed region's key away before its connection is cut."""


class UcxRegion:
    """A region; see :class:`hal.interfaces.rnic.Region`.

    Memory of UCX's stays mapped, out of every peer's reach, as long as somebody holds a view of it.
    """

    def __init__(self, transport: UcxTransport, number: int, view: memoryview, mapped: Mapped, access: Access) -> None:
        self._transport = transport
        self.number = number
        self._view = view
        self._mapped = mapped
        self._access = access
        self._length = view.nbytes
        self._lock = Lock()
        self._links: set[Link] = set()
        self._closed = False
        key = Key(transport.owner, number, mapped.address, self._length, int(access), mapped.packed)
        self._rkey = seal_key(key, transport.secret)

    @property
    def address(self) -> int:
        """First address, as a peer says it."""
        return self._mapped.address

    @property
    def length_bytes(self) -> int:
        """Size."""
        return self._length

    @property
    def rkey(self) -> bytes:
        """The sealed key."""
        return self._rkey

    @property
    def access(self) -> Access:
        """What was allowed at registration."""
        return self._access

    @property
    def view(self) -> memoryview:
        """The memory itself."""
        if self._closed:
            raise InvalidArgument(
                "the region is closed", device=self._transport.device, during="view", hint="register memory again"
            )
        return self._view

    def admit(self, link: Link) -> bool:
        """Let a peer use the key, and remember to tell it when the region goes; False if it is going already."""
        with self._lock:
            if self._closed:
                return False
            self._links.add(link)
            return True

    def close(self) -> None:
        """Let every peer put its key away, cut off those that do not, and deregister. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            links = tuple(self._links)
        transport = self._transport
        transport.forget_region(self)
        if transport.forked:
            return
        for link in links:
            link.revoke(self.number)
        until = time.monotonic() + _REVOKING_SECONDS
        for link in links:
            if not link.await_revoked(self.number, until):
                link.cut()
        self._release()

    def _release(self) -> None:
        """Give the memory back."""
        self._transport.context.unmap(self._mapped)
        self._view = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OwnRegion(UcxRegion):
    """A region of memory that UCX has allocated: it goes when the last view of it goes."""

    def _release(self) -> None:
        self._view = memoryview(b"")


def allocate(context: Context, length: int) -> tuple[memoryview, Mapped]:
    """Return new memory that UCX has allocated, zeroed, and unmap it when nobody looks at it any more."""
    mapped = context.map(None, length)
    # An array of ctypes, because it can say when the last memoryview of it has gone.
    import ctypes

    array = (ctypes.c_ubyte * length).from_address(mapped.address)
    ctypes.memset(mapped.address, 0, length)
    finalize(array, context.unmap, mapped).atexit = False
    return memoryview(array).cast("B"), mapped


def map_buffer(context: Context, view: memoryview) -> Mapped:
    """Register the user's memory in place; whoever holds the view holds it where it is."""
    library = context.library
    return context.map(library.ffi.cast("void*", library.address_of(view)), view.nbytes)
