"""Side by side in one run with what pip installs: OpenStack Placement and Ray's placement groups, the same claims."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hal.api.ask import make_claim, pairs
from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import SqliteStore
from hal.broker.journal.store import Store
from hal.broker.ledger import Ledger
from hal.model.claim import Claim
from tests.bench.peer_environment import PeerMissing, ask
from tests.bench.rows import Row
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import server

HOSTS, SWITCHES, ROUNDS = 10, 8, 300
ONE, PAIR = "1 GPU", "1 GPU and 1 NIC on one switch"
PEERS = {
    "openstack-placement": (
        "peer_placement.py",
        f"{HOSTS} hosts x {SWITCHES} switches with a GPU and a NIC; both on SQLite in process, each claim on the disk; "
        "Placement: a GET of one candidate and a PUT of it through its WSGI application",
    ),
    "ray": (
        "peer_ray.py",
        "both in memory; Ray: one node of 64 GPUs and 64 NICs, a placement group made and ready, through its daemons; "
        f"it cannot say which switch. Ours: {HOSTS} hosts, the core in process: no socket, no disk",
    ),
}
_LOG = logging.getLogger(__name__)


def run() -> Iterator[Row]:
    for peer, (script, about) in PEERS.items():
        ours = _ours(durable=peer != "ray")
        try:
            theirs = ask(peer, Path(__file__).with_name(script))
        except PeerMissing as error:
            _LOG.warning("%s", error)
            yield Row(
                name=f"claims beside {peer}",
                measured="not run",
                peer=str(error).replace("|", "/")[:200],
                ratio=None,
                goal="none",
                met=True,
                includes="the peer is installed by pip into a cache folder, or found in the one that HAL_PEERS names",
            )
            continue
        again = _ours(
            durable=peer != "ray"
        )  # before and after the peer: the machine's speed may have changed meanwhile
        for name in (ONE, PAIR):
            took = statistics.mean((ours[name], again[name]))
            mean = theirs.get(f"{name}, mean")
            yield Row(
                name=f"claim beside {peer}: {name}",
                measured=f"{took * 1e3:.3f} ms",
                peer=f"{theirs[name] * 1e3:.2f} ms" + (f" (mean {mean * 1e3:.1f})" if mean is not None else ""),
                ratio=took / theirs[name],
                goal="faster",
                met=took < theirs[name],
                includes=about,
            )


def _ours(*, durable: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        store: Store = SqliteStore(Path(folder)) if durable else MemoryStore()
        ledger = Ledger(store, ManualClock())
        ledger.execute(c.Begin(boot_id="bench"))
        devices = tuple(device for host in range(HOSTS) for device in server(f"host{host}", SWITCHES))
        ledger.execute(c.Observe(devices=devices, complete=True))
        claims = {ONE: make_claim("gpu", id="x"), PAIR: make_claim(pairs("gpu", "rnic"), id="x")}
        found = {name: _measure(ledger, claim) for name, claim in claims.items()}
        store.close()
    return found


def _measure(ledger: Ledger, wanted: Claim) -> float:
    times = []
    for number in range(ROUNDS):
        claim = msgspec.structs.replace(wanted, id=f"{number}-{ledger.state.revision}")
        start = time.perf_counter()
        answer = ledger.execute(c.ClaimDevices(claim=claim))
        times.append(time.perf_counter() - start)
        assert isinstance(answer, c.Granted), answer
        ledger.execute(c.Release(lease=claim.id))
        ledger.execute(c.ProveReleased(lease=claim.id, fence=answer.lease.fence))
    return statistics.median(times)
