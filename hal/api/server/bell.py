"""Who waits for something to happen is woken when it did: one thread watches the journal for all of them.

With nobody waiting nothing is watched, so that commits cost no more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hal.api.surface import Broker
from hal.errors import HalError
from hal.interfaces.deadline import Deadline

_LOG = logging.getLogger(__name__)
_WATCH_SECONDS = 5.0
_PAUSE_SECONDS = 0.2


class Ear:
    """One who waits: for events about ``subject``, or for any at all."""

    def __init__(self, subject: str | None) -> None:
        self.subject = subject
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something happened."""
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Return True as soon as it rang since the last call, False after that time."""
        try:
            await asyncio.wait_for(self._rung.wait(), seconds)
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Bell:
    """Rings for those who listen. ``revision`` is the last one that was seen; it may lag behind the journal's."""

    def __init__(self, broker: Broker, head: Callable[[], int]) -> None:
        self._broker = broker
        self._head = head
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ears: set[Ear] = set()
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._heard: set[str | None] = set()
        self._reached = 0
        self.revision = 0
        self._thread = threading.Thread(target=self._watch, name="hal-bell", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen on behalf of this loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Wake everybody, and end."""
        self._stopped.set()
        self._wanted.set()
        for ear in self._ears:
            ear.ring()

    @property
    def stopping(self) -> bool:
        """Whether the server is about to end."""
        return self._stopped.is_set()

    def __len__(self) -> int:
        return len(self._ears)

    @contextmanager
    def listening(self, subject: str | None = None) -> Iterator[Ear]:
        """Give an ear; whatever happens from now on rings it."""
        ear = Ear(subject)
        self._ears.add(ear)
        self._wanted.set()
        try:
            yield ear
        finally:
            self._ears.discard(ear)
            if not self._ears and not self._stopped.is_set():
                self._wanted.clear()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait()
            if self._stopped.is_set():
                return
            try:
                since = self._head()
                self._tell(None, since)  # whatever happened before we looked: everybody shall see for themselves
                while self._wanted.is_set() and not self._stopped.is_set():
                    for event in self._broker.watch(since, Deadline.after(_WATCH_SECONDS)):
                        since = event.revision
                        self._tell(event.subject, since)
                        if self._stopped.is_set():
                            return
            except HalError as error:
                _LOG.warning("the journal cannot be watched: %s", error)
                self._stopped.wait(_PAUSE_SECONDS)

    def _tell(self, subject: str | None, revision: int) -> None:
        with self._lock:
            quiet = not self._heard
            self._heard.add(subject)
            self._reached = max(self._reached, revision)
        if quiet and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        with self._lock:
            heard, self._heard = self._heard, set()
            self.revision = max(self.revision, self._reached)
        everybody = None in heard
        for ear in self._ears:
            if everybody or ear.subject is None or ear.subject in heard:
                ear.ring()
