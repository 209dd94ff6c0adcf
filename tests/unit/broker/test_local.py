from __future__ import annotations

import threading

import msgspec
import pytest

from hal.api.held import HeldLease, open_lease
from hal.api.local import LocalBroker
from hal.broker.journal.sqlite import SqliteStore
from hal.errors import (
    ClaimError,
    ClaimRefused,
    DeviceNotFound,
    JournalError,
    LeaseEnded,
    LeaseNotFound,
    SelectorError,
    UsageError,
)
from hal.model.claim import Request
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.unit.broker.fake import World
from tests.unit.broker.world import device, server


def test_a_claim_is_prepared_opened_and_given_back(world, broker):
    with broker.claim("gpu", count=2, same="numa") as held:
        assert held.lease.state is LeaseState.PREPARED
        assert world.prepared() == {d.id for d in held.devices}
        handle = held.open(held.devices[0])
        assert handle.telemetry()
    assert world.prepared() == set()
    assert handle.closed
    with pytest.raises(LeaseEnded):
        handle.telemetry()
    assert broker.list() == ()


def test_a_claim_may_be_several_requests(broker):
    wanted = [Request(kind=Kind.GPU, name="g"), Request(kind=Kind.RNIC, name="n")]
    held = broker.claim(wanted, same="pci-switch")
    assert [d.request for d in held.devices] == ["g", "n"]
    assert held.devices[0].name[-1] == held.devices[1].name[-1]


def test_the_same_id_gets_the_same_lease(world, broker):
    first = broker.claim("gpu", id="mine")
    second = broker.claim("gpu", id="mine")
    assert first.lease == second.lease
    assert len(world.prepared()) == 1


def test_a_device_that_broke_a_moment_ago_is_not_handed_out(world, broker):
    first = broker.claim("gpu").devices[0]
    broker.release(broker.list()[0].id)
    world.driver.sick.add(first.id)
    assert broker.claim("gpu").devices[0].id != first.id


def test_a_device_that_does_not_answer_is_not_handed_out(world, broker):
    world.driver.mute = True
    with pytest.raises(ClaimRefused, match="SampleFailed"):
        LocalBroker.claim(world.start(observe=False), "gpu")
    assert world.prepared() == set()


def test_a_device_that_recovered_is_claimed_again(world, broker):
    world.driver.sick.update(world.driver.devices)
    with pytest.raises(ClaimRefused, match="it broke"):
        broker.claim("gpu")
    world.driver.sick.clear()
    assert broker.claim("gpu").devices


def test_a_device_that_cannot_be_prepared_is_replaced_once(world, broker):
    first = broker.claim("gpu", id="a").devices[0]
    broker.release("a")
    world.driver.stuck.add(first.id)
    held = broker.claim("gpu", id="b")
    assert held.devices[0].id != first.id
    assert world.prepared() == {held.devices[0].id}
    reasons = {r.device: r.reason for r in broker.explain("gpu", count=9).devices}
    assert "PrepareFailed" in reasons[first.id]


def test_if_nothing_can_be_prepared_the_claim_is_refused_and_nothing_is_kept(world, broker):
    world.driver.stuck.update(world.driver.devices)
    with pytest.raises(ClaimRefused, match="could not be prepared"):
        broker.claim("gpu", count=2, id="a")
    assert broker.list() == ()
    assert world.prepared() == set()
    world.driver.stuck.clear()
    world.clock.time += 100
    assert len(broker.claim("gpu", count=2, id="a").devices) == 2, "the id was never acknowledged"


def test_a_device_that_does_not_let_go_stays_fenced(world, broker):
    held = broker.claim("gpu", count=4, id="a")
    handle = held.open(held.devices[0])
    world.driver.clinging.add(held.devices[0].id)
    held.release()
    with pytest.raises(LeaseEnded):
        handle.telemetry()
    assert [fenced.device.id for fenced in broker.status().fenced] == [held.devices[0].id]
    assert len(broker.claim("gpu", count=3).devices) == 3
    with pytest.raises(ClaimRefused, match="fenced"):
        broker.claim("gpu")
    world.driver.clinging.clear()
    again = world.start()
    assert again.claim("gpu").devices[0].id == held.devices[0].id


def test_an_expired_lease_is_taken_back_before_its_devices_are_given_on(world, broker):
    held = broker.claim("gpu", count=4, id="a", ttl_seconds=10)
    handle = held.open(held.devices[0])
    world.clock.time += 11
    later = broker.claim("gpu", count=4, id="b")
    assert later.fence > held.fence
    for d in later.devices:
        assert world.driver.holder(d.id) == ("b", later.fence)
    with pytest.raises(LeaseEnded):
        handle.telemetry()
    with pytest.raises(LeaseEnded):
        held.renew()


def test_an_expired_lease_that_cannot_be_taken_back_keeps_its_devices(world, broker):
    held = broker.claim("gpu", count=4, id="a", ttl_seconds=10)
    world.driver.clinging.update(d.id for d in held.devices)
    world.clock.time += 11
    with pytest.raises(ClaimRefused, match="fenced"):
        broker.claim("gpu")


def test_renewing_keeps_handles_alive(world, broker):
    held = broker.claim("gpu", id="a", ttl_seconds=10)
    world.clock.time += 9
    assert held.renew().expires_at == world.clock.time + 10
    world.clock.time += 9
    broker.list()
    held.open().telemetry()


def test_releasing_twice_is_no_error_and_a_strange_lease_is_not_found(broker):
    broker.claim("gpu", id="a")
    assert broker.release("a").state is LeaseState.ENDED
    assert broker.release("a").state is LeaseState.ENDED
    for verb in (broker.release, broker.renew, broker.get):
        with pytest.raises(LeaseNotFound):
            verb("nobody")
    with pytest.raises(LeaseNotFound, match="is over"):
        broker.get("a")


def test_leases_survive_the_broker(world, broker):
    held = broker.claim("gpu", id="a")
    handle = held.open()
    again = world.start()
    assert [lease.id for lease in again.list()] == ["a"]
    handle.telemetry()
    again.get("a").open().telemetry()


def test_a_lost_guard_page_is_written_again(world, broker):
    held = broker.claim("gpu", id="a")
    for page in (world.folder / "run" / "guards").iterdir():
        page.unlink()
    with pytest.raises(LeaseEnded):
        held.open()
    world.start().get("a").open().telemetry()


def test_a_reboot_ends_all_leases_with_that_proof(world, broker):
    held = broker.claim("gpu", id="a")
    ticket = held.ticket()
    world.boot_id = "boot-2"
    for file in world.driver.folder.iterdir():
        file.unlink()  # hardware forgets its holder over a reboot
    again = world.start()
    assert again.list() == ()
    with pytest.raises(LeaseEnded):
        open_lease(ticket, {"fake": world.driver}).open()
    assert "boot" in again.state.ended["a"].why_ended
    assert again.claim("gpu", count=4).fence > held.fence


def test_a_lease_whose_driver_is_away_keeps_its_devices_until_it_is_back(world, broker):
    broker.claim("gpu", count=4, id="a")
    without = world.start(drivers={})
    without.release("a")
    assert len(without.status().fenced) == 4
    assert len(world.start().claim("gpu", count=4).devices) == 4


def test_a_device_without_its_driver_is_not_handed_out(world):
    with pytest.raises(ClaimRefused, match="NoDriver"):
        world.start(drivers={}).claim("gpu")
    assert not world.broker.state.holders


def test_a_ticket_opens_the_devices_without_a_broker(world, broker):
    held = broker.claim("gpu", count=2, id="a")
    ticket = held.ticket()
    other = open_lease(ticket, {"fake": world.driver})
    handle = other.open("gpu0")
    assert handle.telemetry()
    with pytest.raises(UsageError, match="ticket"):
        other.renew()
    held.release()
    with pytest.raises(LeaseEnded):
        handle.telemetry()
    with pytest.raises(LeaseEnded):
        open_lease(ticket, {"fake": world.driver}).open("gpu0")


def test_a_text_that_is_no_ticket_is_an_error():
    for text in ("", "{}", "[1]"):
        with pytest.raises(UsageError):
            HeldLease.from_ticket(text)


def test_a_lease_of_several_devices_must_be_told_which_to_open(broker):
    held = broker.claim("gpu", count=2)
    with pytest.raises(UsageError, match="say which"):
        held.open()
    with pytest.raises(DeviceNotFound):
        held.open("gpu9")
    assert held.open("n0/gpu1").device.name == "gpu1"


def test_mistakes_are_errors_of_usage(broker):
    with pytest.raises(SelectorError, match="memory_bytes"):
        broker.claim("gpu", where="memory_byts > 1")
    with pytest.raises(ClaimError, match="one of gpu"):
        broker.claim("gpus")
    with pytest.raises(ClaimError, match="numa"):
        broker.claim("gpu", same="nuna")
    with pytest.raises(ClaimError):
        broker.claim("gpu", count=0)


def test_events_go_on_from_a_revision(broker):
    broker.claim("gpu", id="a")
    events = list(broker.events())
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    broker.release("a")
    later = [event.type.value for event in broker.events(since=events[-1].revision)]
    assert later == ["releasing", "released"]


def test_a_disk_that_fails_after_the_grant_leaves_nothing_acknowledged_and_nothing_doubled(world, broker):
    world.fail_the_second_append()
    with pytest.raises(JournalError):
        broker.claim("gpu", id="a")
    del world.store.append  # the journal works again
    held = world.start().claim("gpu", id="a")
    assert world.prepared() == {held.devices[0].id}


def test_threads_may_share_a_broker(tmp_path):
    world = World(tmp_path, server("n0", 8))
    failures = []

    def work(name):
        try:
            for number in range(5):
                with world.broker.claim("gpu", id=f"{name}-{number}") as held:
                    held.open().telemetry()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not world.broker.state.holders


def test_the_clock_is_fixed_once_for_each_boot(tmp_path):
    offsets = []
    for _ in range(2):
        with LocalBroker({}, SqliteStore(tmp_path / "state"), tmp_path / "run", boot_id="one") as broker:
            offsets.append(broker.ledger.clock.offset_seconds)
            latest = broker.state.latest_at
    assert offsets[0] == offsets[1]
    with LocalBroker({}, SqliteStore(tmp_path / "state"), tmp_path / "run", boot_id="two") as broker:
        assert broker.ledger.clock.now() >= latest


def test_a_sick_parent_is_asked_too(tmp_path):
    world = World(tmp_path, [device("d0", Kind.DPU), device("n0", Kind.RNIC, parent="d0")])
    world.driver.sick.add("d0")
    with pytest.raises(ClaimRefused, match="parent d0"):
        world.broker.claim("rnic")


def test_a_lease_is_one_json_document(broker):
    lease = broker.claim("gpu", id="a").lease
    assert msgspec.json.decode(msgspec.json.encode(lease), type=type(lease)) == lease


def test_the_page_opens_after_the_driver_prepared_and_closes_before_it_unprepares(world, broker):
    seen = []
    pages, driver = broker.agent.pages, world.driver
    prepare, unprepare = driver.prepare, driver.unprepare

    def preparing(device_id, grant, deadline):
        seen.append(("prepare", grant.lease in broker.state.leases, pages.fence(device_id) == grant.fence))
        prepare(device_id, grant, deadline)

    def unpreparing(device_id, grant, deadline):
        seen.append(("unprepare", grant.lease in broker.state.leases, pages.fence(device_id) == grant.fence))
        unprepare(device_id, grant, deadline)

    driver.prepare, driver.unprepare = preparing, unpreparing
    broker.claim("gpu", id="a").release()
    assert seen == [("prepare", True, False), ("unprepare", True, False)], "committed first, page last; page first"


def test_a_fenced_device_that_lets_go_is_claimed_again(world, broker):
    held = broker.claim("gpu", count=4)
    world.driver.clinging.add(held.devices[0].id)
    held.release()
    world.driver.clinging.clear()
    assert len(broker.claim("gpu", count=4).devices) == 4


def test_a_release_that_the_journal_could_not_keep_is_finished_later(world, broker):
    held = broker.claim("gpu", count=4, id="a")
    world.fail_the_second_append()
    with pytest.raises(JournalError):
        held.release()
    assert broker.state.holders
    assert len(broker.claim("gpu", count=4).devices) == 4
