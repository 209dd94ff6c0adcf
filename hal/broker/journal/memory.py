"""A journal in memory: for tests, for simulation, and for measuring the decisions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hal.broker.journal.audit import (
    GENESIS,
    Anchor,
    AuditEntry,
    AuditLine,
    AuditReport,
    Row,
    Verifier,
    line_of,
    seal,
    tail_of,
)
from hal.broker.journal.compacted import Compacted
from hal.broker.journal.snapshots import AT_ONCE, compaction_entry, refuse_compaction
from hal.broker.record import AnyRecord, encode_record
from hal.broker.state import Snapshot
from hal.errors import JournalError


class MemoryStore:
    """Keeps the records as long as the process lives. Unlike the others, it does not check that they can be read."""

    def __init__(self) -> None:
        self._records: list[AnyRecord] = []
        self._trail: list[Row] = []
        self._oldest = 0
        self._snapshot: Snapshot | None = None

    def append(self, records: Sequence[AnyRecord], revision: int, audit: Sequence[AuditEntry] = ()) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        head = self._oldest + len(self._records)
        if revision != head:
            raise JournalError(f"the journal is at revision {head}, not {revision}", during="append")
        head += len(records)
        if audit:
            self._trail += seal(audit, self._tail(), head)
        self._records.extend(records)
        return head

    def _tail(self) -> tuple[int, bytes]:
        return tail_of(self._trail) if self._trail else (0, GENESIS)

    def head(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        return self._oldest + len(self._records)

    def oldest(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        return self._oldest

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """See :class:`~hal.broker.journal.store.Store`."""
        for revision in range(after, self._oldest + len(self._records)):
            if revision < self._oldest:
                raise Compacted(revision, self._oldest)
            yield revision + 1, self._records[revision - self._oldest]

    def snapshot(self) -> Snapshot | None:
        """See :class:`~hal.broker.journal.store.Store`."""
        return self._snapshot

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :class:`~hal.broker.journal.store.Store`."""
        if self._snapshot is None or snapshot.revision >= self._snapshot.revision:
            self._snapshot = snapshot

    def saving(self, snapshot: Snapshot) -> Iterator[None]:
        """See :class:`~hal.broker.journal.store.Store`; one step."""
        self.save_snapshot(snapshot)
        yield

    def compact(self, revision: int) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        for _ in self.compacting(revision):
            pass
        return self._oldest

    def compacting(self, revision: int) -> Iterator[None]:
        """See :class:`~hal.broker.journal.store.Store`."""
        refuse_compaction(revision, None if self._snapshot is None else self._snapshot.revision)
        while self._oldest < revision:
            many = min(AT_ONCE, revision - self._oldest)
            dropped = self._records[:many]
            entry = compaction_entry(self._oldest, dropped[-1].at, [encode_record(record) for record in dropped])
            self._trail += seal((entry,), self._tail(), self.head())
            del self._records[:many]
            self._oldest += many
            yield

    def audit(self, since: int = 0, limit: int = 1000) -> list[AuditLine]:
        """See :class:`~hal.broker.journal.store.Store`."""
        return [line_of(row) for row in self._trail[since : since + limit]]

    def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """See :class:`~hal.broker.journal.store.Store`."""
        verifier = Verifier(anchor)
        for row in self._trail:
            if not verifier.take(line_of(row)):
                break
        return verifier.report(self.head())

    def close(self) -> None:
        """Nothing is held."""
