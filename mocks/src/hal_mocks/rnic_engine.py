"""The part of a mock RDMA NIC that works by itself: one thread a handle, asleep until a socket or a timer wakes it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakMethod

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.001
GONE_EVENTS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Engine:
    """Calls back from its thread when a socket can be read or its far side is gone, and ticks for who asks it to.

    It does not keep alive whom it calls: a NIC that nobody holds any more ends its engine, which closes the sockets.
    """

    def __init__(self, name: str) -> None:
        self._wake = -1
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, tuple[socket.socket, WeakMethod[Callable[..., None]]]] = {}
        self._ticking: set[Callable[[], bool]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"rnic-{name}", daemon=True)
        self._thread.start()

    def watch(self, watched: socket.socket, callback: Callable[[socket.socket], None]) -> None:
        """Call the bound method ``callback(watched)`` whenever the socket is readable or its peer is gone."""
        with self._lock:
            self._watched[watched.fileno()] = watched, WeakMethod(callback)
            self._epoll.register(watched.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def forget(self, descriptor: int) -> None:
        """Watch the descriptor no longer; call before it is closed. Unknown ones are no error."""
        with self._lock:
            if self._watched.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)

    def tick(self, callback: Callable[[], bool]) -> None:
        """Call back every millisecond until it returns False."""
        with self._lock:
            self._ticking.add(callback)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._forget_wake()

    def stop(self) -> None:
        """End the thread without waiting or locking: for whoever is collected, in whatever thread that happens."""
        if not self._closed:
            self._closed = True
            os.eventfd_write(self._wake, 1)

    def abandon(self) -> None:
        """Close what a forked child has of a parent's engine; the thread did not come along."""
        self._closed = True
        for watched, _ in self._watched.values():
            watched.close()
        self._watched.clear()
        self._epoll.close()
        self._forget_wake()

    def _forget_wake(self) -> None:
        wake, self._wake = self._wake, -1
        if wake >= 0:
            os.close(wake)

    def __del__(self) -> None:
        # Not the thread at its end: whoever stops it may be about to wake it, by a number that is another's by then.
        self._forget_wake()

    def _run(self) -> None:
        while True:
            events = self._epoll.poll(TICK_SECONDS if self._ticking else None)
            if self._closed:
                break
            for descriptor, _ in events:
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                    continue
                found = self._watched.get(descriptor)
                callback = None if found is None else found[1]()
                if found is not None and callback is not None:
                    self._guarded(callback, found[0])
                del found, callback  # while the thread sleeps it holds nobody
            for tick in tuple(self._ticking):
                if not self._guarded(tick):
                    with self._lock:
                        self._ticking.discard(tick)
        for watched, _ in self._watched.values():
            watched.close()
        self._epoll.close()

    def _guarded(self, callback: Callable[..., object], *arguments: object) -> object:
        # One connection's mistake must not silence the others of the handle: it is logged with its trace.
        try:
            return callback(*arguments)
        except Exception:
            logger.exception("a callback of %s failed", self._thread.name)
            return False


def listen(folder: Path, name: str) -> socket.socket:
    """Return a socket that listens under a name in a folder, however long the folder's path is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(folder) as prefix:
        listener.bind(f"{prefix}/{name}")
    listener.listen(64)
    listener.setblocking(False)
    return listener


def dial(folder: Path, name: str, purpose: bytes) -> socket.socket:
    """Connect to such a socket and say in one byte what for; raises ``OSError`` if nobody is there."""
    out = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(folder) as prefix:
            out.connect(f"{prefix}/{name}")
        out.sendall(purpose)
    except OSError:
        out.close()
        raise
    return out


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    # A socket's path holds 107 bytes; the descriptor's name is short for any folder.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def is_gone(connected: socket.socket) -> bool:
    """True if the far side of a socket is closed or its process dead."""
    poll = select.poll()
    poll.register(connected, select.POLLRDHUP)
    return bool(poll.poll(0))
