"""What a broker must do by itself, in time: expire, give notice, serve the queue, look at the devices again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hal.drivers.guarded import describe
from hal.errors import HalError

_LOG = logging.getLogger(__name__)
_SOONEST_SECONDS = 0.005


class Heart:
    """Calls ``maintain`` when it is due, at least every ``tick_seconds``, and ``look`` every ``look_seconds``.

    ``maintain`` returns in how many seconds it is needed again (None: it does not know). What fails is logged and tried
    again at the next beat; ``trouble`` says what failed last, None when all is well.
    """

    def __init__(
        self,
        maintain: Callable[[], float | None],
        look: Callable[[], object],
        tick_seconds: float,
        look_seconds: float,
    ) -> None:
        self._maintain = maintain
        self._look = look
        self._tick = tick_seconds
        self._every = look_seconds
        self._due = threading.Event()
        self._stopped = False
        self.trouble: str | None = None
        self.beats = 0
        self._threads = [
            threading.Thread(target=self._beat, name="hal-heart", daemon=True),
            threading.Thread(target=self._watch, name="hal-look", daemon=True),
        ]
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def kick(self) -> None:
        """Beat now: there is something to do."""
        self._due.set()

    def stop(self, seconds: float = 10.0) -> None:
        """End; a beat that has begun is waited for."""
        self._stopped = True
        self._ended.set()
        self._due.set()
        for thread in self._threads:
            thread.join(seconds)

    def _beat(self) -> None:
        while not self._stopped:
            self._due.clear()
            again = self._guarded(self._maintain, "maintain")
            self.beats += 1
            wait = self._tick if not isinstance(again, int | float) else min(self._tick, again)
            self._due.wait(max(_SOONEST_SECONDS, wait))

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            begun = time.monotonic()
            self._guarded(self._look, "look")
            took = time.monotonic() - begun
            if took > self._every:
                _LOG.warning("looking at all devices took %.1f s", took)

    def _guarded(self, work: Callable[[], object], what: str) -> object:
        try:
            found = work()
        except HalError as error:
            self._troubled(what, str(error))
        except Exception as error:  # a guard: the server goes on, and says so
            _LOG.exception("the server cannot %s", what)
            self._troubled(what, describe(error))
        else:
            if self.trouble is not None and self.trouble.startswith(what):
                self.trouble = None
            return found
        return None

    def _troubled(self, what: str, why: str) -> None:
        if self.trouble != f"{what}: {why}":
            _LOG.warning("the server cannot %s: %s", what, why)
        self.trouble = f"{what}: {why}"
