"""Whatever was done, and whenever a snapshot was taken or records were dropped: the journal makes the running state."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import load_state
from hal.broker.ledger import Ledger
from hal.errors import HalError
from tests.budget import examples
from tests.unit.broker.checker import check
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import claim, server

NAMES = st.sampled_from("abcdef")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), NAMES, st.integers(1, 3)),
        st.tuples(st.sampled_from(["release", "renew", "prepared", "prove", "cling", "free"]), NAMES),
        st.tuples(st.just("wait"), st.sampled_from([5.0, 40.0, 70.0])),
        st.tuples(st.just("boot"), st.sampled_from(["b1", "b2"])),
        st.tuples(st.sampled_from(["snapshot", "some steps", "compact", "reopen"])),
    ),
    max_size=25,
)


def command(ledger, step):
    """Return the command that a step stands for in this state."""
    match step:
        case ("claim", name, count):
            return c.ClaimDevices(claim=claim(name, count=count))
        case ("release", name):
            return c.Release(lease=name)
        case ("renew", name):
            return c.Renew(lease=name)
        case ("boot", boot_id):
            return c.Begin(boot_id=boot_id)
        case ("wait", seconds):
            ledger.clock.time += seconds
            return c.Expire()
        case (verb, name):
            lease = ledger.state.leases.get(name) or ledger.state.ended.get(name)
            fence = lease.fence if lease else 0
            fenced = {lease.devices[0].id: "stuck"} if lease and verb == "cling" else {}
            device = lease.devices[0].id if lease else "none"
            return {
                "prepared": c.MarkPrepared(lease=name, fence=fence),
                "prove": c.ProveReleased(lease=name, fence=fence),
                "cling": c.ProveReleased(lease=name, fence=fence, fenced=fenced),
                "free": c.ProveFreed(device=device, fence=fence),
            }[verb]


def live_through(steps, store, reopen):
    ledger = Ledger(store, ManualClock())
    ledger.execute(c.Begin(boot_id="b0"))
    ledger.execute(c.Observe(devices=tuple(server("n0", 4))))
    for step in steps:
        match step:
            case ("snapshot",):
                ledger.store.save_snapshot(ledger.state.snapshot())
            case ("some steps",):
                for _ in zip(range(3), ledger.store.saving(ledger.state.snapshot()), strict=False):
                    pass
            case ("compact",):
                snapshot = ledger.store.snapshot()
                if snapshot is not None:
                    ledger.store.compact(max(ledger.store.oldest(), snapshot.revision - 1))
            case ("reopen",):
                before = ledger.state.snapshot()
                ledger = Ledger(reopen(), ledger.clock)
                assert ledger.state.snapshot() == before
            case _:
                try:
                    ledger.execute(command(ledger, step))
                except HalError:
                    continue
    assert load_state(reopen()).snapshot() == ledger.state.snapshot()
    return ledger


@settings(max_examples=examples(40), deadline=None)
@given(STEPS)
def test_a_journal_in_memory_makes_the_running_state(steps):
    store = MemoryStore()
    live_through(steps, store, lambda: store)


@settings(max_examples=examples(40), deadline=None)
@given(STEPS)
def test_a_journal_in_a_file_makes_the_running_state_and_passes_the_independent_reader(steps):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name, patch("hal.broker.journal.snapshots.AT_ONCE", 3):
        stores = [SqliteStore(Path(name))]

        def reopen():
            stores[-1].close()
            stores.append(SqliteStore(Path(name)))
            return stores[-1]

        ledger = live_through(steps, stores[0], reopen)
        assert stores[-1].verify_audit().ok
        stores[-1].close()
        live, fenced = check(Path(name) / FILE)
        assert {name: entry[0] for name, entry in live.items()} == {
            lease.id: lease.fence for lease in ledger.state.leases.values()
        }
        assert fenced == set(ledger.state.fenced)
