from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from hal.broker import command as c
from hal.broker.journal.store import Store, load_state
from hal.broker.ledger import Ledger
from hal.broker.journal.memory import MemoryStore
from hal.broker.record import BootSeen, LeaseSuspected
from hal.broker.journal.sqlite import FILE, JournalBusy, SqliteStore
from hal.errors import JournalError
from hal.interfaces.deadline import Deadline
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import claim, device, server

RECORDS = [BootSeen(at=float(i), boot_id=f"boot-{i}") for i in range(5)]


class Kept:
    """Opens the same store again and again, whatever it is kept in."""

    def __init__(self, kind, folder):
        self.kind, self.folder = kind, folder
        self.memory = MemoryStore()
        self.store = None

    def open(self):
        if self.kind == "memory":
            return self.memory
        if self.store is not None:
            self.store.close()
        self.store = SqliteStore(self.folder)
        return self.store

    def close(self):
        if self.store is not None:
            self.store.close()


@pytest.fixture(params=["memory", "sqlite"])
def kept(request, tmp_path):
    kept = Kept(request.param, tmp_path / "state")
    yield kept
    kept.close()


def test_what_was_appended_is_replayed_in_order(kept):
    store = kept.open()
    assert isinstance(store, Store)
    assert store.append(RECORDS[:2], 0) == 2
    assert store.append(RECORDS[2:], 2) == 5
    assert list(kept.open().replay()) == list(enumerate(RECORDS, 1))
    assert [revision for revision, _ in kept.open().replay(after=3)] == [4, 5]
    assert kept.open().head() == 5


def test_appending_at_another_revision_writes_nothing(kept):
    store = kept.open()
    store.append(RECORDS[:1], 0)
    for wrong in (0, 2):
        with pytest.raises(JournalError):
            store.append(RECORDS[1:], wrong)
    assert kept.open().head() == 1


def test_one_may_append_while_another_replays(kept):
    store = kept.open()
    store.append(RECORDS[:2], 0)
    seen = []
    for revision, _ in store.replay():
        seen.append(revision)
        if revision == 1:
            store.append(RECORDS[2:], 2)
    assert seen[:2] == [1, 2]
    assert [revision for revision, _ in store.replay(seen[-1])] == list(range(seen[-1] + 1, 6))


def test_a_snapshot_and_what_follows_make_the_running_state(kept):
    ledger = Ledger(kept.open(), ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    for number in range(4):
        ledger.execute(c.ClaimDevices(claim=claim(f"c{number}")))
    ledger.execute(c.Release(lease="c1"))
    lease = ledger.state.leases["c1"]
    ledger.execute(c.ProveReleased(lease="c1", fence=lease.fence, fenced={lease.devices[0].id: "?"}))
    ledger.store.save_snapshot(ledger.state.snapshot())
    ledger.execute(c.Release(lease="c2"))
    assert load_state(kept.open()).snapshot() == ledger.state.snapshot()


def test_short_lived_processes_take_snapshots_too(kept, monkeypatch):
    monkeypatch.setattr("hal.broker.ledger.SNAPSHOT_EVERY", 10)
    for number in range(8):
        ledger = Ledger(kept.open(), ManualClock())
        ledger.execute(c.Begin(boot_id=f"b{number}"))
        ledger.execute(c.Observe(devices=(device("g0", size=number),)))
    snapshot = kept.open().snapshot()
    assert snapshot is not None
    assert ledger.state.revision - snapshot.revision < 10
    assert load_state(kept.open()).snapshot() == ledger.state.snapshot()


def test_a_second_process_waits_and_is_then_told_who_has_the_journal(tmp_path):
    store = SqliteStore(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from hal.broker.journal.sqlite import SqliteStore, JournalBusy\n"
        "from hal.interfaces.deadline import Deadline\n"
        "try: SqliteStore(Path(sys.argv[1]), Deadline.after(float(sys.argv[2])))\n"
        "except JournalBusy as error: print(error); sys.exit(75)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    busy = subprocess.run([*words, "0.05"], capture_output=True, text=True, check=False)
    assert busy.returncode == 75
    assert "process" in busy.stdout
    waiting = subprocess.Popen([*words, "30"], stdout=subprocess.PIPE, text=True)
    store.close()
    assert waiting.communicate(timeout=30)[0] == ""
    assert waiting.returncode == 0


def test_a_journal_of_a_later_version_is_refused(tmp_path):
    SqliteStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(JournalError, match="schema 99"):
        SqliteStore(tmp_path)


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError):
        SqliteStore(tmp_path)


def test_the_lock_is_free_again_after_a_failed_open(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError):
        SqliteStore(tmp_path)
    (tmp_path / FILE).unlink()
    SqliteStore(tmp_path, Deadline.after(0)).close()


def test_a_closed_store_says_so(tmp_path):
    store = SqliteStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(JournalError, match="closed"):
        store.append(RECORDS, 0)


def test_an_unreadable_record_is_an_error_and_not_skipped(tmp_path):
    store = SqliteStore(tmp_path)
    store.append([LeaseSuspected(at=1.0, lease="a")], 0)
    store.close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute('UPDATE records SET body=\'{"type":"surprise"}\'')
    connection.close()
    store = SqliteStore(tmp_path)
    with pytest.raises(JournalError):
        list(store.replay())
    store.close()


# --- full and failing disks


LONG = f"name != '{'x' * 900}'"


def small_journal(tmp_path):
    """A journal that may not grow: SQLite says "database or disk is full", as it does on ENOSPC."""
    store = SqliteStore(tmp_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    pages = store._sql.execute("PRAGMA page_count").fetchone()[0]
    store._sql.execute(f"PRAGMA max_page_count={pages + 2}")
    return store, ledger


def test_a_full_disk_refuses_new_claims_and_loses_nothing(tmp_path):
    store, ledger = small_journal(tmp_path)
    granted = []

    def claim_until_it_fails():
        for number in range(100):
            answer = ledger.execute(c.ClaimDevices(claim=claim(f"c{number}", where=LONG)))
            assert isinstance(answer, c.Granted)
            granted.append(answer.lease)

    with pytest.raises(JournalError, match="full"):
        claim_until_it_fails()
    assert granted
    before = ledger.state.snapshot()
    assert [lease.id for lease in before.leases] == [lease.id for lease in granted]
    with pytest.raises(JournalError):
        ledger.execute(c.ClaimDevices(claim=claim("again", where=LONG)))
    store._sql.execute("PRAGMA max_page_count=100000")
    ledger.execute(c.Release(lease=granted[0].id))
    store.close()
    after = load_state(SqliteStore(tmp_path))
    assert set(after.leases) == {lease.id for lease in granted}


class Failing(MemoryStore):
    """Fails an append, before or after it took place, and may be unable to tell which."""

    def __init__(self):
        super().__init__()
        self.fail = ""
        self.blind = False

    def append(self, records, revision, audit=()):
        if self.fail == "before":
            raise JournalError("I/O error")
        super().append(records, revision, audit)
        if self.fail == "after":
            raise JournalError("I/O error")
        return len(self._records)

    def head(self):
        if self.blind:
            raise JournalError("I/O error")
        return super().head()


@pytest.fixture
def failing():
    ledger = Ledger(Failing(), ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    return ledger


def test_a_commit_that_failed_changes_nothing(failing):
    before = failing.state.snapshot()
    failing.store.fail = "before"
    with pytest.raises(JournalError):
        failing.execute(c.ClaimDevices(claim=claim("a")))
    assert failing.state.snapshot() == before
    failing.store.fail = ""
    assert isinstance(failing.execute(c.ClaimDevices(claim=claim("a"))), c.Granted)


def test_a_commit_that_took_place_all_the_same_is_acknowledged(failing):
    failing.store.fail = "after"
    assert isinstance(failing.execute(c.ClaimDevices(claim=claim("a"))), c.Granted)
    assert load_state(failing.store).snapshot() == failing.state.snapshot()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_unknown_outcome_is_resolved_before_anything_else_is_said(failing, when):
    failing.store.fail, failing.store.blind = when, True
    with pytest.raises(JournalError):
        failing.execute(c.ClaimDevices(claim=claim("a")))
    failing.store.fail = ""
    with pytest.raises(JournalError):
        failing.preview(c.ClaimDevices(claim=claim("b")))
    failing.store.blind = False
    assert isinstance(failing.execute(c.ClaimDevices(claim=claim("b"))), c.Granted)
    assert ("a" in failing.state.leases) == (when == "after")
    assert load_state(failing.store).snapshot() == failing.state.snapshot()


def test_busy_is_a_journal_error():
    assert issubclass(JournalBusy, JournalError)
