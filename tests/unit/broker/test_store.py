from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from hal.broker import command as c
from hal.broker.journal.audit import Anchor, AuditEntry, AuditReport, export_lines, verify_lines
from hal.broker.journal.compacted import Compacted
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import Store, load_state, read_trail
from hal.broker.ledger import Ledger
from hal.broker.record import BootSeen, LeaseSuspected
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
def kept(request, memory_path):
    kept = Kept(request.param, memory_path / "state")
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


# --- the trail


def entry(number=0, **fields):
    named = {"at": float(number), "actor": "uid 1000", "tenant": "physics", "verb": "claim", "subject": f"c{number}"}
    return AuditEntry(**named | fields)


def test_the_trail_is_written_with_the_records_and_stays_verified(kept):
    store = kept.open()
    store.append(RECORDS[:2], 0, [entry(1), entry(2, revision=1)])
    store.append(RECORDS[2:], 2, [entry(3, detail="why\x00not\udcff")])
    lines = kept.open().audit()
    assert [(line.sequence, line.revision, line.subject) for line in lines] == [
        (1, 2, "c1"),
        (2, 1, "c2"),
        (3, 5, "c3"),
    ]
    assert lines[2].detail == "why\x00not\\udcff"
    assert kept.open().audit(since=1, limit=1) == lines[1:2]
    assert kept.open().verify_audit() == AuditReport(ok=True, lines=3, head=Anchor(3, lines[2].hash))


def test_a_refusal_leaves_a_trail_and_no_record(kept):
    store = kept.open()
    store.append(RECORDS[:1], 0)
    assert store.append((), 1, [entry(verb="cordon", detail="not an operator")]) == 1
    assert kept.open().head() == 1
    assert kept.open().audit()[0].revision == 1


def test_what_is_not_written_leaves_no_trail(kept):
    store = kept.open()
    with pytest.raises(JournalError):
        store.append(RECORDS[:1], 7, [entry()])
    assert store.audit() == []
    store.append(RECORDS[:1], 0, [entry()])
    assert store.verify_audit().ok


def test_a_remembered_line_is_missed_when_the_end_of_the_trail_is_gone(kept):
    store = kept.open()
    store.append(RECORDS[:1], 0, [entry(1)])
    remembered = store.verify_audit().head
    store.append(RECORDS[1:2], 1, [entry(2)])
    assert store.verify_audit(remembered).ok
    assert not store.verify_audit(Anchor(3, "00" * 32)).ok
    assert store.verify_audit(Anchor(1, "00" * 32)).broken == 1


def test_an_exported_trail_can_be_checked_without_the_journal(kept):
    store = kept.open()
    store.append(RECORDS, 0, [entry(number) for number in range(1, 6)])
    text = list(export_lines(read_trail(store)))
    assert verify_lines(text) == store.verify_audit()
    assert verify_lines([*text[:2], *text[3:]]).broken == 3
    assert verify_lines([*text[:2], text[2].replace(b"c3", b"c4"), *text[3:]]).broken == 3
    assert verify_lines([*text[:2], b"{", *text[3:]]).broken == 3


# --- snapshots in steps, compaction


def busy_ledger(store, leases=5):
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    for number in range(leases):
        ledger.execute(c.ClaimDevices(claim=claim(f"c{number}")))
    return ledger


def test_others_append_while_a_snapshot_is_saved_in_steps(kept, monkeypatch):
    monkeypatch.setattr("hal.broker.journal.snapshots.AT_ONCE", 2)
    ledger = busy_ledger(kept.open())
    first = ledger.state.snapshot()
    steps = 0
    for steps, _ in enumerate(ledger.store.saving(first), 1):
        ledger.execute(c.Renew(lease="c0", ttl_seconds=60.0 + steps))
    assert ledger.store.snapshot() == first
    assert load_state(kept.open()).snapshot() == ledger.state.snapshot()
    if kept.kind != "memory":
        assert steps > 10


def test_a_snapshot_that_was_not_finished_does_not_count(kept, monkeypatch):
    monkeypatch.setattr("hal.broker.journal.snapshots.AT_ONCE", 2)
    ledger = busy_ledger(kept.open())
    first = ledger.state.snapshot()
    ledger.store.save_snapshot(first)
    ledger.execute(c.Release(lease="c0"))
    saving = ledger.store.saving(ledger.state.snapshot())
    if kept.kind != "memory":
        for _ in range(3):
            next(saving)
        assert kept.open().snapshot() == first
    ledger.store = kept.open()
    ledger.execute(c.Release(lease="c1"))
    ledger.store.save_snapshot(ledger.state.snapshot())
    assert kept.open().snapshot() == ledger.state.snapshot()
    if kept.kind != "memory":
        revisions = kept.open()._sql.execute("SELECT DISTINCT revision FROM snapshots").fetchall()
        assert revisions == [(ledger.state.revision,)], "what was left of the others is gone"


def test_compaction_drops_records_and_the_numbering_goes_on(kept, monkeypatch):
    monkeypatch.setattr("hal.broker.journal.sqlite.AT_ONCE", 7)
    monkeypatch.setattr("hal.broker.journal.memory.AT_ONCE", 7)
    ledger = busy_ledger(kept.open())
    middle, state = ledger.state.revision, ledger.state.snapshot()
    lines = len(ledger.store.audit())
    assert kept.open().oldest() == 0
    ledger.store = kept.open()
    ledger.store.save_snapshot(state)
    assert ledger.store.compact(middle - 1) == middle - 1
    assert ledger.store.compact(middle) == middle
    assert kept.open().oldest() == middle == kept.open().head()
    assert load_state(kept.open()).snapshot() == state
    ledger.store = kept.open()
    ledger.execute(c.Release(lease="c0"))
    assert ledger.state.revision == middle + 1
    assert [revision for revision, _ in ledger.store.replay(middle)] == [middle + 1]
    assert load_state(kept.open()).snapshot() == ledger.state.snapshot()
    dropped = [line for line in kept.open().audit() if line.verb == "compact"]
    assert len(kept.open().audit()) >= lines + len(dropped)
    assert "records 1 to 7 dropped" in dropped[0].detail
    assert kept.open().verify_audit().ok


def test_who_replays_from_what_was_compacted_is_told_where_to_go_on(kept, monkeypatch):
    monkeypatch.setattr("hal.broker.journal.sqlite.BLOCK", 4)
    ledger = busy_ledger(kept.open())
    late = ledger.store.replay(0)
    next(late)
    ledger.store.save_snapshot(ledger.state.snapshot())
    for _ in range(12):
        ledger.execute(c.Renew(lease="c0"))
    ledger.store.save_snapshot(ledger.state.snapshot())
    ledger.store.compact(ledger.state.revision)
    with pytest.raises(Compacted) as raised:
        list(ledger.store.replay(3))
    assert raised.value.oldest == ledger.state.revision
    assert raised.value.hint
    with pytest.raises(Compacted):
        list(late)
    assert list(ledger.store.replay(raised.value.oldest)) == []


def test_records_that_no_snapshot_holds_are_not_compacted(kept):
    ledger = busy_ledger(kept.open())
    with pytest.raises(JournalError, match="snapshot"):
        ledger.store.compact(3)
    ledger.store.save_snapshot(ledger.state.snapshot())
    ledger.execute(c.Release(lease="c0"))
    with pytest.raises(JournalError, match="still needed"):
        ledger.store.compact(ledger.state.revision)
    assert ledger.store.oldest() == 0
    assert len(list(kept.open().replay())) == ledger.state.revision


def test_a_second_process_waits_and_is_then_told_who_has_the_journal(memory_path):
    store = SqliteStore(memory_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from hal.broker.journal.sqlite import SqliteStore, JournalBusy\n"
        "from hal.interfaces.deadline import Deadline\n"
        "try: SqliteStore(Path(sys.argv[1]), Deadline.after(float(sys.argv[2])))\n"
        "except JournalBusy as error: print(error); sys.exit(75)\n"
    )
    words = [sys.executable, "-c", program, str(memory_path)]
    busy = subprocess.run([*words, "0.05"], capture_output=True, text=True, check=False)
    assert busy.returncode == 75
    assert "process" in busy.stdout
    waiting = subprocess.Popen([*words, "30"], stdout=subprocess.PIPE, text=True)
    store.close()
    assert waiting.communicate(timeout=30)[0] == ""
    assert waiting.returncode == 0


def test_a_journal_of_a_later_version_is_refused(memory_path):
    SqliteStore(memory_path).close()
    with sqlite3.connect(memory_path / FILE) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(JournalError, match="schema 99"):
        SqliteStore(memory_path)


def test_a_file_that_is_no_journal_is_refused(memory_path):
    (memory_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError):
        SqliteStore(memory_path)


def test_the_lock_is_free_again_after_a_failed_open(memory_path):
    (memory_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError):
        SqliteStore(memory_path)
    (memory_path / FILE).unlink()
    SqliteStore(memory_path, Deadline.after(0)).close()


def test_a_commit_that_was_interrupted_after_it_took_place_is_replayed_in_its_place(memory_path):
    store = SqliteStore(memory_path)
    store.append(RECORDS[:1], 0)
    transact = store._file.transact

    def interrupted(step, floor, work, then):
        def interrupt():
            raise KeyboardInterrupt

        transact(step, floor, work, interrupt)

    store._file.transact = interrupted
    with pytest.raises(KeyboardInterrupt):
        store.append(RECORDS[1:3], 1, [entry(1)])
    store._file.transact = transact
    assert store.head() == 3
    store.append(RECORDS[3:], 3, [entry(2)])
    assert list(store.replay()) == list(enumerate(RECORDS, 1))
    assert store.verify_audit().lines == 2
    store.close()


def test_a_closed_store_says_so(memory_path):
    store = SqliteStore(memory_path)
    store.close()
    store.close()
    with pytest.raises(JournalError, match="closed"):
        store.append(RECORDS, 0)


def test_an_unreadable_record_is_an_error_and_not_skipped(memory_path):
    store = SqliteStore(memory_path)
    store.append([LeaseSuspected(at=1.0, lease="a")], 0)
    store.close()
    with sqlite3.connect(memory_path / FILE) as connection:
        connection.execute('UPDATE records SET body=\'{"type":"surprise"}\'')
    connection.close()
    store = SqliteStore(memory_path)
    with pytest.raises(JournalError):
        list(store.replay())
    store.close()
