"""A disk that fails: SQLite's own file methods are taken over, and its n-th write or sync of the log goes wrong.

Whatever was acknowledged is there afterwards; of what was not, the journal says truly whether it is there.
"""

from __future__ import annotations

import ctypes
import shutil
import sqlite3
from pathlib import Path

import pytest

from hal.broker import command as c
from hal.broker.journal import schema
from hal.broker.journal.audit import AuditEntry
from hal.broker.journal.sqlite import SqliteStore
from hal.broker.journal.store import load_state
from hal.broker.ledger import Ledger
from hal.broker.record import BootSeen
from hal.errors import JournalError
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import claim, server

FULL, IOERR_WRITE, IOERR_FSYNC = sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC
LOG, MAIN = 28, 7  # SQLITE_FCNTL_JOURNAL_POINTER, SQLITE_FCNTL_FILE_POINTER
METHODS = 19  # sqlite3_io_methods, version 3: the version and 18 functions, of 8 bytes each
WRITE, SYNC = 3, 5
WRITING = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
SYNCING = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
ALIVE = []


def library():
    """The SQLite that Python has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libsqlite3" in line:
            return ctypes.CDLL(line.split()[-1])
    pytest.skip("SQLite is built into this Python; its files cannot be got at from outside")


class Disk:
    """The files of one connection: counts writes and syncs of one of them, and lets one go wrong.

    ``how``: ``lost`` does nothing, ``torn`` writes half, ``late`` does it all; each returns ``code``.
    """

    def __init__(self, connection, file=LOG):
        assert ctypes.sizeof(ctypes.c_void_p) == 8
        # CPython's connection object starts with its head (16 bytes) and the pointer to SQLite's own.
        database = ctypes.c_void_p.from_address(id(connection) + 16)
        found = ctypes.c_void_p()
        assert library().sqlite3_file_control(database, b"main", file, ctypes.byref(found)) == 0
        self.slot = ctypes.c_void_p.from_address(found.value)
        methods = (ctypes.c_void_p * METHODS)()
        ctypes.memmove(methods, self.slot.value, ctypes.sizeof(methods))
        self.real = {WRITE: WRITING(methods[WRITE]), SYNC: SYNCING(methods[SYNC])}
        self.mine = {WRITE: WRITING(self.write), SYNC: SYNCING(self.sync)}
        for number, function in self.mine.items():
            methods[number] = ctypes.cast(function, ctypes.c_void_p).value
        self.methods = methods
        self.slot.value = ctypes.addressof(methods)
        self.countdown, self.how, self.code, self.failed = -1, "", 0, 0
        ALIVE.append(self)  # SQLite calls it as long as the file is open

    def fail(self, after, how, code):
        self.countdown, self.how, self.code = after, how, code

    def is_due(self):
        due = self.countdown == 0
        self.countdown -= 1
        self.failed += due
        return due

    def write(self, file, data, many, offset):
        if not self.is_due():
            return self.real[WRITE](file, data, many, offset)
        if self.how != "lost":
            self.real[WRITE](file, data, many // 2 if self.how == "torn" else many, offset)
        return self.code

    def sync(self, file, flags):
        if not self.is_due():
            return self.real[SYNC](file, flags)
        if self.how != "lost":
            self.real[SYNC](file, flags)
        return self.code


def entry(number):
    return AuditEntry(at=float(number), actor="a", tenant="t", verb="boot", subject=str(number))


def boots(start, many=3):
    return [BootSeen(at=float(n), boot_id=f"{n}" * 1000) for n in range(start, start + many)]


KINDS = [("lost", IOERR_WRITE), ("torn", IOERR_WRITE), ("late", IOERR_FSYNC), ("lost", IOERR_FSYNC), ("torn", FULL)]


@pytest.mark.parametrize(("how", "code"), KINDS)
def test_after_any_failure_the_journal_says_truly_what_it_holds(memory_path, how, code):
    failures = 0
    for after in range(12):
        folder = memory_path / str(after)
        store = SqliteStore(folder)
        held = boots(0)
        store.append(held, 0, [entry(0)])
        disk = Disk(store._sql)
        disk.fail(after, how, code)
        fresh = boots(3, 8)
        error = None
        try:
            store.append(fresh, 3, [entry(1)])
        except JournalError as caught:
            error = caught
        disk.countdown = -1
        head = store.head()
        failures += disk.failed
        assert disk.failed or error is None
        if error is not None:
            assert error.hint
            assert code != FULL, "records that give something back find room in the reserve"
            assert head in (3, 11)
        held += fresh[: head - 3]
        shutil.copytree(folder, memory_path / f"{after} as it is on the disk")
        more = boots(20)
        assert store.append(more, len(held), [entry(2)]) == len(held) + 3, "and it works again"
        assert [record for _, record in store.replay()] == held + more
        store.close()
        for where, expected in ((folder, held + more), (memory_path / f"{after} as it is on the disk", held)):
            store = SqliteStore(where)
            assert [record for _, record in store.replay()] == expected
            assert store.verify_audit().ok
            store.close()
    assert failures > 5


@pytest.mark.parametrize(("how", "code"), KINDS)
def test_a_claim_on_a_failing_disk_is_granted_once_or_not_at_all(memory_path, how, code):
    store = SqliteStore(memory_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    granted = {}
    for number in range(8):
        wanted = c.ClaimDevices(claim=claim(f"c{number}"))
        disk = Disk(store._sql)
        disk.fail(number, how, code)
        for _ in range(3):
            try:
                granted[wanted.claim.id] = ledger.execute(wanted).lease
                break
            except JournalError:
                continue
    assert len(granted) == 8
    assert len({lease.fence for lease in granted.values()}) == 8
    assert {lease.id: lease for lease in ledger.state.leases.values()} == granted
    store.close()
    store = SqliteStore(memory_path)
    assert load_state(store).snapshot() == ledger.state.snapshot()
    assert store.verify_audit().ok
    store.close()


def test_while_the_file_cannot_be_opened_again_nothing_is_said(memory_path, monkeypatch):
    store = SqliteStore(memory_path)
    store.append(boots(0), 0)
    Disk(store._sql).fail(0, "lost", IOERR_WRITE)
    connect = schema.connect

    def broken(path):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(schema, "connect", broken)
    for question in (
        lambda: store.append(boots(3), 3),
        store.head,
        lambda: list(store.replay()),
        lambda: store.append(boots(3), 3),
        store.snapshot,
        store.verify_audit,
    ):
        with pytest.raises(JournalError) as raised:
            question()
        assert raised.value.hint
    monkeypatch.setattr(schema, "connect", connect)
    assert store.head() == 3
    assert store.append(boots(3), 3) == 6
    store.close()


def test_a_sync_that_failed_is_not_believed_later(memory_path, monkeypatch):
    """The page cache may drop what could not be synced: nothing counts before it was written once more, and synced."""
    store = SqliteStore(memory_path)
    store.append(boots(0), 0)
    settled = []
    settle = schema.settle

    def failing(connection):
        settled.append(connection)
        if len(settled) < 3:
            raise sqlite3.OperationalError("disk I/O error")
        settle(connection)

    monkeypatch.setattr(schema, "settle", failing)
    Disk(store._sql).fail(0, "late", IOERR_WRITE)
    with pytest.raises(JournalError):
        store.append(boots(3), 3)
    for _ in range(2):
        with pytest.raises(JournalError):
            store.head()
    assert store.head() == 3
    assert len(settled) == 3
    store.close()
