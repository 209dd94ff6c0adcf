"""What drivers, guard pages and folders may do to the broker, and what it says and keeps then."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from hal.api.folders import folders
from hal.api.held import open_lease
from hal.api.local import LocalBroker
from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import SqliteStore
from hal.drivers.guard import GuardPages
from hal.errors import (
    AccessDenied,
    ClaimRefused,
    DeviceNotFound,
    HalError,
    LeaseEnded,
    UsageError,
)
from hal.interfaces.deadline import Deadline
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.unit.broker.fake import FakeDriver
from tests.unit.broker.world import changed, claim, device, give_back, grant, run, server, state_of

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
