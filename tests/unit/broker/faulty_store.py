"""A store whose disk has bad days: full, slow, failing, cut off in the middle of a commit. For tests and simulation.

What goes wrong is drawn from a random source that is handed in, and nothing else: the same seed, the same day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.store import NEW, JournalFull, tag_of
from hal.errors import JournalError


class Crash(BaseException):
    """The process died within a commit; :meth:`FaultyStore.crashed` is what the next one finds."""


@dataclass
class Faults:
    """How likely each is, at each append: chances from 0 to 1.

    ``fails``: an error, and nothing is written. ``unknown``: an error, and it may be written or not; ``blind``: after
    that the head cannot be read for some calls either. ``torn``: the process dies within the commit, which is there
    afterwards or not. ``slow``: it takes up to ``most_seconds``, which are handed to ``sleep``. ``full_for``: how many
    appends a disk that became full (``full``) stays so. ``forgets`` is a disk that lies: the last commits, up to this
    many and acknowledged as they were, are gone after a crash. No store survives that; a checker must find it.
    """

    fails: float = 0.0
    unknown: float = 0.0
    blind: float = 0.0
    torn: float = 0.0
    slow: float = 0.0
    full: float = 0.0
    full_for: int = 10
    most_seconds: float = 5.0
    forgets: int = 0
    sleep: Callable[[float], None] = field(default=lambda seconds: None)


class FaultyStore(MemoryStore):
    """A :class:`MemoryStore` behind a disk with :class:`Faults`; ``happened`` counts them by name."""

    def __init__(self, random: Random, faults: Faults) -> None:
        super().__init__()
        self.random, self.faults = random, faults
        self.happened: dict[str, int] = {}
        self._blind_for = 0
        self._full_for = 0
        self._commits: list[tuple[int, int]] = []

    def _is_due(self, name: str) -> bool:
        # One number for each question, asked or not: switching one fault on does not reshuffle the others' day.
        due = self.random.random() < getattr(self.faults, name)
        if due:
            self.happened[name] = self.happened.get(name, 0) + 1
        return due

    def append(self, records, revision, audit=()):
        names = ("slow", "full", "fails", "unknown", "blind", "torn", "kept")
        due = {name: self._is_due(name) for name in names[:-1]}
        kept = self.random.random() < 0.5
        if self._blind_for:
            raise JournalError("I/O error", during="append", hint="look for a failing disk")
        if due["slow"]:
            self.faults.sleep(self.random.random() * self.faults.most_seconds)
        if due["full"]:
            self._full_for = self.faults.full_for
        if self._full_for:
            self._full_for -= 1
            if not NEW.isdisjoint(map(tag_of, records)):
                raise JournalFull("database or disk is full", during="append", hint="make room")
        if due["fails"]:
            raise JournalError("I/O error", during="append", hint="look for a failing disk")
        if due["torn"]:
            if kept:
                self._write(records, revision, audit)
            raise Crash
        if due["unknown"]:
            if kept:
                self._write(records, revision, audit)
            self._blind_for = 3 if due["blind"] else 0
            raise JournalError("I/O error", during="append", hint="look for a failing disk")
        return self._write(records, revision, audit)

    def _write(self, records, revision, audit):
        before = len(self._trail)
        head = super().append(records, revision, audit)
        self._commits.append((revision, before))
        return head

    def head(self):
        if self._blind_for:
            self._blind_for -= 1
            raise JournalError("I/O error", during="read", hint="look for a failing disk")
        return super().head()

    def crashed(self):
        """Return what the next process finds, on the same disk: itself, without what a lying disk forgot."""
        self._blind_for = 0
        for _ in range(min(self.faults.forgets, len(self._commits))):
            revision, lines = self._commits.pop()
            if revision < max(self._oldest, self._snapshot.revision if self._snapshot else 0):
                break
            del self._records[revision - self._oldest :]
            del self._trail[lines:]
        return self
