"""A journal in SQLite: write-ahead log, ``synchronous=FULL``, one connection in one process.

SQLite before 3.51.3 can corrupt a write-ahead log that two connections reset (https://sqlite.org/wal.html#walresetbug),
so the folder is locked with ``flock`` as long as it is open: whoever comes second waits until a deadline. The file
itself is locked, too (``locking_mode=EXCLUSIVE``): to read it with other programs, close the broker first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence, Set
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from hal.broker.journal import schema
from hal.broker.journal.audit import Anchor, AuditEntry, AuditLine, AuditReport, Row, Verifier, line_of, seal, tail_of
from hal.broker.journal.compacted import Compacted
from hal.broker.journal.file import FILE, FULL, JournalFile
from hal.broker.journal.lock import JournalBusy
from hal.broker.journal.reserve import BYTES
from hal.broker.journal.schema import SCHEMA
from hal.broker.journal.snapshots import AT_ONCE, REST, compaction_entry, join, refuse_compaction, split
from hal.broker.journal.store import ENDING, NEW, JournalFull, read_back, tag_of
from hal.broker.record import AnyRecord, decode_record
from hal.broker.state import Snapshot
from hal.errors import JournalError
from hal.interfaces.deadline import Deadline

__all__ = ["FILE", "SCHEMA", "JournalBusy", "SqliteStore"]

BLOCK = 1000
_ALL, _HALF, _NONE = 0, BYTES // 2, BYTES
"""How much of the reserve must be left over by records that give back, that keep up, and that want more."""


class SqliteStore:
    """The journal of one state folder, held by this process alone until :meth:`close`. Threads may share it.

    Raises :class:`JournalBusy` if another process holds it until the deadline, and
    :class:`~hal.errors.JournalError` if it is damaged, unreadable or from a newer version.
    """

    def __init__(self, folder: Path, deadline: Deadline | None = None) -> None:
        self.folder = folder
        self._file = JournalFile(folder, deadline or Deadline.after(5))

    @property
    def _sql(self) -> sqlite3.Connection:
        return self._file.sql

    # --- the records

    def append(self, records: Sequence[AnyRecord], revision: int, audit: Sequence[AuditEntry] = ()) -> int:
        """See :class:`~hal.broker.journal.store.Store`; one transaction, on the disk when it returns."""
        with self._file.thread:
            _ = self._sql  # what became of the last commit is known from here on
            if revision != self._file.head:
                raise JournalError(f"the journal is at revision {self._file.head}, not {revision}", during="append")
            if not records and not audit:
                return revision
            floor = self._floor({tag_of(record) for record in records})
            rows, fresh = read_back(records, revision, str(self._file.path))
            head = revision + len(rows)
            lines = self._file.guard("append", lambda: seal(audit, self._file.tail, head))
            signature = self._signature()

            def work(connection: sqlite3.Connection) -> None:
                if rows:
                    connection.executemany(schema.ADD_RECORD, rows)
                if lines:
                    connection.executemany(schema.ADD_LINE, lines)
                if signature is not None:
                    connection.execute(schema.SET_META, ("written_by", signature))

            def then() -> None:
                self._file.head = head
                self._file.recent.extend(fresh)
                self._file.written_by = signature or self._file.written_by
                self._follow(lines)

            self._file.transact("append", floor, work, then)
            return head

    def _floor(self, tags: Set[str]) -> int:
        """Return how much of the reserve these records must leave; refuse new ones while it is not whole."""
        if not tags or tags <= ENDING:
            return _ALL
        if NEW.isdisjoint(tags):
            return _HALF
        if not self._file.has_room():
            raise JournalFull(
                "the disk is full, and what is left is kept for ending leases",
                device=str(self._file.path),
                during="append",
                hint=FULL,
            )
        return _NONE

    def _signature(self) -> str | None:
        """Return what an older hal that comes later may need to say why it cannot read a record: who wrote it."""
        own = schema.own_version()
        return own if self._file.written_by is None or schema.is_newer(own, self._file.written_by) else None

    def _follow(self, lines: Sequence[Row]) -> None:
        if lines:
            self._file.tail = tail_of(lines)

    def head(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`; read from the file again."""
        with self._file.thread:
            if self._sql is not None:
                self._file.guard("read", self._file.look)
            return self._file.head

    def oldest(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        with self._file.thread:
            return self._file.oldest

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """See :class:`~hal.broker.journal.store.Store`; reads in blocks, so that one may append meanwhile."""
        reached = after
        while block := self._block(reached):
            yield from block
            reached = block[-1][0]

    def _block(self, after: int) -> list[tuple[int, AnyRecord]]:
        with self._file.thread:
            connection = self._sql
            if after < self._file.oldest:
                raise Compacted(after, self._file.oldest)
            if after >= self._file.head:
                return []
            if self._file.recent and after >= self._file.recent[0][0] - 1:
                skipped = after - (self._file.recent[0][0] - 1)
                return list(islice(self._file.recent, skipped, skipped + BLOCK))
            statement = "SELECT revision, body FROM records WHERE revision > ? ORDER BY revision LIMIT ?"
            rows = self._file.guard("replay", lambda: connection.execute(statement, (after, BLOCK)).fetchall())
        return [
            (int(revision), self._file.guard("replay", partial(self._read, revision, body))) for revision, body in rows
        ]

    def _read(self, revision: int, body: str | bytes) -> AnyRecord:
        try:
            return decode_record(body)
        except msgspec.ValidationError as error:
            own, other = schema.own_version(), self._file.written_by or "of an unknown version"
            if not schema.is_newer(other, own):
                raise
            raise JournalError(
                f"revision {revision} is from a later version of hal ({other}; this is {own}): {error}",
                device=str(self._file.path),
                during="replay",
                hint=f"use hal {other} or a later one",
            ) from error

    # --- snapshots

    def snapshot(self) -> Snapshot | None:
        """See :class:`~hal.broker.journal.store.Store`."""
        with self._file.thread:
            connection = self._sql
            revision = self._file.guard("replay", partial(_newest, connection))
            if revision is None:
                return None
            # Part 0, which closes a snapshot, is its last one; there may be parts of an unfinished one besides.
            statement = "SELECT field, body FROM snapshots WHERE revision = ? ORDER BY part = 0, part"
            return self._file.guard("replay", lambda: join(connection.execute(statement, (revision,)).fetchall()))

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :class:`~hal.broker.journal.store.Store`; keeps the newest alone."""
        for _ in self.saving(snapshot):
            pass

    def saving(self, snapshot: Snapshot) -> Iterator[None]:
        """See :class:`~hal.broker.journal.store.Store`."""
        number, revision = 0, snapshot.revision
        with self._file.thread:
            newest = self._file.guard("snapshot", partial(_newest, self._sql))
        if newest is None or newest < revision:
            for number, (field, body) in enumerate(split(snapshot), 1):
                if field != REST:
                    self._keep(
                        "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", revision, number, field, body.decode()
                    )
                    yield
            self._keep_last(revision, number - 1, body.decode())
            yield
        while self._dropped_parts(revision):
            yield

    def _keep(self, statement: str, *values: object) -> None:
        with self._file.thread:
            self._file.transact("snapshot", _NONE, lambda connection: connection.execute(statement, values), _nothing)

    def _keep_last(self, revision: int, parts: int, body: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            there = "SELECT count(*) FROM snapshots WHERE revision = ? AND part BETWEEN 1 AND ?"
            if connection.execute(there, (revision, parts)).fetchone()[0] != parts:
                raise ValueError("a newer snapshot was saved meanwhile")
            connection.execute("DELETE FROM snapshots WHERE revision = ? AND part > ?", (revision, parts))
            connection.execute("INSERT INTO snapshots VALUES (?, 0, ?, ?)", (revision, REST, body))

        with self._file.thread:
            self._file.transact("snapshot", _NONE, work, _nothing)

    def _dropped_parts(self, revision: int) -> bool:
        """Drop some of what older snapshots left, the closing part first; False if there is nothing more."""
        some = "SELECT rowid FROM snapshots WHERE revision < ? ORDER BY revision, part LIMIT 16"
        statement = f"DELETE FROM snapshots WHERE rowid IN ({some})"
        many = 0

        def work(connection: sqlite3.Connection) -> None:
            nonlocal many
            many = connection.execute(statement, (revision,)).rowcount

        with self._file.thread:
            self._file.transact("snapshot", _ALL, work, _nothing)
        return many > 0

    # --- compaction

    def compact(self, revision: int) -> int:
        """See :class:`~hal.broker.journal.store.Store`."""
        for _ in self.compacting(revision):
            pass
        return self.oldest()

    def compacting(self, revision: int) -> Iterator[None]:
        """See :class:`~hal.broker.journal.store.Store`."""
        while self.oldest() < revision:
            self._compact_some(revision)
            yield

    def _compact_some(self, revision: int) -> None:
        with self._file.thread:
            connection = self._sql
            refuse_compaction(revision, self._file.guard("compact", partial(_newest, connection)))
            oldest = self._file.oldest
            until = min(revision, oldest + AT_ONCE)
            statement = "SELECT at, body FROM records WHERE revision > ? AND revision <= ? ORDER BY revision"
            rows = self._file.guard("compact", lambda: connection.execute(statement, (oldest, until)).fetchall())
            bodies = [body.encode() if isinstance(body, str) else body for _, body in rows]
            lines = seal((compaction_entry(oldest, rows[-1][0], bodies),), self._file.tail, self._file.head)

            def work(connection: sqlite3.Connection) -> None:
                connection.execute("DELETE FROM records WHERE revision <= ?", (until,))
                connection.execute(schema.SET_META, ("compacted", str(until)))
                connection.executemany(schema.ADD_LINE, lines)

            def then() -> None:
                self._file.oldest = until
                self._follow(lines)

            self._file.transact("compact", _ALL, work, then)

    # --- the trail

    def audit(self, since: int = 0, limit: int = 1000) -> list[AuditLine]:
        """See :class:`~hal.broker.journal.store.Store`."""
        return [self._file.guard("audit", partial(line_of, row)) for row in self._lines(since, limit)]

    def _lines(self, since: int, limit: int) -> list[tuple[object, ...]]:
        statement = "SELECT * FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?"
        with self._file.thread:
            connection = self._sql
            return self._file.guard("audit", lambda: connection.execute(statement, (since, limit)).fetchall())

    def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """See :class:`~hal.broker.journal.store.Store`; reads in blocks, so that one may append meanwhile."""
        verifier, since = Verifier(anchor), 0
        while rows := self._lines(since, BLOCK):
            for row in rows:
                try:
                    line = line_of(row)
                except msgspec.ValidationError as error:
                    verifier.why = str(error)
                    break
                if not verifier.take(line):
                    break
            if verifier.why:
                break
            since = line.sequence
        with self._file.thread:
            return verifier.report(self._file.head)

    def close(self) -> None:
        """See :class:`~hal.broker.journal.store.Store`."""
        self._file.close()


def _nothing() -> None:
    """Nothing in memory follows from it."""


def _newest(connection: sqlite3.Connection) -> int | None:
    """Return the revision of the newest snapshot that is complete."""
    row = connection.execute("SELECT max(revision) FROM snapshots WHERE part = 0").fetchone()
    return None if row[0] is None else int(row[0])
