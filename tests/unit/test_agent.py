"""The node's side of a lease: slots, shares and parts; what ends while something begins; nothing under a lock."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import msgspec
import pytest

from hal.agent.prepare import Agent, Trouble
from hal.broker import command as c
from hal.drivers.guard import GuardPages
from hal.errors import LeaseEnded, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice, Lease, LeaseState


class Ledger:
    """What the agent needs of one: a state that changes as it says, and a lock of which it must know nothing."""

    def __init__(self):
        self.lock = threading.RLock()
        self.clock = SimpleNamespace(now=lambda: 1000.0)
        self.state = SimpleNamespace(
            leases={}, fenced={}, ending={}, shrinking={}, devices={}, holders_of=self.holders_of
        )
        self.commands = []

    def holders_of(self, device_id):
        return tuple(x.id for x in self.state.leases.values() if any(d.id == device_id for d in x.devices))

    def add(self, lease):
        self.state.leases[lease.id] = lease
        return lease

    def change(self, lease, **fields):
        return self.add(msgspec.structs.replace(self.state.leases[lease.id], **fields))

    def execute(self, command, actor=""):
        self.commands.append(command)
        lease = self.state.leases.get(getattr(command, "lease", ""))
        if isinstance(command, c.MarkPrepared):
            return c.Done(self.change(lease, state=LeaseState.PREPARED))
        if isinstance(command, c.Release):
            return c.Done(self.change(lease, state=LeaseState.RELEASING))
        if isinstance(command, c.Resize):
            replicas = sorted({d.replica for d in lease.devices})
            return c.Done(self.change(lease, leaving=tuple(replicas[command.replicas :]), leave_by=1000.0))
        if isinstance(command, c.ProveShrunk):
            kept = tuple(d for d in lease.devices if d.replica not in command.replicas)
            return c.Done(self.change(lease, devices=kept, leaving=()))
        if isinstance(command, c.ProveReleased):
            del self.state.leases[command.lease]
        return c.Done()

    def said(self, kind):
        return [command for command in self.commands if isinstance(command, kind)]


class Driver:
    """Keeps a diary. ``wait`` are devices whose preparation takes until an event; ``stuck`` cannot be prepared."""

    name = "fake"

    def __init__(self, ledger):
        self.ledger = ledger
        self.diary = []
        self.fences = {}
        self.stuck = set()
        self.wait = {}
        self.begun = threading.Event()

    def prepare(self, device_id, grant, deadline):
        assert self.ledger.lock.acquire(timeout=5), "the ledger's lock is held while a driver works"
        self.ledger.lock.release()
        self.begun.set()
        if device_id in self.wait:
            assert self.wait[device_id].wait(10)
        if device_id in self.stuck:
            raise RuntimeError("it is stuck")
        self._fence(device_id, grant)
        self.diary.append(("prepare", device_id, grant.lease))

    def unprepare(self, device_id, grant, deadline):
        self._fence(device_id, grant)
        self.diary.append(("unprepare", device_id, grant.lease))

    def _fence(self, device_id, grant):
        if grant.fence < self.fences.get(device_id, 0):
            raise StaleFence("older", device=device_id)
        self.fences[device_id] = grant.fence


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def driver(ledger):
    return Driver(ledger)


@pytest.fixture
def agent(ledger, driver, tmp_path):
    return Agent(ledger, {"fake": driver}, GuardPages(tmp_path / "guards"))


def device(name, **fields):
    return AllocatedDevice(id=name, kind=Kind.GPU, name=name, node="n0", driver="fake", **fields)


def lease(name, *devices, fence=1, **fields):
    return Lease(
        id=name,
        tenant="t",
        devices=devices,
        fence=fence,
        granted_at=900.0,
        expires_at=fields.pop("expires_at", 1060.0),
        ttl_seconds=60.0,
        **fields,
    )


def guard(agent, held, which=0):
    given = held.devices[which]
    return agent.pages.guard(held.slot_of(given), held.id, held.fence_of(given))


def ended(check):
    with pytest.raises(LeaseEnded):
        check()
    return True


def test_each_device_is_held_under_the_fence_of_the_grant_that_gave_it(agent, ledger, driver):
    held = ledger.add(lease("l", device("a"), device("b", fence=7, replica=1), fence=3))
    assert agent.prepare(held).state is LeaseState.PREPARED
    assert ledger.said(c.MarkPrepared)[0].fence == 7
    assert driver.fences == {"a": 3, "b": 7}
    for number in (0, 1):
        guard(agent, held, number).check()


def test_a_shared_device_is_prepared_with_the_first_and_shut_with_the_last(agent, ledger, driver):
    first, second, third = (
        ledger.add(lease(f"l{n}", device("a", uses={"fraction_milli": 300}), fence=n)) for n in (1, 2, 3)
    )
    guards = []
    for held in (first, second, third):
        assert isinstance(agent.prepare(held), Lease)
        guards.append(guard(agent, held))
    assert driver.diary == [("prepare", "a", "l1")]
    for held, mine in ((first, guards[0]), (third, guards[2])):
        ledger.change(held, state=LeaseState.RELEASING)
        agent.take_back(held)
        assert ended(mine.check)
        guards[1].check()
        assert len(driver.diary) == 1, "others are still in it"
    ledger.change(second, state=LeaseState.RELEASING)
    agent.take_back(second)
    assert ended(guards[1].check)
    assert driver.diary[1:] == [("unprepare", "a", "l2")]
    assert [proof.fenced for proof in ledger.said(c.ProveReleased)] == [{}, {}, {}]
    last = ledger.add(lease("l9", device("a"), fence=9))
    assert isinstance(agent.prepare(last), Lease)


def test_what_ends_while_it_is_being_prepared_leaves_nothing_prepared(agent, ledger, driver):
    driver.wait["a"] = threading.Event()
    held = ledger.add(lease("l", device("a"), device("b")))
    answers = []
    preparing = threading.Thread(target=lambda: answers.append(agent.prepare(held)))
    preparing.start()
    assert driver.begun.wait(10)
    ledger.execute(c.Release(lease="l"))
    taking = threading.Thread(target=agent.take_back, args=(held,))
    taking.start()
    driver.wait["a"].set()
    preparing.join(10)
    taking.join(10)
    assert isinstance(answers[0], Trouble)
    assert [step for step, name, _ in driver.diary if name == "a"] == ["prepare", "unprepare"]
    assert ("prepare", "b", "l") not in driver.diary
    assert agent.pages.fence("a") == agent.pages.fence("b") == 0
    assert not ledger.said(c.MarkPrepared)
    assert len(ledger.said(c.ProveReleased)) == 1
    assert len(agent._turns) == 0


def test_different_devices_do_not_wait_for_each_other(agent, ledger, driver):
    driver.wait["a"] = threading.Event()
    slow = threading.Thread(target=agent.prepare, args=(ledger.add(lease("slow", device("a"))),))
    slow.start()
    assert driver.begun.wait(10)
    assert isinstance(agent.prepare(ledger.add(lease("quick", device("b"), fence=2))), Lease)
    driver.wait["a"].set()
    slow.join(10)


def test_a_late_renewal_does_not_bring_a_handle_back(agent, ledger):
    held = agent.prepare(ledger.add(lease("l", device("a"))))
    ledger.change(held, state=LeaseState.RELEASING)
    agent.take_back(held)
    agent.renew_pages(held)
    assert agent.pages.fence("a") == 0


def test_a_lease_that_is_told_to_leave_may_be_used_until_then_and_no_longer(agent, ledger):
    held = agent.prepare(ledger.add(lease("l", device("a"))))
    leaving = ledger.change(held, state=LeaseState.DRAINING, leave_by=1010.0)
    agent.renew_pages(leaving)
    guard(agent, held).check()
    gone = ledger.change(held, leave_by=999.0)
    agent.renew_pages(gone)
    assert ended(lambda: guard(agent, held)), "by itself, even if no agent is left to end it"


def test_some_replicas_are_taken_back_and_the_others_stay(agent, ledger, driver):
    held = ledger.add(lease("l", device("a"), device("b", replica=1), device("c", replica=2)))
    agent.prepare(held)
    guards = [guard(agent, held, number) for number in range(3)]
    told = ledger.change(held, leaving=(1, 2), leave_by=1005.0)
    ledger.state.shrinking["l"] = None
    agent.expire()
    assert not ledger.said(c.ProveShrunk), "they have time"
    ledger.change(told, leave_by=1000.0)
    agent.expire()
    assert [(proof.replicas, proof.fenced) for proof in ledger.said(c.ProveShrunk)] == [((1, 2), {})]
    guards[0].check()
    assert ended(guards[1].check)
    assert ended(guards[2].check)
    assert [name for step, name, _ in driver.diary if step == "unprepare"] == ["b", "c"]


def test_growth_that_fails_costs_nothing_that_is_in_use(agent, ledger, driver):
    held = agent.prepare(ledger.add(lease("l", device("a"))))
    mine = guard(agent, held)
    driver.stuck.add("c")
    more = (device("b", replica=1, fence=5), device("c", replica=1, fence=5))
    grown = ledger.change(held, devices=(*held.devices, *more), state=LeaseState.BOUND)
    found = agent.prepare(grown)
    assert isinstance(found, Lease)
    assert [given.id for given in found.devices] == ["a"]
    mine.check()
    assert not ledger.said(c.Release)
    assert agent.pages.fence("b") == 0
    assert ("unprepare", "b", "l") in driver.diary


def test_a_claim_that_fails_is_taken_back_whole(agent, ledger, driver):
    driver.stuck.add("b")
    found = agent.prepare(ledger.add(lease("l", device("a"), device("b"), device("c"))), fresh=True)
    assert isinstance(found, Trouble)
    assert found.device.id == "b"
    assert ledger.said(c.ProveReleased)[0].returned
    assert [name for step, name, _ in driver.diary if step == "unprepare"] == ["a", "b"]


@pytest.mark.hal_machine("dgx-h100", clock="real")
class TestParts:
    """Parts of devices, on a mock board that can be divided."""

    @pytest.fixture
    def board(self, hal_survey):
        driver = hal_survey.drivers["mock-gpu"]
        gpu = next(d for d in hal_survey.inventory if d.kind is Kind.GPU)
        driver.set_partitioning(gpu.id, True)
        driver.reset(gpu.id).wait(Deadline.after(10))
        return SimpleNamespace(driver=driver, id=gpu.id)

    @pytest.fixture
    def agent(self, board, ledger, tmp_path):
        return Agent(ledger, {"mock-gpu": board.driver}, GuardPages(tmp_path / "guards"))

    def part(self, board, place):
        return AllocatedDevice(id=board.id, kind=Kind.GPU, name="gpu0", node="n0", driver="mock-gpu", partition=place)

    def test_parts_are_made_found_again_and_destroyed(self, agent, board, ledger):
        held = ledger.add(lease("l", self.part(board, "1g.10gb@0"), self.part(board, "3g.40gb@4")))
        assert isinstance(agent.prepare(held), Lease)
        made = board.driver.partitions(board.id)
        assert [(part.profile, part.start) for part in made] == [("1g.10gb", 0), ("3g.40gb", 4)]
        named = ledger.said(c.MarkPrepared)[0].opened_as
        assert named == {f"{board.id}#1g.10gb@0": made[0].id, f"{board.id}#3g.40gb@4": made[1].id}
        with board.driver.open(made[0].id, guard(agent, held), Deadline.after(5)) as handle:
            again = Agent(ledger, agent.drivers, agent.pages)
            assert isinstance(again.prepare(ledger.change(held, state=LeaseState.BOUND)), Lease)
            assert board.driver.partitions(board.id) == made
            assert ledger.said(c.MarkPrepared)[1].opened_as == named
            ledger.change(held, state=LeaseState.RELEASING)
            again.take_back(held)
            assert ended(lambda: handle.telemetry())
        assert ledger.said(c.ProveReleased)[0].fenced == {}
        assert board.driver.partitions(board.id) == ()

    def test_a_late_proof_does_not_destroy_the_part_of_a_later_holder(self, agent, board, ledger):
        first = ledger.add(lease("l1", self.part(board, "1g.10gb@0"), fence=1))
        agent.prepare(first)
        ledger.change(first, state=LeaseState.RELEASING)
        agent.take_back(first)
        second = ledger.add(lease("l2", self.part(board, "1g.10gb@0"), fence=2))
        agent.prepare(second)
        grant = SimpleNamespace(lease="l1", fence=1, tenant="t")
        assert agent._shut(first.devices[0], grant, first.slot_of(first.devices[0])) is None
        assert len(board.driver.partitions(board.id)) == 1
        guard(agent, second).check()

    def test_a_part_whose_driver_cannot_divide_is_a_trouble_and_not_a_crash(self, agent, board, ledger, driver):
        agent = Agent(ledger, {"mock-gpu": driver}, agent.pages)
        found = agent.prepare(ledger.add(lease("l", self.part(board, "1g.10gb@0"))), fresh=True)
        assert isinstance(found, Trouble)
        assert "cannot divide" in found.error
