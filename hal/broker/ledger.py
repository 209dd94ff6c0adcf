"""State and journal together: decide, write down, and only then let it be so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from hal.broker.command import Answer, AnyCommand
from hal.broker.core import decide
from hal.broker.journal.store import Store, load_state
from hal.broker.record import AnyRecord
from hal.errors import JournalError

SNAPSHOT_EVERY = 5_000
EVENTS_AT_ONCE = 1_000


class Clock(Protocol):
    """Where time comes from: seconds since the Unix epoch, never going back."""

    def now(self) -> float:
        """Return the time."""
        ...


class Ledger:
    """Runs commands one after the other. The journal's word is final: what is not in it did not happen.

    If writing fails and the journal cannot say what became of it, every further command is refused with
    :class:`~hal.errors.JournalError` until it can, and then the state is made from the journal afresh.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.state = load_state(store)
        self._doubt = False
        self._snapshot_at = self.state.restored_from
        self.lock = threading.RLock()

    def execute(self, command: AnyCommand) -> Answer:
        """Decide a command, commit it, and return the answer; an error means that nothing was changed."""
        with self.lock:
            if self._doubt:
                self._resolve()
            state = self.state
            records, answer = decide(state, command, self.clock.now())
            if records:
                # Until the records are applied nobody knows; whatever breaks off here (Ctrl-C, too) leaves it so.
                self._doubt = True
                try:
                    self.store.append(records, state.revision)
                except JournalError:
                    if not self._written(records):
                        raise
                for record in records:
                    state.apply(record)
                self._doubt = False
                if state.revision - self._snapshot_at >= SNAPSHOT_EVERY:
                    self._save()
            return answer

    def preview(self, command: AnyCommand) -> Answer:
        """Return the answer that a command would get now, and change nothing."""
        with self.lock:
            if self._doubt:
                self._resolve()
            return decide(self.state, command, self.clock.now())[1]

    def events(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """Yield what was written after a revision; nothing of a commit that is still under way."""
        replay = iter(self.store.replay(after))
        while True:
            with self.lock:
                block = list(islice(replay, EVENTS_AT_ONCE))
            if not block:
                return
            yield from block

    def _written(self, records: Sequence[AnyRecord]) -> bool:
        """Find out what became of a commit that failed: the whole of it is there, or nothing."""
        before = self.state.revision
        head = self.store.head()
        if head == before:
            self._doubt = False
            return False
        # Something is there. Only if it is the very same are we where we think we are.
        return [record for _, record in self.store.replay(before)] == list(records)

    def _resolve(self) -> None:
        self.store.head()
        self.state = load_state(self.store)
        self._doubt = False

    def _save(self) -> None:
        self._snapshot_at = self.state.revision
        try:
            self.store.save_snapshot(self.state.snapshot())
        except JournalError:
            # The records are safe; only the next start takes longer. The next append will meet the same disk.
            return
