"""What callers, drivers, disks and interrupts may do to the broker, and what it says and keeps then."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hal.api.folders import folders
from hal.api.held import open_lease
from hal.api.local import LocalBroker
from hal.broker import command as c
from hal.broker.ledger import Ledger
from hal.broker.memory import MemoryStore
from hal.broker.sqlite import FILE, SqliteStore
from hal.drivers.guard import GuardPages
from hal.errors import (
    AccessDenied,
    ClaimError,
    ClaimRefused,
    DeviceNotFound,
    HalError,
    JournalError,
    LeaseEnded,
    UsageError,
)
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim, Request
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.unit.broker.fake import FakeDriver, ManualClock, World
from tests.unit.broker.world import changed, claim, device, give_back, grant, run, server, state_of


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, server("n0", 4))


@pytest.fixture
def broker(world):
    return world.broker


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

    def append(self, records, revision):
        head = super().append(records, revision)
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
    write = store._write

    def interrupted(*arguments):
        write(*arguments)
        store._write = write
        raise KeyboardInterrupt

    store._write = interrupted
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
    original, calls = world.store.append, []

    def fail_at_the_second(records, revision):
        calls.append(records)
        if len(calls) == 2:
            raise JournalError("I/O error")
        return original(records, revision)

    world.store.append = fail_at_the_second
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
        "from hal.broker.sqlite import SqliteStore\n"
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


# --- drivers


def _claim_soon(broker):
    """Claim once the late call has been seen to have returned, which is a moment after it has."""
    end = Deadline.after(60)
    while True:
        try:
            return broker.claim("gpu", count=4, id="b")
        except ClaimRefused:
            end.check(during="claim")


def test_a_prepare_that_returns_late_keeps_its_device_closed_until_then(world, broker):
    late, returned = threading.Event(), threading.Event()
    prepare = world.driver.prepare

    def hang(device_id, grant, deadline):
        late.wait(60)
        prepare(device_id, grant, deadline)
        returned.set()

    broker.agent.patience_seconds = 0.05 - broker.agent.deadline_seconds
    world.driver.prepare = hang
    with pytest.raises(ClaimRefused):
        broker.claim("gpu", count=4, id="a")
    world.driver.prepare = prepare
    broker.agent.patience_seconds = 1.0
    stuck = [fenced.device.id for fenced in broker.status().fenced]
    assert stuck, "nobody knows what the call will still do"
    with pytest.raises(ClaimRefused):
        broker.claim("gpu", count=4)
    assert [fenced.device.id for fenced in broker.status().fenced] == stuck
    late.set()
    assert returned.wait(60)
    world.clock.time += 100
    held = _claim_soon(broker)
    assert {world.driver.holder(d.id) for d in held.devices} == {("b", held.fence)}


@pytest.mark.parametrize("answer", [None, [None], ["sick"], 7, [{"type": "x"}]])
def test_a_driver_that_answers_nonsense_is_one_that_does_not_answer(world, broker, answer):
    world.driver.sample = lambda device_ids, deadline: answer
    with pytest.raises(ClaimRefused, match="SampleFailed"):
        LocalBroker.claim(world.start(observe=False), "gpu")


def test_a_device_that_the_journal_could_not_read_again_is_left_out(tmp_path):
    good = server("n0", 1)
    gpu = next(d for d in good if d.kind is Kind.GPU)
    odd = [
        changed(gpu, id="odd1", name=None),
        changed(gpu, id="odd2", conditions=("it is sick",)),
        changed(gpu, id="odd3", location=msgspec.structs.replace(gpu.location, numa_node="0")),
        changed(gpu, id="odd4", name="\ud800"),
        changed(gpu, id="odd5", attributes={"model": object()}),
        "not a device",
    ]
    for _ in range(2):
        store = SqliteStore(tmp_path / "state")
        driver = FakeDriver([gpu], tmp_path / "hardware")
        with LocalBroker(
            {"fake": driver}, store, tmp_path / "run", observe=lambda: [*good, *odd], boot_id="b"
        ) as broker:
            assert set(broker.state.devices) == {d.id for d in good}
            broker.claim("gpu").release()


def test_a_device_seen_twice_in_one_look_is_written_down_once():
    state = state_of([device("g0")])
    before = state.revision
    for _ in range(2):
        twice = (device("g0"), device("g0", node="n1"))
        run(state, c.Observe(devices=twice, complete=True))
    assert state.revision == before


def test_a_machine_renamed_while_a_device_is_held_gets_it_back():
    state = state_of([device("g0", node="old")])
    lease = grant(state, claim("a"))
    run(state, c.Observe(devices=(device("g0", node="new"),), complete=True))
    give_back(state, lease)
    assert grant(state, claim("b")).devices[0].node == "new"


# --- guard pages


def test_two_devices_never_share_a_page(tmp_path):
    pages = GuardPages(tmp_path)
    names = ["a/b", "a_b", "a:b", "a%2Fb", "A/b", "ä", "x" * 4000, "x" * 4001, "..", "", "\n"]
    assert len({pages.path(name) for name in names}) == len(names)
    for number, name in enumerate(names, 1):
        pages.grant(name, number)
    assert [pages.fence(name) for name in names] == list(range(1, len(names) + 1))


def test_a_page_that_cannot_be_cleared_keeps_the_device_closed(world, broker, monkeypatch):
    held = broker.claim("gpu", count=4, id="a")
    write = GuardPages._write

    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GuardPages, "_write", fail)
    held.release()
    assert len(broker.status().fenced) == 4
    with pytest.raises(ClaimRefused):
        broker.claim("gpu")
    monkeypatch.setattr(GuardPages, "_write", write)
    assert len(broker.claim("gpu", count=4).devices) == 4


def test_a_page_that_cannot_be_renewed_is_said(broker, monkeypatch):
    held = broker.claim("gpu", id="a")

    def fail(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GuardPages, "_write", fail)
    with pytest.raises(HalError, match="No space"):
        held.renew()


def test_a_lease_that_was_never_prepared_opens_no_page_when_it_is_renewed(world, broker):
    broker.ledger.execute(c.ClaimDevices(claim=claim("a")))
    lease = broker.renew("a")
    assert lease.state is LeaseState.BOUND
    assert not broker.agent.pages.fence(lease.devices[0].id)


def test_a_holder_whom_a_lost_journal_forgot_is_cut_off_before_the_next_is_let_in(world, broker):
    handle = broker.claim("gpu", count=4, id="a").open("gpu0")
    world.store = MemoryStore()
    world.clock.time += 10
    seen = []
    prepare = world.driver.prepare

    def preparing(device_id, grant, deadline):
        with pytest.raises(LeaseEnded):
            handle.telemetry()
        seen.append(device_id)
        (world.driver.folder / device_id.replace("/", "_")).unlink(missing_ok=True)
        prepare(device_id, grant, deadline)

    world.driver.prepare = preparing
    world.start().claim("gpu", where='name == "gpu0"')
    assert seen == ["n0/gpu0"]


def test_a_ticket_whose_page_may_not_be_read_says_so(world, broker, monkeypatch):
    ticket = broker.claim("gpu", id="a").ticket()

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hal.drivers.guard.os.open", refuse)
    with pytest.raises(AccessDenied, match="Permission denied"):
        open_lease(ticket, {"fake": world.driver}).open()


def test_a_page_cut_short_ends_the_lease(world, broker):
    held = broker.claim("gpu", id="a")
    broker.agent.pages.path(held.devices[0].id).write_bytes(b"")
    with pytest.raises(LeaseEnded):
        held.open()


def test_a_ticket_makes_no_folders(world, broker, tmp_path):
    ticket = msgspec.json.decode(broker.claim("gpu", id="a").ticket())
    ticket["guards"] = str(tmp_path / "nowhere" / "guards")
    with pytest.raises(LeaseEnded):
        open_lease(msgspec.json.encode(ticket).decode(), {"fake": world.driver}).open()
    assert not (tmp_path / "nowhere").exists()


def test_a_ticket_from_a_relative_folder_works_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    driver = FakeDriver([device("g0")], tmp_path / "hardware")
    with LocalBroker(
        {"fake": driver}, MemoryStore(), Path("run"), observe=lambda: [device("g0")], boot_id="b"
    ) as broker:
        ticket = broker.claim("gpu").ticket()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    open_lease(ticket, {"fake": driver}).open().telemetry()


def test_a_machine_is_the_same_however_it_is_named_and_another_in_another_folder(tmp_path, monkeypatch):
    def state(machine):
        return folders({"HAL_MACHINE": machine, "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}).state

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = state("dgx-h100?state=machine&seed=1")
    assert here == state(f"dgx-h100?seed=1&state={tmp_path}/here/machine")
    monkeypatch.chdir(tmp_path)
    assert state("dgx-h100?state=machine&seed=1") != here
    assert state("dgx-h100?seed=2") != state("dgx-h100?seed=1")
    with pytest.raises(UsageError, match="--state"):
        folders({}, Path(""))


@pytest.mark.parametrize("name", ["gpu77", 5])
def test_a_device_that_a_lease_does_not_have_is_named_with_those_that_it_has(broker, name):
    held = broker.claim("gpu", id="a")
    with pytest.raises(DeviceNotFound) as caught:
        held.open(name)
    assert str(caught.value).startswith(f"{name} during open: lease a has no such device (try: n0/")
