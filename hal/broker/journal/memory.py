"""A journal in memory: for tests, for simulation, and for measuring the decisions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hal.broker.record import AnyRecord
from hal.broker.state import Snapshot
from hal.errors import JournalError


class MemoryStore:
    """Keeps the records as long as the process lives."""

    def __init__(self) -> None:
        self._records: list[AnyRecord] = []
        self._snapshot: Snapshot | None = None

    def append(self, records: Sequence[AnyRecord], revision: int) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        if revision != len(self._records):
            raise JournalError(f"the journal is at revision {len(self._records)}, not {revision}", during="append")
        self._records.extend(records)
        return len(self._records)

    def head(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        return len(self._records)

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """See :class:`~hal.broker.journal.store.Store`."""
        for revision in range(after, len(self._records)):
            yield revision + 1, self._records[revision]

    def snapshot(self) -> Snapshot | None:
        """See :class:`~hal.broker.journal.store.Store`."""
        return self._snapshot

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :class:`~hal.broker.journal.store.Store`."""
        self._snapshot = snapshot

    def close(self) -> None:
        """Nothing is held."""
