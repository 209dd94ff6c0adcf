"""The thread that moves the workers of one opened NIC while their owner does something else.

A passive target's memory is reached by software only if somebody on its side makes progress. The thread sleeps in
``epoll`` on the workers' descriptors (``ucp_worker_arm``) and on the processes at the other end (``pidfd_open(2)``),
whose end makes the descriptor readable at once, however they ended.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal_rdma.ucx.link import Link

_SOON_SECONDS = 1e-3
_TURNS_IN_QUIET = 8
"""How many further looks a link gets after its last event: whoever was busy is busy again, and need not wake us."""

_WARM_SECONDS = 100e-6
"""How long the thread looks again and again after it moved something: requests come in streams, and waking is slow."""
_BUSY_TURNS = 200
"""How often in a row a worker may say that it is busy before the others' processors count for more."""


class Progress:
    """Moves links. Nothing runs until the first link comes."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._soon: dict[Link, int] = {}
        self._peers: dict[int, tuple[int, Callable[[], None]]] = {}
        self._poller: select.epoll | None = None
        self._bell = -1
        self._sleeping = False
        self._warm_until = 0.0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.wakeups = 0

    def add(self, link: Link) -> None:
        """Move a link from now on."""
        with self._lock:
            if self._poller is None:
                self._poller = select.epoll()
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._poller.register(self._bell, select.EPOLLIN)
                name = f"hal-ucx-{self._device}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            descriptor = link.worker.descriptor
            self._links[descriptor] = link
            self._poller.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        self.rouse(link)

    def forget(self, link: Link) -> None:
        """Leave a link alone from now on."""
        with self._lock:
            self._soon.pop(link, None)
            descriptor = link.worker.descriptor
            if self._links.get(descriptor) is link and self._poller is not None:
                del self._links[descriptor]
                self._poller.unregister(descriptor)
            for watched, (number, _) in tuple(self._peers.items()):
                if number == link.token and self._poller is not None:
                    del self._peers[watched]
                    self._poller.unregister(watched)
                    os.close(watched)

    def watch(self, link: Link, descriptor: int, lost: Callable[[], None]) -> None:
        """Call ``lost`` when a peer's process ends; the descriptor is this object's from now on."""
        with self._lock:
            if self._poller is None or self._stopping:
                os.close(descriptor)
                return
            self._peers[descriptor] = (link.token, lost)
            self._poller.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def rouse(self, link: Link) -> None:
        """Look at a link within a millisecond, and as long as it has something to do."""
        if self._soon.get(link) != _TURNS_IN_QUIET:
            self._soon[link] = _TURNS_IN_QUIET
        if self._sleeping:
            self._ring()

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        poller = self._poller
        assert poller is not None
        in_a_row = 0
        while not self._stopping:
            at_once = 0 < in_a_row < _BUSY_TURNS or time.monotonic() < self._warm_until
            self._sleeping = not at_once
            timeout = 0.0 if at_once else _SOON_SECONDS if self._soon else None
            events = poller.poll(timeout)
            self._sleeping = False
            self.wakeups += 1
            turned: dict[Link, int] = dict(self._soon)
            for descriptor, _ in events:
                if descriptor == self._bell:
                    os.eventfd_read(descriptor)
                elif (link := self._links.get(descriptor)) is not None:
                    turned[link] = _TURNS_IN_QUIET
                elif (peer := self._peers.get(descriptor)) is not None:
                    peer[1]()
            in_a_row = in_a_row + 1 if self._turn(turned) else 0

    def _turn(self, links: dict[Link, int]) -> bool:
        busy = False
        for link, left in links.items():
            turn = link.turn()
            busy |= turn.busy
            if turn.moved and not link.watchers:  # who waits polls by himself
                self._warm_until = time.monotonic() + _WARM_SECONDS
            with self._lock:
                descriptor = link.worker.descriptor
                if self._links.get(descriptor) is not link or self._poller is None:
                    self._soon.pop(link, None)
                    continue
                if turn.busy or turn.soon:
                    self._soon[link] = _TURNS_IN_QUIET
                elif left > 1:
                    self._soon[link] = left - 1
                else:
                    self._soon.pop(link, None)
                if turn.armed:
                    self._poller.modify(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        return busy

    def close(self) -> None:
        """End the thread; all links are forgotten before."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._lock:
            for watched in self._peers:
                os.close(watched)
            self._peers.clear()
            if self._poller is not None:
                self._poller.close()
                os.close(self._bell)
                self._poller, self._bell = None, -1

    def abandon(self) -> None:
        """Let go in a forked child, where the thread does not exist."""
        self._stopping = True
        self._sleeping = False
        if self._poller is not None:
            self._poller.close()
