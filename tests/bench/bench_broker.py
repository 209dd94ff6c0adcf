"""The broker's decisions and commits: claim and give back on a rack of 1,000 nodes with 8 GPUs and 8 NICs each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hal.api.local import LocalBroker
from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import SqliteStore
from hal.broker.ledger import Ledger
from hal.model.claim import Claim
from hal.model.device import Device
from tests.bench.rows import Row, best
from tests.unit.broker.fake import FakeDriver, ManualClock
from tests.unit.broker.world import claim, request, server

NODES = 1000
MANY = 10_000


def run() -> Iterator[Row]:
    devices = [device for n in range(NODES) for device in server(f"node{n:04d}", rack=f"rack{n // 16}")]
    ledger = Ledger(MemoryStore(), ManualClock())
    ledger.execute(c.Begin(boot_id="bench"))
    ledger.execute(c.Observe(devices=tuple(devices), complete=True))
    pairs = (request("gpu", 4), request("rnic", 4))
    for name, wanted, goal in (
        ("1 GPU", claim("x"), 20_000),
        ("1 GPU by selector", claim("x", where="memory_bytes >= 80*GiB"), 20_000),
        ("2 GPUs, same NUMA node", claim("x", count=2, same="numa"), 20_000),
        ("4 GPUs and 4 NICs, same NUMA node", claim("x", requests=pairs, same="numa"), 20_000),
    ):
        ledger.execute(c.ClaimDevices(claim=msgspec.structs.replace(wanted, id=f"warm {name}".replace(" ", "-"))))
        rate = 1 / best(_cycles(ledger, wanted), repeat=5, number=1) * MANY
        yield Row(
            name=f"claim and give back, {name}",
            measured=f"{rate:,.0f} a second",
            peer="goal",
            ratio=goal / rate,
            goal=f"at least {goal:,} a second",
            met=rate >= goal,
            includes=f"{NODES:,} nodes, journal in memory: claim, prepared, release and proof, 4 commits; "
            "no driver is called, no guard page written, no device asked how it is",
        )
    yield from _whole(devices)
    yield from _durable()


def _whole(devices: list[Device]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        driver = FakeDriver([], Path(folder, "hardware"))
        driver.sample = lambda device_ids, deadline: []
        driver.prepare = driver.unprepare = lambda device_id, grant, deadline: None
        clock = ManualClock()
        with LocalBroker(
            {"fake": driver}, MemoryStore(), Path(folder), observe=lambda: devices, clock=clock, boot_id="bench"
        ) as broker:
            took = best(lambda: broker.claim("gpu").release(), repeat=5, number=200)
    yield Row(
        name="claim and give back through LocalBroker, 1 GPU",
        measured=f"{1 / took:,.0f} a second",
        peer="none",
        ratio=None,
        goal="none",
        met=True,
        includes=f"{NODES:,} nodes, journal in memory: the device is asked, prepared and unprepared by a driver that "
        "does nothing, each call in a guarded thread; 3 writes to its guard page",
    )


def _cycles(ledger: Ledger, wanted: Claim, many: int = MANY):
    rounds = iter(range(1_000_000))

    def work() -> None:
        tag = next(rounds)
        for number in range(many):
            name = f"{tag}-{number}-{ledger.state.revision}"
            answer = ledger.execute(c.ClaimDevices(claim=msgspec.structs.replace(wanted, id=name)))
            assert isinstance(answer, c.Granted)
            fence = answer.lease.fence
            ledger.execute(c.MarkPrepared(lease=name, fence=fence))
            ledger.execute(c.Release(lease=name))
            ledger.execute(c.ProveReleased(lease=name, fence=fence))

    return work


def _durable() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        ledger = Ledger(store, ManualClock())
        ledger.execute(c.Begin(boot_id="bench"))
        ledger.execute(c.Observe(devices=tuple(server("node0")), complete=True))
        took = best(_cycles(ledger, claim("x"), 100), repeat=3, number=1) / 100
        store.close()
    yield Row(
        name="claim and give back, durable",
        measured=f"{took * 1e3:.2f} ms",
        peer="none",
        ratio=None,
        goal="none",
        met=True,
        includes="SQLite, synchronous=FULL: 4 commits, each on the disk before the next",
    )
