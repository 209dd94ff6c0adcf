"""The ledger over a store with bad days: the same seed is the same day, and no day loses what was acknowledged."""

from __future__ import annotations

from random import Random

import pytest

from hal.broker import command as c
from hal.broker.journal.store import load_state
from hal.broker.ledger import Ledger
from hal.errors import HalError, JournalError
from tests.budget import examples
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.faulty_store import Crash, Faults, FaultyStore
from tests.unit.broker.world import claim, server

BAD = Faults(fails=0.05, unknown=0.1, blind=0.5, torn=0.05, slow=0.1, full=0.05, full_for=5)


def day(seed, faults):
    """Claim and release for a while; return the store, what was acknowledged, and a trace."""
    random = Random(seed)
    store = FaultyStore(random, Faults())
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b"))
    ledger.execute(c.Observe(devices=tuple(server("n0"))))
    store.faults = faults
    acknowledged, trace = {}, []
    for number in range(60):
        name = random.choice(sorted(acknowledged)) if acknowledged and random.random() < 0.4 else f"c{number}"
        wanted = (
            c.Release(lease=name)
            if name in acknowledged
            else c.ClaimDevices(claim=claim(name, where=random.choice(["", "memory_bytes > 0"])))
        )
        try:
            answer = ledger.execute(wanted)
            if isinstance(answer, c.Granted):
                acknowledged[name] = answer.lease.fence
            trace.append(type(answer).__name__)
        except HalError as error:
            trace.append(str(error))
        except Crash:
            trace.append("crash")
            ledger = Ledger(store.crashed(), ManualClock())
        assert load_state(store).revision >= 0
    return store, acknowledged, trace


@pytest.mark.parametrize("seed", range(examples(20)))
def test_whatever_the_disk_does_an_acknowledged_claim_is_there(seed):
    store, acknowledged, _ = day(seed, BAD)
    state = load_state(store)
    fences = {lease.id: lease.fence for lease in state.leases.values()}
    assert {name: fences.get(name) for name in acknowledged} == acknowledged
    assert store.verify_audit().ok


def test_the_same_seed_is_the_same_day():
    one, other = day(7, BAD), day(7, BAD)
    assert one[1:] == other[1:]
    assert list(one[0].replay()) == list(other[0].replay())
    assert day(8, BAD)[2] != one[2]


def test_each_fault_happens():
    happened = {name for seed in range(10) for name in day(seed, BAD)[0].happened}
    assert happened == {"fails", "unknown", "blind", "torn", "slow", "full"}


def test_a_disk_that_lies_is_found_out():
    lost = 0
    for seed in range(10):
        store, acknowledged, _ = day(seed, Faults(torn=0.1, forgets=2))
        state = load_state(store)
        lost += any(name not in state.leases for name in acknowledged)
    assert lost


def test_a_slow_disk_is_slow_on_the_clock_it_was_given():
    waited = []
    store = FaultyStore(Random(1), Faults(slow=1.0, most_seconds=2.0, sleep=waited.append))
    store.append([], 0)
    with pytest.raises(JournalError):
        store.append([], 5)
    assert len(waited) == 2
    assert all(0 <= seconds <= 2 for seconds in waited)
