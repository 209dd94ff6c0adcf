from __future__ import annotations

import pytest

from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import JournalBusy, SqliteStore
from hal.broker.journal.store import load_state
from hal.broker.ledger import Ledger
from hal.broker.record import BootSeen
from hal.errors import JournalError
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import claim, server

RECORDS = [BootSeen(at=float(i), boot_id=f"boot-{i}") for i in range(5)]


# --- full and failing disks


LONG = f"name != '{'x' * 900}'"


def small_journal(memory_path):
    """A journal that may not grow: SQLite says "database or disk is full", as it does on ENOSPC."""
    store = SqliteStore(memory_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    pages = store._sql.execute("PRAGMA page_count").fetchone()[0]
    store._sql.execute(f"PRAGMA max_page_count={pages + 2}")
    return store, ledger


def test_a_full_disk_refuses_new_claims_and_loses_nothing(memory_path):
    store, ledger = small_journal(memory_path)
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
    after = load_state(SqliteStore(memory_path))
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
