"""The transport's thread: looks after queues that nobody waits at, for asyncio and for callbacks."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal_rdma.verbs.queue import WorkQueue

_PAUSE_SECONDS = 0.05


class Watcher:
    """One daemon thread, started by the first queue that needs it; it sleeps at the completion channels."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queues: set[WorkQueue] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell = -1
        self._ended = False

    def add(self, queue: WorkQueue) -> None:
        """Look after a queue until nothing is pending on it."""
        with self._lock:
            if self._ended or queue in self._queues:
                return
            self._queues.add(queue)
            if self._thread is None:
                self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._thread = threading.Thread(target=self._run, name=f"hal-verbs-{self._name}", daemon=True)
                self._thread.start()
            os.eventfd_write(self._bell, 1)

    def forget(self, queue: WorkQueue) -> None:
        """Leave a queue alone: it is closed."""
        with self._lock:
            self._queues.discard(queue)

    def _leave(self, queue: WorkQueue) -> None:
        with self._lock:
            if not queue.busy:  # asked again: somebody may have posted, and found the queue still here
                self._queues.discard(queue)

    def close(self) -> None:
        """End the thread and wait for it, unless it is the one that closes."""
        with self._lock:
            self._ended = True
            thread = self._thread
            if thread is not None:
                os.eventfd_write(self._bell, 1)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """In a forked child there is no such thread."""
        self._ended = True
        self._queues = set()

    def _run(self) -> None:
        try:
            while not self._ended:
                with self._lock:
                    queues = tuple(self._queues)
                poller = select.poll()
                poller.register(self._bell, select.POLLIN)
                waiting: dict[int, WorkQueue] = {}
                for queue in queues:
                    if queue.prepare_sleep():
                        poller.register(queue.descriptor, select.POLLIN)
                        waiting[queue.descriptor] = queue
                    else:
                        self._leave(queue)
                for descriptor, _ in poller.poll(_PAUSE_SECONDS * 1000 if waiting else None):
                    if descriptor == self._bell:
                        os.eventfd_read(self._bell)
                    else:
                        waiting[descriptor].take_event()
                for queue in waiting.values():
                    queue.progress()
        finally:
            os.close(self._bell)
