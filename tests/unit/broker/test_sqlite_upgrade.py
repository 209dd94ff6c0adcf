"""A journal of schema 1 is brought up to date in place, whenever the process dies; a future one is left alone."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from hal.broker.journal import schema
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import load_state
from hal.broker.record import LeaseSuspected, encode_record
from hal.errors import JournalError

SCHEMA_1 = """
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (revision INTEGER PRIMARY KEY, at REAL NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE snapshots (revision INTEGER PRIMARY KEY, body TEXT NOT NULL);
PRAGMA user_version=1;
COMMIT;
"""


GOLDEN = (Path(__file__).parent / "journal_v1.jsonl").read_text().splitlines()
"""Records as hal of schema 1 wrote them: "a" is held, "b" and "c" are over, and a device was fenced for a while."""


def old_journal(folder, lines=GOLDEN):
    """Write what hal of schema 1 wrote, by its own statements."""
    folder.mkdir(exist_ok=True)
    connection = sqlite3.connect(folder / FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(SCHEMA_1)
    for revision, line in enumerate(lines, 1):
        record = json.loads(line)
        values = (revision, record["at"], record["type"], line)
        connection.execute("INSERT INTO records VALUES (?, ?, ?, ?)", values)
    connection.execute("INSERT INTO snapshots VALUES (3, '{}')")
    connection.close()


def assert_golden(store):
    assert [(n, plain(encode_record(record))) for n, record in store.replay()] == list(enumerate(map(plain, GOLDEN), 1))
    state = load_state(store)
    assert {name: (lease.state.value, lease.fence) for name, lease in state.leases.items()} == {
        "a": ("prepared", 1000000001)
    }
    assert {name: lease.why_ended for name, lease in state.ended.items()} == {
        "b": "done; unprepared by the agent",
        "c": "expired without being renewed; unprepared by the agent",
    }
    assert sorted(state.devices) == ["n0/gpu0", "n0/gpu1", "n0/gpu2", "n0/nic"]
    assert not state.fenced
    assert state.fence == 1000000003


def plain(text):
    """JSON without what is left out as a default by one version and not by the other."""
    return {name: value for name, value in json.loads(text).items() if value not in ([], 0.0)}


def test_a_journal_of_schema_1_is_upgraded_and_replays_equally(memory_path):
    old_journal(memory_path)
    before = (memory_path / FILE).read_bytes()
    store = SqliteStore(memory_path)
    assert_golden(store)
    assert store.snapshot() is None
    assert store.append([LeaseSuspected(at=2000.0, lease="a")], store.head()) == len(GOLDEN) + 1
    store.close()
    assert (memory_path / f"{FILE}.v1").read_bytes() == before
    assert not list(memory_path.glob("*.part"))
    store = SqliteStore(memory_path)
    assert store.head() == len(GOLDEN) + 1
    store.close()


def test_the_trail_of_an_upgraded_journal_tells_who_claimed_what(memory_path):
    old_journal(memory_path)
    store = SqliteStore(memory_path)
    lines = store.audit()
    assert [(line.verb, line.tenant, line.subject) for line in lines] == [
        ("lease-granted", "physics", "a"),
        ("lease-granted", "physics", "b"),
        ("lease-granted", "physics", "c"),
        ("lease-releasing", "physics", "b"),
        ("lease-ended", "physics", "b"),
        ("lease-suspected", "physics", "c"),
        ("lease-ended", "physics", "c"),
        ("device-repaired", "", "n0/nic"),
        ("upgrade", "", "journal"),
    ]
    assert lines[3].detail == "done"
    assert f"revision {store.head()}" in lines[-1].detail
    assert store.verify_audit().ok
    store.close()


def test_an_empty_journal_of_schema_1_is_upgraded(memory_path):
    old_journal(memory_path, [])
    store = SqliteStore(memory_path)
    assert store.head() == 0
    assert [line.verb for line in store.audit()] == ["upgrade"]
    store.close()


def test_an_old_journal_that_cannot_be_read_stays_as_it_is(memory_path):
    old_journal(memory_path)
    with sqlite3.connect(memory_path / FILE) as connection:
        connection.execute("UPDATE records SET body = 'x' WHERE type = 'lease-granted'")
    connection.close()
    before = (memory_path / FILE).read_bytes()
    with pytest.raises(JournalError) as raised:
        SqliteStore(memory_path)
    assert raised.value.hint
    assert (memory_path / FILE).read_bytes() == before


class Steps:
    """Kills this process at one of the steps of an upgrade: before and after each statement and each file's change."""

    def __init__(self, last):
        self.last, self.count = last, 0

    def step(self, *_):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work):
        def stepping(*arguments, **named):
            self.step()
            result = work(*arguments, **named)
            self.step()
            return result

        return stepping

    def connection(self):
        steps = self

        class Stepping(sqlite3.Connection):
            def execute(self, *arguments):
                return steps.around(super().execute)(*arguments)

            def executemany(self, *arguments):
                return steps.around(super().executemany)(*arguments)

            def close(self):
                return steps.around(super().close)()

        return Stepping


def upgrade_dying_at(folder, last):
    """Open the journal in a child that dies at this step; return whether it came so far."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            steps = Steps(last)
            connect = sqlite3.connect
            schema.sqlite3.connect = lambda *args, **named: connect(*args, **named, factory=steps.connection())
            for module, name in ((os, "fsync"), (os, "replace"), (schema.shutil, "copyfile")):
                setattr(module, name, steps.around(getattr(module, name)))
            SqliteStore(folder)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_crash_at_any_step_of_an_upgrade_loses_nothing(memory_path):
    last, alive = 0, False
    while not alive:
        last += 1
        here = memory_path / str(last)
        old_journal(here)
        alive = not upgrade_dying_at(here, last)
        store = SqliteStore(here)
        assert_golden(store)
        assert store.verify_audit().ok
        assert [line.verb for line in store.audit()].count("upgrade") == 1
        store.close()
        copy = sqlite3.connect(here / f"{FILE}.v1")
        assert copy.execute("SELECT count(*) FROM records").fetchone() == (len(GOLDEN),), last
        copy.close()
    assert last > 40, "so many times it died"


# --- what a later version of hal has written


def later(folder, body, version="99.1.0"):
    store = SqliteStore(folder)
    store.append([LeaseSuspected(at=1.0, lease="a")], 0)
    store.close()
    with sqlite3.connect(folder / FILE) as connection:
        connection.execute("UPDATE records SET body = ?", (body,))
        if version:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'written_by'", (version,))
    connection.close()
    return SqliteStore(folder)


def test_a_record_type_of_a_later_version_is_said_to_be_that(memory_path):
    store = later(memory_path, '{"type":"lease-parked","lease":"a","at":1.0}')
    with pytest.raises(JournalError, match=r"revision 1 .*99\.1\.0.*lease-parked") as raised:
        list(store.replay())
    assert "99.1.0" in raised.value.hint
    store.close()


def test_a_record_type_that_no_version_is_known_to_write_is_damage(memory_path):
    store = later(memory_path, '{"type":"lease-parked","lease":"a","at":1.0}', version="")
    with pytest.raises(JournalError, match="lease-parked"):
        list(store.replay())
    store.close()


def test_a_new_optional_field_of_a_record_is_no_obstacle(memory_path):
    store = later(memory_path, '{"type":"lease-suspected","lease":"a","at":1.0,"mood":"sad"}')
    assert list(store.replay()) == [(1, LeaseSuspected(at=1.0, lease="a"))]
    store.append([LeaseSuspected(at=2.0, lease="a")], 1)
    written_by = store._sql.execute("SELECT value FROM meta WHERE key = 'written_by'").fetchone()
    assert written_by == ("99.1.0",), "the newest that ever wrote"
    store.close()
