"""Where records are kept: one interface, one test suite, several stores."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from hal.broker.record import AnyRecord
from hal.broker.state import Snapshot, State
from hal.errors import JournalError

_LOG = logging.getLogger(__name__)
DAMAGED = "keep a copy of the state folder and bring back a backup; an empty folder begins anew, and knows no lease"


@runtime_checkable
class Store(Protocol):
    """An append-only journal with a revision for each record, counted from 1. One writer.

    Every failure is a :class:`~hal.errors.JournalError`. One that comes out of :meth:`append` leaves it open whether
    the records were written; :meth:`head` tells.
    """

    def append(self, records: Sequence[AnyRecord], revision: int) -> int:
        """Write all the records or none, durably, after ``revision``; return the new head.

        Raises ``JournalError`` without writing if the head is not ``revision``.
        """
        ...

    def head(self) -> int:
        """Return the revision of the last record that is durably written, 0 for an empty journal."""
        ...

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """Yield the records after a revision, in order, with their own revisions."""
        ...

    def snapshot(self) -> Snapshot | None:
        """Return the newest stored snapshot."""
        ...

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot; older ones may go. The records stay."""
        ...

    def close(self) -> None:
        """Let go of files and locks; the last call."""
        ...


def load_state(store: Store) -> State:
    """Return the state that a journal amounts to: the newest snapshot and what came after it.

    A snapshot that cannot be read costs time only. Raises :class:`~hal.errors.JournalError` for a journal with a hole,
    or with a record that cannot follow the ones before it.
    """
    try:
        snapshot = store.snapshot()
    except JournalError as error:
        _LOG.warning("the snapshot is left out, all records are read instead: %s", error)
        snapshot = None
    state = State.restore(snapshot) if snapshot is not None else State()
    for revision, record in store.replay(state.revision):
        if revision != state.revision + 1:
            raise _damaged(f"revision {revision} follows {state.revision}")
        try:
            state.apply(record)
        except LookupError as error:
            kind = record.__struct_config__.tag
            raise _damaged(f"revision {revision} ({kind}) speaks of {error}, which is not there") from error
    return state


def _damaged(what: str) -> JournalError:
    return JournalError(f"the journal is damaged: {what}", during="replay", hint=DAMAGED)
