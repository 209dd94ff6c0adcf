"""When a driver's process may be started again: at once, then later and later, and after three crashes not at all."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

_LOG = logging.getLogger(__name__)


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin that crashed too often, since when (seconds since the Unix epoch), and how the last one was."""

    driver: str
    since: float
    crashes: int
    within_seconds: float
    why: str


class Restarts:
    """Counts the failures of one driver's process. Not thread-safe: its monitor holds a lock.

    After the first failure the next process may start at once, after the second in a row ``first_seconds`` later, then
    twice as long each time up to ``longest_seconds``; one good answer and it begins anew. ``crashes`` (ends that nobody
    ordered) ``within_seconds`` quarantine the driver until :meth:`forgive`. With a ``record``, a file, the
    quarantine outlives this process, and an operator can also lift it by removing the file.
    """

    def __init__(
        self,
        driver: str,
        record: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_seconds: float = 0.1,
        longest_seconds: float = 30.0,
        crashes: int = 3,
        within_seconds: float = 600.0,
    ) -> None:
        self.driver = driver
        self.record = record
        self.clock = clock
        self.first_seconds = first_seconds
        self.longest_seconds = longest_seconds
        self.crashes = crashes
        self.within_seconds = within_seconds
        self._row = 0
        self._last = 0.0
        self._crashed_at: deque[float] = deque(maxlen=crashes)
        self._quarantine = self._read()

    def good(self) -> None:
        """A verb was answered."""
        self._row = 0

    def failed(self) -> None:
        """A process is gone: killed because it did not answer, or by itself."""
        self._row += 1
        self._last = self.clock()

    def crashed(self, why: str) -> None:
        """A process ended by itself; ``why`` is how."""
        self.failed()
        now = self.clock()
        self._crashed_at.append(now)
        if len(self._crashed_at) == self.crashes and now - self._crashed_at[0] <= self.within_seconds:
            self._quarantine = Quarantine(
                driver=self.driver,
                since=time.time(),
                crashes=self.crashes,
                within_seconds=self.within_seconds,
                why=why,
            )
            _LOG.error("driver %s is quarantined: %d crashes, the last: %s", self.driver, self.crashes, why)
            self._write(self._quarantine)

    @property
    def delay_seconds(self) -> float:
        """How long it must still be waited before the next start."""
        if self._row < 2:
            return 0.0
        wait: float = min(self.longest_seconds, self.first_seconds * 2.0 ** min(self._row - 2, 60))
        return max(0.0, self._last + wait - self.clock())

    @property
    def quarantine(self) -> Quarantine | None:
        """The quarantine, if there is one."""
        if self._quarantine is not None and self.record is not None and not self.record.exists():
            self.forgive("who removed the record")
        return self._quarantine

    @property
    def remedy(self) -> str:
        """What an operator does to lift a quarantine."""
        mend = f"mend or update the plugin of {self.driver}, then "
        return mend + ("restart hal serve" if self.record is None else f"rm {self.record}")

    def forgive(self, by: str) -> None:
        """Lift the quarantine, by an operator's word."""
        if self._quarantine is not None:
            _LOG.warning("the quarantine of driver %s is lifted by %s", self.driver, by)
        self._quarantine = None
        self._row = 0
        self._crashed_at.clear()
        if self.record is not None:
            self.record.unlink(missing_ok=True)

    def _read(self) -> Quarantine | None:
        try:
            return None if self.record is None else msgspec.json.decode(self.record.read_bytes(), type=Quarantine)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            # Somebody wrote that it is not to be started; that what else it says cannot be read changes nothing.
            why = f"its record {self.record} cannot be read: {error}"
            return Quarantine(driver=self.driver, since=0.0, crashes=0, within_seconds=0.0, why=why)

    def _write(self, found: Quarantine) -> None:
        if self.record is None:
            return
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.record.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(found))
            os.replace(fresh, self.record)
        except OSError as error:
            _LOG.error("the quarantine of driver %s is not kept: %s", self.driver, error)
            self.record = None  # or its absence would be taken for an operator's word
