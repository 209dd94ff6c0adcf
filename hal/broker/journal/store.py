"""Where records are kept: one interface, one test suite, several stores."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, get_args, runtime_checkable

import msgspec

from hal.broker.journal.audit import Anchor, AuditEntry, AuditLine, AuditReport
from hal.broker.record import AnyRecord, decode_record, encode_record
from hal.broker.state import Snapshot, State
from hal.errors import JournalError

_LOG = logging.getLogger(__name__)
DAMAGED = "keep a copy of the state folder and bring back a backup; an empty folder begins anew, and knows no lease"

ENDING = frozenset(
    ("boot-seen", "lease-suspected", "lease-releasing", "lease-shrunk", "lease-ended", "device-freed", "claim-left")
)
"""Records that give something back: they may use up the whole reserve of a full disk."""
NEW = frozenset(
    ("journal-begun", "claim-queued", "claim-kept", "lease-granted", "lease-grown", "tenant-set", "tenant-removed")
)
"""Records that a full disk refuses. All others (renewals, what was seen of a device) may use half of the reserve."""


class JournalFull(JournalError):
    """There is no room. Surely nothing was written; records that end leases may still find some on their own."""


@runtime_checkable
class Store(Protocol):
    """An append-only journal with a revision for each record, counted from 1. One writer.

    Every failure is a :class:`~hal.errors.JournalError`. One that comes out of :meth:`append` leaves it open whether
    the records were written, unless it is a :class:`JournalFull`; :meth:`head` tells.
    """

    def append(self, records: Sequence[AnyRecord], revision: int, audit: Sequence[AuditEntry] = ()) -> int:
        """Write all the records and what the audit trail says of them, or nothing, durably; return the new head.

        Raises ``JournalError`` without writing if the head is not ``revision``. There may be no records: a refusal
        leaves a trail only.
        """
        ...

    def head(self) -> int:
        """Return the revision of the last record that is durably written, 0 for an empty journal."""
        ...

    def oldest(self) -> int:
        """Return the oldest revision that :meth:`replay` can continue from; 0 until something was compacted."""
        ...

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """Yield the records after a revision, in order, with their own revisions.

        Raises :class:`~hal.broker.journal.compacted.Compacted` if they are not all kept any more, at once or while it
        is read.
        """
        ...

    def snapshot(self) -> Snapshot | None:
        """Return the newest stored snapshot."""
        ...

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Store a snapshot; older ones may go. The records stay."""
        ...

    def saving(self, snapshot: Snapshot) -> Iterator[None]:
        """Store a snapshot in steps of some milliseconds; between them others may append. It counts after the last."""
        ...

    def compact(self, revision: int) -> int:
        """Drop the records up to this revision; return what is now the :meth:`oldest`.

        The trail keeps a line with the SHA-256 of what was dropped. Raises ``JournalError``, and drops nothing, unless
        there is a snapshot at this revision or a later one.
        """
        ...

    def compacting(self, revision: int) -> Iterator[None]:
        """Do :meth:`compact` in steps of some milliseconds; each is whole by itself."""
        ...

    def audit(self, since: int = 0, limit: int = 1000) -> list[AuditLine]:
        """Return the lines of the trail after this sequence, in order."""
        ...

    def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """Check the whole trail, and that a remembered line is still there."""
        ...

    def close(self) -> None:
        """Let go of files and locks; the last call."""
        ...


def load_state(store: Store) -> State:
    """Return the state that a journal amounts to: the newest snapshot and what came after it.

    A snapshot that cannot be read costs time only, as long as no records were compacted. Raises
    :class:`~hal.errors.JournalError` for a journal with a hole, or with a record that cannot follow the ones before it.
    """
    try:
        snapshot = store.snapshot()
    except JournalError as error:
        if store.oldest():
            raise
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


def read_trail(store: Store, since: int = 0) -> Iterator[AuditLine]:
    """Yield the lines of the trail after a sequence, in blocks, so that one may append meanwhile."""
    while block := store.audit(since):
        yield from block
        since = block[-1].sequence


_TAGS: dict[type, str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(AnyRecord)}


def tag_of(record: AnyRecord) -> str:
    """Return what a type of record is called in the journal."""
    return _TAGS[type(record)]


Stored = tuple[int, float, str, str]
"""A record as the table holds it: its revision, its time, what its type is called, its JSON."""


def read_back(
    records: Sequence[AnyRecord], after: int, where: str | None = None
) -> tuple[list[Stored], list[tuple[int, AnyRecord]]]:
    """Return records that follow a revision as they are stored, and as they will be read again.

    Drivers and callers make structs that nobody has checked, and one that cannot be read again would make the whole
    journal unreadable. To read each again is the whole check, and it costs 3 to 4 us for a grant of two devices where
    writing it costs 15; what was read is not thrown away but kept for whoever watches (see ``SqliteStore.replay``).
    Raises :class:`~hal.errors.JournalError` for one that cannot be read again.
    """
    rows: list[Stored] = []
    fresh: list[tuple[int, AnyRecord]] = []
    revision = after
    for record in records:
        revision += 1
        try:
            body = encode_record(record)
            fresh.append((revision, decode_record(body)))
            rows.append((revision, record.at, _TAGS[type(record)], body.decode()))
        except (msgspec.MsgspecError, TypeError, ValueError, KeyError) as error:
            raise JournalError(
                f"a {type(record).__name__} that could not be read again: {error}",
                device=where,
                during="append",
                hint="report it; nothing was written",
            ) from error
    return rows, fresh


def _damaged(what: str) -> JournalError:
    return JournalError(f"the journal is damaged: {what}", during="replay", hint=DAMAGED)
