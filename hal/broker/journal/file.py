"""The journal's file as long as it is open: transactions, what to do when one fails, and room for the last ones.

A commit that fails leaves it open what is on the disk, except for a full disk, where SQLite does not get as far as the
frame that makes a transaction count. After any other failure the file is closed, opened anew and brought in order with
a checkpoint, which writes and syncs every page once more: a page cache that forgot a failed ``fsync`` is not believed.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from hal.broker.journal import schema
from hal.broker.journal.audit import GENESIS
from hal.broker.journal.lock import wait_for
from hal.broker.journal.reserve import BYTES, Reserve
from hal.broker.journal.store import DAMAGED, JournalFull
from hal.broker.record import AnyRecord
from hal.errors import JournalError
from hal.interfaces.deadline import Deadline

FILE = "journal.sqlite"
FULL = "make room on this disk; nothing was written, and nothing acknowledged was lost"
LEAN_PAGES = 16
RECENT = 1024
"""How many of the last records are kept as they were read back, for those who follow close behind."""
Work = Callable[[sqlite3.Connection], object]
_T = TypeVar("_T")


class JournalFile:
    """One connection, and in memory what stands at the ends of the file. Who uses it holds ``thread``."""

    def __init__(self, folder: Path, deadline: Deadline) -> None:
        self.path = folder / FILE
        self.thread = threading.RLock()
        self.head = self.oldest = 0
        self.tail = (0, GENESIS)
        self.written_by: str | None = None
        self.recent: deque[tuple[int, AnyRecord]] = deque(maxlen=RECENT)
        self.reserve = Reserve(folder)
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._doubt = False
        self._lean = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(
                f"the state folder cannot be used: {error}", during="open", hint="--state FOLDER names another"
            ) from error
        try:
            self.guard("open", lambda: wait_for(self._lock, folder, deadline))
            self._connection = self.guard("open", lambda: schema.prepare(self.path))
            self.guard("open", self.look)
        except BaseException:
            self.close()
            raise

    # --- what can go wrong

    def guard(self, step: str, work: Callable[[], _T]) -> _T:
        """Do the work; whatever file or content make of it becomes a :class:`~hal.errors.JournalError`."""
        try:
            return work()
        except (sqlite3.Error, OSError, msgspec.MsgspecError, TypeError, ValueError) as error:
            what, file = f"{type(error).__name__}: {error}", str(self.path)
            if _is_full(error):
                raise JournalFull(what, device=file, during=step, hint=FULL) from error
            # OperationalError is the disk, the lock or the permission; any other is what stands in the file.
            passing = isinstance(error, sqlite3.OperationalError | OSError) and "no such table" not in str(error)
            hint = "look for a failing disk; nothing acknowledged was lost" if passing else DAMAGED
            raise JournalError(what, device=file, during=step, hint=hint) from error

    @property
    def sql(self) -> sqlite3.Connection:
        """The connection, in order: what became of the last commit is known."""
        if self._closed:
            raise JournalError("the journal is closed", device=str(self.path), hint="open the broker again")
        if self._doubt or self._connection is None:
            self._reopen()
        assert self._connection is not None
        return self._connection

    def _reopen(self) -> None:
        """Ask the file what is in it, and let nothing count that is not surely on the disk."""
        connection, self._connection = self._connection, None
        self._doubt = True
        if connection is not None:
            self.guard("reopen", connection.close)
        fresh = self._connection = self.guard("reopen", lambda: schema.connect(self.path))
        self._lean = False
        self._with_room(0, lambda: self.guard("reopen", partial(schema.settle, fresh)))
        self.guard("reopen", self.look)
        self._doubt = False

    def look(self) -> None:
        """Read what stands at the ends of the file."""
        connection = self._connection or self.sql
        self.recent.clear()
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        self.oldest = int(meta.get("compacted", "0"))
        self.written_by = meta.get("written_by")
        last = connection.execute("SELECT coalesce(max(revision), 0) FROM records").fetchone()[0]
        self.head = max(int(last), self.oldest)
        tail = connection.execute("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
        # A trail that was broken goes on from what stands there; that it is broken, those say who verify it.
        sequence, digest = tail if tail is not None else (0, GENESIS)
        self.tail = sequence, digest if isinstance(digest, bytes) else str(digest).encode()

    def transact(self, step: str, floor: int, work: Work, then: Callable[[], object]) -> None:
        """Do the work in one transaction, and ``then``, in memory, what follows from its being durable.

        On a full disk the reserve is used, until ``floor`` bytes of it are left.
        """
        self._with_room(floor, lambda: self.guard(step, lambda: self._try(work, then)))

    def _try(self, work: Work, then: Callable[[], object]) -> None:
        connection = self.sql
        # From here on nobody knows; an interrupt, too, leaves it so.
        self._doubt = True
        try:
            connection.execute("BEGIN IMMEDIATE")
            work(connection)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._doubt = False
            raise
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._doubt = not _is_full(error)
            raise
        then()
        self._doubt = False

    def _with_room(self, floor: int, work: Callable[[], None]) -> None:
        """Do it; on a full disk write the log over from its start, and then use the reserve down to ``floor``."""
        try:
            work()
            return
        except JournalFull:
            if floor >= BYTES:
                raise
        self._write_lean(True)
        given = True
        while given:
            self._empty_log()
            try:
                work()
                return
            except JournalFull:
                given = self.reserve.give(floor)
        raise JournalFull("the reserve is used up", device=str(self.path), during="append", hint=FULL)

    def has_room(self) -> bool:
        """Make the reserve whole again, if there is room for it; False if there is none."""
        if not self.reserve.restore():
            return False
        self._write_lean(False)
        return True

    def _write_lean(self, lean: bool) -> None:
        """On a full disk keep the log short, or it takes what was given up and leaves nothing to the file itself."""
        if self._connection is not None and lean != self._lean:
            self._connection.execute(f"PRAGMA wal_autocheckpoint={LEAN_PAGES if lean else schema.CHECKPOINT_PAGES}")
            self._lean = lean

    def _empty_log(self) -> None:
        if self._connection is not None:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
            except sqlite3.Error:
                pass  # it needs room as well; the work itself tells whether there was enough

    def close(self) -> None:
        """Let go of the file and the lock."""
        with self.thread:
            self._closed = True
            connection, self._connection = self._connection, None
            lock, self._lock = self._lock, -1
            try:
                if connection is not None:
                    connection.close()
            finally:  # whatever breaks off here (Ctrl-C, too): the next one to open it must not wait for us
                if lock >= 0:
                    os.close(lock)


def _is_full(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
