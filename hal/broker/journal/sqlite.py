"""A journal in SQLite: write-ahead log, ``synchronous=FULL``, one connection in one process.

SQLite before 3.51.3 can corrupt a write-ahead log that two connections reset (https://sqlite.org/wal.html#walresetbug),
so the folder is locked with ``flock`` as long as it is open: whoever comes second waits until a deadline.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from hal.broker.journal.store import DAMAGED
from hal.broker.record import AnyRecord, decode_record, encode_record
from hal.broker.state import Snapshot
from hal.errors import JournalError
from hal.interfaces.deadline import Deadline

SCHEMA = 1
FILE = "journal.sqlite"
_T = TypeVar("_T")
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (revision INTEGER PRIMARY KEY, at REAL NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE snapshots (revision INTEGER PRIMARY KEY, body TEXT NOT NULL);
"""


class JournalBusy(JournalError):
    """Another process has the journal open; trying again later will help."""


class SqliteStore:
    """The journal of one state folder, held by this process alone until :meth:`close`.

    Raises :class:`JournalBusy` if another process holds it until the deadline, and
    :class:`~hal.errors.JournalError` if it is damaged, unreadable or from a newer version.
    """

    def __init__(self, folder: Path, deadline: Deadline | None = None) -> None:
        self.folder = folder
        self._connection: sqlite3.Connection | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(
                f"the state folder cannot be used: {error}", during="open", hint="--state FOLDER names another"
            ) from error
        try:
            self._guard("open", lambda: _wait_for(self._lock, folder, deadline or Deadline.after(5)))
            self._connection = self._guard("open", self._open)
            self._head = self._guard("open", self._read_head)
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.folder / FILE, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={SCHEMA};COMMIT;")
            elif version != SCHEMA:
                raise JournalError(
                    f"the journal has schema {version}, this version of hal reads {SCHEMA}",
                    during="open",
                    hint="use the version of hal that wrote it, or another --state FOLDER",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _guard(self, step: str, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (sqlite3.Error, OSError, msgspec.DecodeError, TypeError, ValueError) as error:
            # OperationalError is the disk, the lock or the permission; any other is what stands in the file.
            passing = isinstance(error, sqlite3.OperationalError | OSError) and "no such table" not in str(error)
            raise JournalError(
                f"{type(error).__name__}: {error}",
                device=str(self.folder / FILE),
                during=step,
                hint="look for a full or failing disk; nothing acknowledged was lost" if passing else DAMAGED,
            ) from error

    @property
    def _sql(self) -> sqlite3.Connection:
        if self._connection is None:
            raise JournalError("the journal is closed", device=str(self.folder / FILE), hint="open the broker again")
        return self._connection

    def append(self, records: Sequence[AnyRecord], revision: int) -> int:
        """See :class:`~hal.broker.journal.store.Store`; one transaction, on the disk when it returns."""
        if revision != self._head:
            raise JournalError(f"the journal is at revision {self._head}, not {revision}", during="append")
        rows = [self._row(number, record) for number, record in enumerate(records, revision + 1)]
        self._guard("append", lambda: self._write("INSERT INTO records VALUES (?, ?, ?, ?)", rows))
        self._head = revision + len(rows)
        return self._head

    def _row(self, number: int, record: AnyRecord) -> tuple[object, ...]:
        """Return a record as it is stored; one that could not be read again would make the whole journal unreadable."""
        try:
            body = encode_record(record)
            decode_record(body)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            raise JournalError(
                f"a {type(record).__name__} that could not be read again: {error}",
                device=str(self.folder / FILE),
                during="append",
                hint="report it; nothing was written",
            ) from error
        return number, record.at, str(record.__struct_config__.tag), body.decode()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        connection = self._sql
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(statement, rows)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def head(self) -> int:
        """See :class:`~hal.broker.journal.store.Store`; read from the file again."""
        self._head = self._guard("read", self._read_head)
        return self._head

    def _read_head(self) -> int:
        connection = self._connection or self._sql
        return int(connection.execute("SELECT coalesce(max(revision), 0) FROM records").fetchone()[0])

    def replay(self, after: int = 0) -> Iterator[tuple[int, AnyRecord]]:
        """See :class:`~hal.broker.journal.store.Store`; reads in blocks, so that one may append meanwhile."""
        reached = after
        while block := self._guard("replay", partial(self._block, reached)):
            yield from block
            reached = block[-1][0]

    def _block(self, after: int) -> list[tuple[int, AnyRecord]]:
        statement = "SELECT revision, body FROM records WHERE revision > ? ORDER BY revision LIMIT 1000"
        rows = self._sql.execute(statement, (after,)).fetchall()
        return [(int(revision), decode_record(body)) for revision, body in rows]

    def snapshot(self) -> Snapshot | None:
        """See :class:`~hal.broker.journal.store.Store`."""
        statement = "SELECT body FROM snapshots ORDER BY revision DESC LIMIT 1"
        row = self._guard("replay", lambda: self._sql.execute(statement).fetchone())
        return None if row is None else self._guard("replay", lambda: msgspec.json.decode(row[0], type=Snapshot))

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See :class:`~hal.broker.journal.store.Store`; keeps the newest alone."""
        body = msgspec.json.encode(snapshot).decode()
        rows = [(snapshot.revision, body)]
        self._guard("snapshot", lambda: self._write("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", rows))
        old = [(snapshot.revision,)]
        self._guard("snapshot", lambda: self._write("DELETE FROM snapshots WHERE revision < ?", old))

    def close(self) -> None:
        """See :class:`~hal.broker.journal.store.Store`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _wait_for(lock: int, folder: Path, deadline: Deadline) -> None:
    """Take the lock, or say who has it."""
    pause = 0.002
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.expired:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise JournalBusy(
                    f"process {holder} has the journal open",
                    device=str(folder),
                    during="open",
                    hint="wait for it to end, or use another --state FOLDER",
                ) from None
            time.sleep(min(pause, deadline.remaining_seconds))
            pause = min(pause * 2, 0.05)
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return
