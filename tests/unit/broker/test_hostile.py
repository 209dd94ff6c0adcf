"""What callers, disks and interrupts may do to the broker, and what it says and keeps then."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from hal.api.local import LocalBroker
from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.ledger import Ledger
from hal.errors import (
    ClaimError,
    JournalError,
    UsageError,
)
from hal.model.claim import Claim, Request
from hal.model.kind import Kind
from tests.unit.broker.fake import FakeDriver, ManualClock
from tests.unit.broker.world import claim, device, server

# --- callers


@pytest.mark.parametrize(
    "words",
    [
        {"count": 2.0},
        {"count": True},
        {"count": "2"},
        {"count": np.int64(2)},
        {"where": None},
        {"where": 5},
        {"tenant": 5},
        {"tenant": "\udcff"},
        {"tenant": "a\nb"},
        {"tenant": "t" * 1000},
        {"id": 5},
        {"ttl_seconds": "60"},
        {"ttl_seconds": True},
        {"ttl_seconds": 1e300},
        {"ttl_seconds": float("inf")},
        {"ttl_seconds": -1},
    ],
    ids=str,
)
def test_what_the_journal_could_not_read_again_never_gets_there(tmp_path, words):
    devices = server("n0", 4)
    driver = FakeDriver(devices, tmp_path / "hardware")

    def start():
        store = SqliteStore(tmp_path / "state")
        return LocalBroker({"fake": driver}, store, tmp_path / "run", observe=lambda: devices, boot_id="b")

    with start() as broker:
        with pytest.raises(UsageError):
            broker.claim("gpu", **words)
        before = broker.state.snapshot()
    with start() as again:
        assert again.state.snapshot() == before


@pytest.mark.parametrize(
    "wrong",
    [
        Claim(id="a", requests=(Request(kind="gpus"),)),
        Claim(id="a", requests=(Request(kind=Kind.GPU, name="x\ny"),)),
        Claim(id="a", requests=("gpu",)),
        Claim(id="a", requests=(Request(kind=Kind.GPU),), constraints=("numa",)),
    ],
)
def test_a_claim_put_together_wrongly_is_an_error(broker, wrong):
    with pytest.raises(ClaimError):
        broker.claim(wrong)


def test_a_lease_of_many_years_is_refused_and_one_of_a_year_outlives_the_broker(world, broker):
    held = broker.claim("gpu", id="a", ttl_seconds=366 * 86400)
    with pytest.raises(ClaimError, match="ttl_seconds"):
        held.renew(1e12)
    assert world.start().get("a").open().telemetry()


def test_a_renewal_may_change_the_time_to_live_for_good(world, broker):
    held = broker.claim("gpu", id="a", ttl_seconds=10)
    held.renew(100)
    world.clock.time += 50
    assert world.start().renew("a").expires_at == world.clock.time + 100


def test_asking_again_for_a_lease_does_not_touch_what_is_in_use(world, broker):
    held = broker.claim("gpu", id="a")
    world.driver.sick.update(world.driver.devices)
    world.driver.stuck.update(world.driver.devices)
    assert broker.claim("gpu", id="a").lease == held.lease
    assert [lease.id for lease in broker.list()] == ["a"]
    assert world.prepared() == {held.devices[0].id}


# --- interrupts, and journals that fail


class Interrupting(MemoryStore):
    interrupt = False

    def append(self, records, revision, audit=()):
        head = super().append(records, revision, audit)
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return head


def test_an_interrupt_within_a_commit_is_not_taken_for_another_commands_commit():
    ledger = Ledger(Interrupting(), ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=(device("g0"), device("g1"))))
    ledger.store.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        ledger.execute(c.ClaimDevices(claim=claim("a")))
    answer = ledger.execute(c.ClaimDevices(claim=claim("b")))
    assert isinstance(answer, c.Granted)
    assert set(ledger.state.leases) == {"a", "b"}
    held = [d.id for lease in ledger.state.leases.values() for d in lease.devices]
    assert sorted(held) == ["g0", "g1"], "no device is doubled"


def test_an_interrupt_within_a_durable_commit_leaves_the_journal_usable(tmp_path):
    store = SqliteStore(tmp_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=(device("g0"), device("g1"))))
    transact = store._file.transact

    def interrupted(*arguments):
        transact(*arguments)
        store._file.transact = transact
        raise KeyboardInterrupt

    store._file.transact = interrupted
    with pytest.raises(KeyboardInterrupt):
        ledger.execute(c.ClaimDevices(claim=claim("a")))
    assert isinstance(ledger.execute(c.ClaimDevices(claim=claim("b"))), c.Granted)
    assert set(ledger.state.leases) == {"a", "b"}
    store.close()


def test_what_somebody_else_wrote_is_not_taken_for_our_commit():
    store = MemoryStore()
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=(device("g0"),)))
    other = Ledger(store, ManualClock())
    other.execute(c.ClaimDevices(claim=claim("theirs")))
    with pytest.raises(JournalError):
        ledger.execute(c.ClaimDevices(claim=claim("ours")))
    assert isinstance(ledger.execute(c.ClaimDevices(claim=claim("ours"))), c.Refused)


def test_many_expired_leases_are_all_taken_back_though_the_journal_failed_at_the_first(world, broker):
    for number in range(4):
        broker.claim("gpu", id=f"a{number}", ttl_seconds=10)
    world.clock.time += 11
    world.fail_the_second_append()
    with pytest.raises(JournalError):
        broker.list()
    assert len(broker.claim("gpu", count=4).devices) == 4


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM records WHERE revision = 3",
        'UPDATE records SET body = \'{"type":"lease-prepared","at":1.0,"lease":"x"}\' WHERE revision = 4',
        "UPDATE records SET body = x'ff00ff' WHERE revision = 4",
        "DROP TABLE records",
    ],
)
def test_a_damaged_journal_is_said_to_be_damaged(tmp_path, damage):
    store = SqliteStore(tmp_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=(device("g0"),)))
    for name in "ab":
        answer = ledger.execute(c.ClaimDevices(claim=claim(name)))
        ledger.execute(c.Release(lease=name))
        ledger.execute(c.ProveReleased(lease=name, fence=answer.lease.fence))
    store.close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(damage)
    connection.commit()
    connection.close()

    def begin():
        store = SqliteStore(tmp_path)
        try:
            Ledger(store, ManualClock())
        finally:
            store.close()

    with pytest.raises(JournalError) as raised:
        begin()
    assert raised.value.hint


def test_a_damaged_snapshot_costs_time_only(tmp_path):
    store = SqliteStore(tmp_path)
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    store.save_snapshot(ledger.state.snapshot())
    ledger.execute(c.Observe(devices=(device("g0"),)))
    before = ledger.state.snapshot()
    store._sql.execute("UPDATE snapshots SET body = substr(body, 1, 20)")
    store.close()
    store = SqliteStore(tmp_path)
    assert Ledger(store, ManualClock()).state.snapshot() == before
    store.close()


def test_a_journal_cut_short_or_scribbled_over_is_an_error_and_nothing_else(tmp_path):
    store = SqliteStore(tmp_path / "whole")
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    store.close()
    whole = (tmp_path / "whole" / FILE).read_bytes()
    for number, place in enumerate(range(1, len(whole), max(1, len(whole) // 24))):
        for kind in ("cut", "noise"):
            folder = tmp_path / f"{kind}{number}"
            folder.mkdir()
            noise = bytes((place * 31 + i) % 256 for i in range(64))
            text = whole[:place] if kind == "cut" else whole[:place] + noise + whole[place + 64 :]
            (folder / FILE).write_bytes(text)
            try:
                damaged = SqliteStore(folder)
                try:
                    Ledger(damaged, ManualClock())
                finally:
                    damaged.close()
            except JournalError:
                pass


def test_a_disk_without_room_for_even_a_lock_is_a_journal_error(tmp_path):
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from hal.broker.journal.sqlite import SqliteStore\n"
        "from hal.errors import JournalError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "try: SqliteStore(Path(sys.argv[1]))\n"
        "except JournalError as error: print(error); sys.exit(75)\n"
    )
    for size in ("0", "5000"):
        words = [sys.executable, "-c", program, str(tmp_path / size), size]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 75, done.stderr
        assert "try:" in done.stdout
