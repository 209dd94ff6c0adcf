"""The whole broker under random commands and crashes: what the journal says is what runs, and no device is doubled."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hal.broker import command as c
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.store import load_state
from hal.broker.ledger import Ledger
from hal.broker.record import LeaseEnded, LeaseGranted
from hal.errors import ClaimError, DeviceBusy, LeaseNotFound, StaleFence
from hal.errors import LeaseEnded as LeaseIsOver
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.budget import examples
from tests.unit.broker.fake import ManualClock
from tests.unit.broker.world import changed, claim, condition, device, request, server

NAMES = st.sampled_from([f"c{i}" for i in range(8)])
CLAIMS = [
    lambda name: claim(name),
    lambda name: claim(name, count=2, same="numa"),
    lambda name: claim(name, requests=(request("gpu"), request("rnic")), same="pci-switch"),
    lambda name: claim(name, Kind.DPU, ttl_seconds=5.0),
    lambda name: claim(name, Kind.RNIC, count=3, where='contains(name, "mlx5")'),
]
CARD = [device("card", Kind.DPU, "n1"), device("card-nic", Kind.RNIC, "n1", parent="card")]


class Broker(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.devices = {d.id: d for d in [*server("n0", 4), *CARD]}
        self.boot = 1
        self.scarred: set[str] = set()
        self.acknowledged: dict[str, int] = {}
        self.start()

    def start(self):
        self.ledger = Ledger(self.store, self.clock)
        self.ledger.execute(c.Begin(boot_id=f"boot-{self.boot}"))
        self.look()

    def look(self):
        self.ledger.execute(c.Observe(devices=tuple(self.devices.values()), complete=True))

    def attempt(self, command):
        try:
            return self.ledger.execute(command)
        except (ClaimError, LeaseIsOver, LeaseNotFound, StaleFence):
            return None

    @rule(id=NAMES, kind=st.integers(0, len(CLAIMS) - 1))
    def claim(self, id, kind):
        fresh = id not in self.ledger.state.leases
        answer = self.attempt(c.ClaimDevices(claim=CLAIMS[kind](id)))
        if isinstance(answer, c.Granted):
            for held in answer.lease.devices if fresh else ():
                assert not self.devices[held.id].conditions
                assert held.id not in self.scarred, "nobody has repaired it"
            self.acknowledged[id] = answer.lease.fence

    @rule(id=NAMES)
    def prepared(self, id):
        if id in self.acknowledged:
            self.attempt(c.MarkPrepared(lease=id, fence=self.acknowledged[id]))

    @rule(id=NAMES)
    def renew(self, id):
        self.attempt(c.Renew(lease=id))

    @rule(id=NAMES)
    def release(self, id):
        self.attempt(c.Release(lease=id))

    @rule(id=NAMES, stuck=st.booleans(), returned=st.booleans())
    def prove(self, id, stuck, returned):
        lease = self.ledger.state.leases.get(id)
        if lease is not None:
            fenced = {lease.devices[0].id: "stuck"} if stuck else {}
            self.attempt(c.ProveReleased(lease=id, fence=lease.fence, fenced=fenced, returned=returned))

    @rule()
    def free_the_fenced(self):
        for device_id, fenced in list(self.ledger.state.fenced.items()):
            self.ledger.execute(c.ProveFreed(device=device_id, fence=fenced.fence))

    @rule(seconds=st.sampled_from([1.0, 6.0, 61.0]))
    def time_passes(self, seconds):
        self.clock.time += seconds
        self.ledger.execute(c.Expire())

    @rule(index=st.integers(0, 13), sick=st.booleans(), latched=st.booleans())
    def health_changes(self, index, sick, latched):
        device_id = sorted(self.devices)[index % len(self.devices)]
        conditions = (condition(device_id, latched=latched),) if sick else ()
        if sick and latched:
            self.scarred.add(device_id)
        self.devices[device_id] = changed(self.devices[device_id], conditions=conditions)
        self.look()

    @rule(index=st.integers(0, 13))
    def repair(self, index):
        known = self.ledger.state.devices
        device_id = sorted(known)[index % len(known)]
        conditions = self.devices[device_id].conditions if device_id in self.devices else ()
        try:
            self.ledger.execute(c.RepairDevice(device=device_id, how="reset", conditions=conditions))
        except DeviceBusy:
            return
        if not any(found.latched for found in conditions):
            self.scarred.discard(device_id)

    @rule(gone=st.booleans())
    def the_card_comes_and_goes(self, gone):
        for d in CARD:
            if gone:
                self.devices.pop(d.id, None)
            else:
                self.devices.setdefault(d.id, d)
        self.look()

    @rule()
    def crash(self):
        before = self.ledger.state.snapshot()
        self.ledger = Ledger(self.store, self.clock)
        assert self.ledger.state.snapshot() == before

    @rule()
    def snapshot(self):
        self.store.save_snapshot(self.ledger.state.snapshot())

    @rule()
    def boot(self):
        self.boot += 1
        self.start()

    @invariant()
    def the_journal_tells_one_story(self):
        """An independent reading of the records: one holder a device, rising fences, nothing acknowledged lost."""
        holder: dict[str, str] = {}
        over: set[str] = set()
        fences: list[int] = []
        granted: dict[str, LeaseGranted] = {}
        for _, record in self.store.replay():
            if isinstance(record, LeaseGranted):
                fences.append(record.lease.fence)
                granted[record.lease.id] = record
                over.discard(record.lease.id)
                for held in record.lease.devices:
                    assert held.id not in holder, f"{held.id} is doubled"
                    holder[held.id] = record.lease.id
            elif isinstance(record, LeaseEnded):
                over.add(record.lease)
                for device_id in record.freed:
                    assert holder.pop(device_id) == record.lease
            elif type(record).__name__ == "DeviceFreed":
                holder.pop(record.device)
        assert fences == sorted(set(fences))
        state = self.ledger.state
        assert state.holders == holder
        assert set(state.leases) == set(granted) - over
        for lease in state.leases.values():
            assert lease.state is not LeaseState.ENDED

    @invariant()
    def the_indexes_agree_with_the_devices(self):
        state = self.ledger.state
        state.settle()
        assert load_state(self.store).snapshot() == state.snapshot()
        for node in state.nodes:
            for position, d in enumerate(node.devices):
                assert bool(node.held >> position & 1) == (d.id in state.holders)
                if node.free >> position & 1:
                    family = {d.id, d.parent, *(x.id for x in self.devices.values() if x.parent == d.id)}
                    assert not family & state.holders.keys()


TestBroker = Broker.TestCase
TestBroker.settings = settings(max_examples=examples(40), stateful_step_count=30, deadline=None)
