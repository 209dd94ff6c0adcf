"""State and journal together: decide, write down, and only then let it be so."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from hal.broker.command import Answer, AnyCommand, Schedule
from hal.broker.core import decide
from hal.broker.journal.audit import AuditEntry
from hal.broker.journal.store import JournalFull, Store, load_state
from hal.broker.record import AnyRecord
from hal.broker.trail import ITSELF, entry_of
from hal.errors import HalError, JournalError

SNAPSHOT_EVERY = 5_000
"""How many records come between two snapshots at least; with many devices and leases more, so that it costs a part."""
KEPT_RECORDS = 50_000
"""How many records stay for those who watch, beside those since the last snapshot."""
EVENTS_AT_ONCE = 1_000
MOST_STEPS = 1_000
"""How much of the queue is served after one commit; the rest comes with the next."""


class Clock(Protocol):
    """Where time comes from: seconds since the Unix epoch, never going back."""

    def now(self) -> float:
        """Return the time."""
        ...


class Ledger:
    """Runs commands one after the other. The journal's word is final: what is not in it did not happen.

    If writing fails and the journal cannot say what became of it, every further command is refused with
    :class:`~hal.errors.JournalError` until it can, and then the state is made from the journal afresh.

    Whatever opens room (a lease ended, a device seen) is followed by a look at the queue before the next command:
    who waits comes before who comes.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.state = load_state(store)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self._doubt = False
        self._failing = False
        self._scheduled = -1
        self._snapshot_at = self.state.restored_from
        self._chore: Iterator[None] | None = None

    def execute(self, command: AnyCommand, actor: str = ITSELF) -> Answer:
        """Decide a command, commit it, and return the answer; an error means that nothing was changed."""
        with self.lock:
            self._settle_doubt()
            self._serve_queue()
            answer = self._commit(command, actor)
            self._serve_queue()
            return answer

    def execute_many(self, commands: Sequence[AnyCommand], actors: Sequence[str]) -> list[Answer | HalError]:
        """Decide many commands in their order and commit them together; an error stands where an answer would.

        Raises :class:`~hal.errors.JournalError` if they could not be written: then none of them has happened, or
        (unless it is a ``JournalFull``) nobody knows, and asking again under the same ids tells.
        """
        with self.lock:
            self._settle_doubt()
            self._serve_queue()
            if self._failing or len(commands) == 1:
                answers = [self._try(command, actor) for command, actor in zip(commands, actors, strict=True)]
            else:
                answers = self._commit_together(commands, actors)
            self._serve_queue()
            return answers

    def preview(self, command: AnyCommand) -> Answer:
        """Return the answer that a command would get now, and change nothing."""
        with self.lock:
            self._settle_doubt()
            self._serve_queue()
            return decide(self.state, command, self.clock.now())[1]

    def note(self, entry: AuditEntry) -> None:
        """Put something on the audit trail that changed nothing: a verb that was refused."""
        with self.lock:
            self._settle_doubt()
            self.store.append((), self.state.revision, (entry,))

    def serve_queue(self) -> None:
        """Look at the queue, whether or not something has opened: time alone may have."""
        with self.lock:
            self._settle_doubt()
            self._scheduled = -1
            self._serve_queue()

    def events(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """Yield what was written after a revision; nothing of a commit that is still under way."""
        replay = iter(self.store.replay(after))
        while True:
            with self.lock:
                block = list(islice(replay, EVENTS_AT_ONCE))
            if not block:
                return
            yield from block

    def wait_for_change(self, after: int, seconds: float) -> bool:
        """Wait until something was written after a revision, or the time is over; return whether it was."""
        with self.changed:
            return self.changed.wait_for(lambda: self.state.revision > after, seconds)

    def tidy(self) -> bool:
        """Do a few milliseconds of what keeps the journal short: snapshots, compaction. True if there is more to do."""
        with self.lock:
            if self._chore is None:
                return False
            try:
                next(self._chore)
            except StopIteration:
                self._chore = None
            except JournalError:
                # The records are safe; only the next start takes longer. The next append will meet the same disk.
                self._chore = None
            return self._chore is not None

    # --- commits

    def _try(self, command: AnyCommand, actor: str) -> Answer | HalError:
        try:
            return self._commit(command, actor)
        except JournalError:
            raise
        except HalError as error:
            return error

    def _commit(self, command: AnyCommand, actor: str) -> Answer:
        """Write first, then change the state: a disk that refuses costs nothing but the answer."""
        state = self.state
        records, answer = decide(state, command, self.clock.now())
        if records:
            # Until the records are applied nobody knows; whatever breaks off here (Ctrl-C, too) leaves it so.
            self._doubt = True
            before = state.revision
            self._append(records, before, self._trail(records, actor))
            for record in records:
                state.apply(record)
            self._written()
        return answer

    def _commit_together(self, commands: Sequence[AnyCommand], actors: Sequence[str]) -> list[Answer | HalError]:
        """Change the state as if all were written, then write all at once; what fails is undone from the journal."""
        state, now = self.state, self.clock.now()
        before = state.revision
        written: list[AnyRecord] = []
        trail: list[AuditEntry] = []
        answers: list[Answer | HalError] = []
        self._doubt = True
        apply = state.apply
        for command, actor in zip(commands, actors, strict=True):
            try:
                records, answer = decide(state, command, now)
            except HalError as error:
                answers.append(error)
                continue
            for record in records:
                apply(record)
                entry = entry_of(state, record, actor)
                if entry is not None:
                    trail.append(entry)
            written += records
            answers.append(answer)
        if written:
            self._append(written, before, trail)
            self._written()
        self._doubt = False
        return answers

    def _append(self, records: Sequence[AnyRecord], before: int, trail: Sequence[AuditEntry]) -> None:
        try:
            self.store.append(records, before, trail)
        except JournalFull:
            self._failing = True
            self._doubt = self.state.revision != before  # what is ahead of the journal has to be made afresh
            raise
        except JournalError:
            self._failing = True
            if not self._is_written(records, before):
                raise
        self._failing = False

    def _trail(self, records: Sequence[AnyRecord], actor: str) -> list[AuditEntry]:
        entries = (entry_of(self.state, record, actor) for record in records)
        return [entry for entry in entries if entry is not None]

    def _written(self) -> None:
        self._doubt = False
        self.changed.notify_all()
        state = self.state
        if self._chore is None and state.revision - self._snapshot_at >= SNAPSHOT_EVERY + 2 * (
            len(state.devices) + len(state.leases)
        ):
            self._snapshot_at = state.revision
            self._chore = self._shorten()
        if self._chore is not None:
            self.tidy()

    def _shorten(self) -> Iterator[None]:
        snapshot = self.state.snapshot()
        yield from self.store.saving(snapshot)
        if snapshot.revision > KEPT_RECORDS:
            yield from self.store.compacting(snapshot.revision - KEPT_RECORDS)

    def _serve_queue(self) -> None:
        """Do what the queue asks for, as long as something has opened since the last time."""
        for _ in range(MOST_STEPS):
            state = self.state
            if self._scheduled == state.openings:
                return
            if not state.waiting and not state.elastic:
                self._scheduled = state.openings
                return
            seen = state.openings
            before = state.revision
            self._commit(Schedule(), ITSELF)
            if state.revision == before:
                self._scheduled = seen
                return

    # --- doubt

    def _settle_doubt(self) -> None:
        if not self._doubt:
            return
        self.store.head()
        self.state = load_state(self.store)
        self._scheduled = -1
        self._doubt = False

    def _is_written(self, records: Sequence[AnyRecord], before: int) -> bool:
        """Find out what became of a commit that failed: the whole of it is there, or nothing."""
        head = self.store.head()
        if head == before:
            self._doubt = self.state.revision != before
            return False
        # Something is there. Only if it is the very same are we where we think we are.
        return [record for _, record in self.store.replay(before)] == list(records)
