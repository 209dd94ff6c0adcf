"""Registered memory of a mock RDMA NIC: the owner's region, and how a peer reaches it.

Memory that the NIC gives is a file that both processes map: a peer writes it directly, whether the owner runs or not.
Memory of the user's own cannot be mapped by another process, so there the owner's process serves the peer's requests
from a thread, as software RDMA does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar, cast
from weakref import WeakMethod, WeakValueDictionary

from hal.errors import InvalidArgument
from hal.interfaces.rnic import Access
from hal_mocks.buffers import as_bytes
from hal_mocks.rnic_engine import dial
from hal_mocks.rnic_files import ACCESS, ADDRESS, LENGTH, USER_MEMORY, Session, SharedFile, region_path

if TYPE_CHECKING:
    from hal.interfaces.rnic import Writable

RKEY_BYTES = 16
ANSWER_SECONDS = 5.0
PUT, GET, ADD, SWAP = 1, 2, 3, 4
NEEDED = {PUT: Access.REMOTE_WRITE, GET: Access.REMOTE_READ, ADD: Access.REMOTE_ATOMIC, SWAP: Access.REMOTE_ATOMIC}
_REQUEST = struct.Struct("<B16sQQQQ")
_REPLY = struct.Struct("<BQ")
_WORD_MASK = (1 << 64) - 1
_REMOTE_CHANGES = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
_MINE: WeakValueDictionary[tuple[int, bytes], MockRegion] = WeakValueDictionary()


class MockRegion:
    """Registered memory; see :class:`hal.interfaces.rnic.Region`."""

    def __init__(
        self, session: Session, memory: Writable | int, access: Access, forget: Callable[[bytes], object]
    ) -> None:
        device = session.device_id
        if access & _REMOTE_CHANGES and not access & Access.LOCAL_WRITE:
            raise InvalidArgument(
                "remote writes and atomics need local writing too",
                device=device,
                during="register",
                hint="add Access.LOCAL_WRITE",
            )
        user: memoryview | None = None
        if isinstance(memory, int):
            length = memory
        else:
            user = as_bytes(memory, device, "register", writable=bool(access & Access.LOCAL_WRITE))
            length = user.nbytes
        if length <= 0:
            raise InvalidArgument(
                f"{length} bytes cannot be registered", device=device, during="register", hint="give at least one byte"
            )
        self.rkey = secrets.token_bytes(RKEY_BYTES)
        self.access = access
        self.length_bytes = length
        self._forget = forget
        path = region_path(session.folder, self.rkey)
        self._file = SharedFile(path, length if user is None else 0)
        self.view = self._file.body[:length] if user is None else user
        self.address = _address(self.view)
        words = self._file.words
        words[ADDRESS], words[LENGTH], words[USER_MEMORY] = self.address, length, user is not None
        words[ACCESS] = int(access)
        _MINE[os.getpid(), self.rkey] = self

    def apply(self, verb: int, address: int, length: int, payload: memoryview, first: int, second: int) -> bytes | int:
        """Do what a peer in another process asks for; raises ``PermissionError`` if it may not."""
        offset = address - self.address
        if not 0 <= offset <= self.length_bytes - length or not self._file.words[ACCESS] & NEEDED[verb]:
            raise PermissionError
        if verb == PUT:
            self.view[offset : offset + length] = payload
            return 0
        if verb == GET:
            return bytes(self.view[offset : offset + length])
        self._file.lock()
        try:
            return change_word(self.view, offset, verb, first, second)
        finally:
            self._file.unlock()

    def close(self) -> None:
        """Deregister."""
        if self._file.descriptor >= 0:
            self._file.words[ACCESS] = 0
            self._file.path.unlink(missing_ok=True)
            self._file.close()
            _MINE.pop((os.getpid(), self.rkey), None)
            self._forget(self.rkey)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def change_word(view: memoryview, offset: int, verb: int, first: int, second: int) -> int:
    """Add, or compare and swap, at an offset; the caller holds the region's lock. Returns what was there."""
    place = view[offset : offset + 8].cast("Q")
    before: int = place[0]
    if verb == ADD:
        place[0] = (before + first) & _WORD_MASK
    elif before == first:
        place[0] = second
    return before


def _address(view: memoryview) -> int:
    import numpy as np

    return cast(int, np.frombuffer(view, np.uint8).__array_interface__["data"][0])


class Target:
    """A peer's region as a connection reaches it. ``view`` is None where only the owner's process can."""

    __slots__ = ("_courier", "_file", "base", "length", "rkey", "view", "words")

    def __init__(self, session: Path, rkey: bytes, courier: Courier) -> None:
        """Raises ``FileNotFoundError`` for a key that the peer's session does not know."""
        self._file = SharedFile(region_path(session, rkey))
        self._courier = courier
        self.rkey = rkey
        self.words = self._file.words
        self.base: int = self.words[ADDRESS]
        self.length: int = self.words[LENGTH]
        self.view: memoryview | None = self._file.body[: self.length]
        if self.words[USER_MEMORY]:
            mine = _MINE.get((os.getpid(), rkey))
            self.view = None if mine is None else mine.view

    def put(self, offset: int, data: memoryview) -> None:
        """Write; raises ``PermissionError`` if the owner refuses, ``ConnectionError`` if it is dead."""
        if self.view is not None:
            self.view[offset : offset + data.nbytes] = data
        else:
            self._courier.ask(PUT, self.rkey, self.base + offset, data.nbytes, payload=data)

    def get(self, offset: int, into: memoryview) -> None:
        """Read; raises as :meth:`put`."""
        if self.view is not None:
            into[:] = self.view[offset : offset + into.nbytes]
        else:
            self._courier.ask(GET, self.rkey, self.base + offset, into.nbytes, into=into)

    def change(self, verb: int, offset: int, first: int, second: int) -> int:
        """Change a word as one step among all processes; returns what was there before."""
        if self.view is None:
            return self._courier.ask(verb, self.rkey, self.base + offset, 8, first=first, second=second)
        self._file.lock()
        try:
            return change_word(self.view, offset, verb, first, second)
        finally:
            self._file.unlock()

    def close(self) -> None:
        """Give back the descriptor."""
        self._file.close()


class Courier:
    """Carries requests for user memory to the process that owns it; connects at the first one."""

    def __init__(self, session: Path, name: str) -> None:
        self._session = session
        self._name = name
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(
        self,
        verb: int,
        rkey: bytes,
        address: int,
        length: int,
        *,
        payload: memoryview | None = None,
        into: memoryview | None = None,
        first: int = 0,
        second: int = 0,
    ) -> int:
        """Send one request and return the answer's word."""
        with self._lock:
            try:
                if self._socket is None:
                    self._socket = dial(self._session, self._name, b"R")
                    self._socket.settimeout(ANSWER_SECONDS)
                self._socket.sendall(_REQUEST.pack(verb, rkey, address, length, first, second))
                if payload is not None:
                    self._socket.sendall(payload)
                refused, value = _REPLY.unpack(_receive(self._socket, bytearray(_REPLY.size)))
                if refused:
                    raise PermissionError
                if into is not None:
                    _receive(self._socket, into)
            except PermissionError:
                raise
            except OSError as error:
                raise ConnectionError("the owner of the memory does not answer") from error
        return int(value)

    def close(self) -> None:
        """Hang up. Does not wait for a request under way: that one fails."""
        if self._socket is not None:
            self._socket.close()

    def __del__(self) -> None:
        self.close()


def serve(requests: socket.socket, region_of: WeakMethod[Callable[[bytes], MockRegion | None]]) -> None:
    """Answer one courier until it hangs up; a NIC that nobody holds any more has no regions."""
    head = bytearray(_REQUEST.size)
    with requests, contextlib.suppress(OSError):
        while True:
            verb, rkey, address, length, first, second = _REQUEST.unpack(_receive(requests, head))
            # The payload is read whatever the answer will be, so that the stream stays in step.
            payload = memoryview(_receive(requests, bytearray(length if verb == PUT else 0)))
            nic = region_of()
            region = None if nic is None else nic(rkey)
            try:
                answer = _refuse() if region is None else region.apply(verb, address, length, payload, first, second)
            except PermissionError:
                requests.sendall(_REPLY.pack(1, 0))
                continue
            finally:
                del nic, region  # while it waits for the next request it holds nobody
            if isinstance(answer, bytes):
                requests.sendall(_REPLY.pack(0, 0) + answer)
            else:
                requests.sendall(_REPLY.pack(0, answer))


def _refuse() -> int:
    raise PermissionError


_Buffer = TypeVar("_Buffer", bytearray, memoryview)


def _receive(source: socket.socket, into: _Buffer) -> _Buffer:
    view = memoryview(into)
    got = 0
    while got < view.nbytes:
        count = source.recv_into(view[got:])
        if count == 0:
            raise ConnectionResetError
        got += count
    return into
