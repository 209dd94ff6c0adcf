"""An independent reader of the journal: SQLite and JSON, and nothing of hal. Run it on any journal: checker.py FILE.

It reads schema 1 and 2, from the first record or, where records were compacted, from the snapshot, checks the audit
trail's chain, and the invariants I1 to I6 as far as a journal can show them:

* I1: a slot (a device, or a part of it that overlaps no other) has one holder, a shared one never more than it has;
  fences only rise, and a fenced slot has no new holder
* I2: a granted lease is there until it ends with a proof; only what is suspect or releasing ends, unless the machine
  was booted or an operator ordered it
* I3: nothing is freed, ended, grown or told to leave that is not there; at the end nothing is held without a lease
* I4: nothing new is given on a cordoned device or machine
* I5: what a lease frees and fences is what it held, all of it, once
* I6: no tenant that has a quota holds more whole devices than that, at the moment when one is granted
* I7, that everything told to end has ended, holds at rest: ``check(path, quiet=True)``
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
import sys
from collections import defaultdict

SHARED_WHOLE = {"fraction_milli": 1000}


class Journal:
    """What the file holds: the records after ``oldest``, the snapshot to begin with (None: nothing), the trail."""

    def __init__(self, path):
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            self.schema = connection.execute("PRAGMA user_version").fetchone()[0]
            assert self.schema in (1, 2), f"schema {self.schema}"
            records = connection.execute("SELECT revision, body FROM records ORDER BY 1")
            self.records = [(revision, json.loads(body)) for revision, body in records]
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            self.oldest = int(meta.get("compacted", 0))
            self.snapshots = self._snapshots(connection) if self.schema == 2 else {}
            self.trail = connection.execute("SELECT * FROM audit ORDER BY 1").fetchall() if self.schema == 2 else []
        finally:
            connection.close()

    @staticmethod
    def _snapshots(connection):
        """All complete ones, by revision: their parts put together."""
        found = {}
        closed = [row[0] for row in connection.execute("SELECT revision FROM snapshots WHERE part = 0")]
        for revision in closed:
            whole = found[revision] = {}
            parts = connection.execute(
                "SELECT field, body FROM snapshots WHERE revision = ? ORDER BY part", (revision,)
            )
            for field, body in parts:
                members = json.loads(body)
                if not field:
                    whole.update(members)
                elif isinstance(members, dict):
                    whole.setdefault(field, {}).update(members)
                else:
                    whole.setdefault(field, []).extend(members)
        return found


def check_trail(rows, head):
    """Raise AssertionError for a trail with a line that does not follow from the one before it."""
    before = bytes(32)
    for expected, row in enumerate(rows, 1):
        sequence, at, revision, *texts, digest = row
        assert sequence == expected, f"line {sequence} of the trail follows {expected - 1}"
        encoded = [text.encode() for text in texts]
        assert len(encoded) == 5
        header = struct.pack(">QdQ5I", sequence, at, revision, *map(len, encoded))
        before = hashlib.sha256(before + header + b"".join(encoded)).digest()
        assert digest == before, f"line {sequence} of the trail was altered"
        assert revision <= head, (
            f"line {sequence} of the trail speaks of revision {revision}, the journal ends at {head}"
        )


def slot_of(device, lease):
    """What a fence speaks of: a device, a part of it, or one lease's share in it."""
    if device.get("uses"):
        return f"{device['id']}+{lease}"
    part = device.get("partition", "")
    return f"{device['id']}#{part}" if part else device["id"]


class World:
    """Who holds what, told record by record."""

    def __init__(self):
        self.revision = self.fence = 0
        self.live = {}
        self.holders = defaultdict(dict)  # device id -> {slot: (lease, the devices as they were given)}
        self.fenced = {}  # slot -> device
        self.cordons = {}
        self.devices = {}
        self.tenants = {}
        self.waiting = {}
        self.booted = None

    # --- what is there

    def take(self, lease, devices, revision):
        for device in devices:
            slot = slot_of(device, lease)
            beside = self.holders[device["id"]]
            for other, held in beside.values():
                for one in held:
                    assert goes_beside(device, one), f"{slot} is doubled at revision {revision}: {other}, {lease}"
            beside.setdefault(slot, (lease, []))[1].append(device)
            self.check_uses(device["id"], revision)

    def check_cordons(self, devices, revision):
        for device in devices:
            for target in (device["id"], f"node:{device['node']}"):
                assert target not in self.cordons, f"{device['id']} is given at {revision} though {target} is cordoned"

    def check_uses(self, device_id, revision):
        used = defaultdict(int)
        for _, held in self.holders[device_id].values():
            for device in held:
                for name, amount in device.get("uses", {}).items():
                    used[name] += amount
        there = {**self.devices.get(device_id, {}).get("capacity", {}), **SHARED_WHOLE}
        for name, amount in used.items():
            if name in there:
                assert amount <= there[name], f"{name} of {device_id} is used more than once over at {revision}"

    def give(self, lease, device, slot):
        beside = self.holders[device["id"]]
        assert beside.get(slot, ("",))[0] == lease, f"{slot} is freed, and {lease} does not hold it"
        del beside[slot]
        if not beside:
            del self.holders[device["id"]]

    def rises(self, fence, what):
        assert fence > self.fence, f"the fence of {what} does not grow: {fence} after {self.fence}"
        self.fence = fence

    def part(self, lease, devices, record):
        """I5: what is freed and fenced is what was held, all of it, once."""
        held = {slot_of(device, lease): device for device in devices}
        freed, kept = record["freed"], record.get("fenced", {})
        assert not set(freed) & set(kept), f"{lease}: both freed and fenced: {record}"
        assert {*freed, *kept} == set(held), f"{lease} holds {sorted(held)}: {record}"
        for slot, device in held.items():
            if slot in kept:
                self.fenced[slot] = lease, device
            else:
                self.give(lease, device, slot)

    def check_quota(self, tenant, revision):
        for path in self.ancestry(tenant):
            quota = self.tenants.get(path, {}).get("quota", {})
            held = defaultdict(int)
            for lease in self.live.values():
                if path in self.ancestry(lease["tenant"]):
                    for device in lease["devices"]:
                        if not device.get("uses") and not device.get("partition"):
                            held[device["kind"]] += 1
            for kind, most in quota.items():
                assert held[kind] <= most, f"{path or 'the root'} holds {held[kind]} {kind} of {most} at {revision}"

    @staticmethod
    def ancestry(path):
        found = [path]
        while path:
            path = path.rpartition("/")[0]
            found.append(path)
        return found

    # --- the records

    def apply(self, revision, record):
        assert revision == self.revision + 1, f"revision {revision} follows {self.revision}"
        handler = getattr(self, "on_" + record["type"].replace("-", "_"), None)
        assert handler is not None, f"revision {revision}: a {record['type']} that this checker does not know"
        self.revision = revision
        handler(record)

    def on_journal_begun(self, record):
        self.fence = max(self.fence, record["fence"])

    def on_boot_seen(self, record):
        self.booted = record["at"]

    def on_device_seen(self, record):
        self.devices[record["device"]["id"]] = record["device"]

    def on_device_forgotten(self, record):
        assert not self.holders.get(record["device"]), f"{record['device']} is forgotten while it is held"
        self.devices.pop(record["device"], None)

    def on_device_freed(self, record):
        assert record["device"] in self.fenced, f"{record['device']} is freed, and was not fenced"
        lease, device = self.fenced.pop(record["device"])
        self.give(lease, device, record["device"])

    def on_device_repaired(self, record):
        assert record["device"] in self.devices

    def on_cordoned(self, record):
        self.cordons[record["target"]] = record

    def on_uncordoned(self, record):
        self.cordons.pop(record["target"])

    def on_claim_queued(self, record):
        claim = record["claim"]
        assert claim["id"] not in self.live, f"{claim['id']} waits, and has a lease"
        self.waiting[claim["id"]] = claim

    def on_claim_kept(self, record):
        assert record["claim"] in self.waiting

    def on_claim_left(self, record):
        self.waiting.pop(record["claim"])

    def on_lease_granted(self, record):
        lease = record["lease"]
        assert lease["id"] == record["claim"]["id"]
        assert lease["id"] not in self.live, f"{lease['id']} is granted twice"
        self.rises(lease["fence"], lease["id"])
        self.take(lease["id"], lease["devices"], self.revision)
        self.check_cordons(lease["devices"], self.revision)
        self.waiting.pop(lease["id"], None)
        self.live[lease["id"]] = {**lease, "devices": list(lease["devices"]), "state": "bound"}
        self.check_quota(lease["tenant"], self.revision)

    def on_lease_prepared(self, record):
        self.step(record, "prepared", ("bound",))

    def on_lease_renewed(self, record):
        assert self.live[record["lease"]]["state"] in ("bound", "prepared", "draining")

    def on_lease_noticed(self, record):
        lease = self.live[record["lease"]]
        assert lease["state"] in ("bound", "prepared", "draining")
        lease["leaving"] = set(record.get("leaving", ()))
        if not lease["leaving"]:
            lease["state"] = "draining"

    def on_lease_grown(self, record):
        lease = self.live[record["lease"]]
        assert lease["state"] in ("bound", "prepared"), f"{record['lease']} grows while {lease['state']}"
        self.rises(record["fence"], record["lease"])
        self.take(record["lease"], record["devices"], self.revision)
        self.check_cordons(record["devices"], self.revision)
        lease["devices"] += record["devices"]
        lease["state"] = "bound"
        self.check_quota(lease["tenant"], self.revision)

    def on_lease_resized(self, record):
        assert record["lease"] in self.live, f"{record['lease']} is resized and not there"

    def on_lease_shrunk(self, record):
        lease = self.live[record["lease"]]
        gone = [device for device in lease["devices"] if device.get("replica", 0) in record["replicas"]]
        assert gone, f"{record['lease']} shrinks by nothing"
        lease["devices"] = [device for device in lease["devices"] if device not in gone]
        assert lease["devices"], f"nothing of {record['lease']} is left; that is its end"
        self.part(record["lease"], gone, record)

    def on_lease_suspected(self, record):
        self.step(record, "suspect", ("bound", "prepared", "draining"))

    def on_lease_releasing(self, record):
        self.step(record, "releasing", ("bound", "prepared", "draining", "suspect"))

    def on_lease_ended(self, record):
        lease = self.live.pop(record["lease"])
        assert record["proof"], f"{record['lease']} ends without a proof"
        state = lease["state"]
        proven = state in ("suspect", "releasing") or record["at"] == self.booted or "operator" in record["proof"]
        assert proven, f"{record['lease']} ended while {state}: {record['proof']}"
        self.part(record["lease"], lease["devices"], record)

    def on_tenant_set(self, record):
        self.tenants[record["tenant"]["path"]] = record["tenant"]

    def on_tenant_removed(self, record):
        self.tenants.pop(record["path"], None)

    def step(self, record, state, before):
        lease = self.live[record["lease"]]
        assert lease["state"] in before, f"{record['lease']} becomes {state}, and was {lease['state']}"
        lease["state"] = state

    # --- from a snapshot on

    def begin_from(self, snapshot):
        self.revision, self.fence = snapshot["revision"], snapshot["fence"]
        self.devices = {device["id"]: device for device in snapshot.get("devices", ())}
        self.tenants = {tenant["path"]: tenant for tenant in snapshot.get("tenants", ())}
        for lease in snapshot.get("leases", ()):
            self.take(lease["id"], lease["devices"], self.revision)
            self.live[lease["id"]] = {"state": "bound", **lease, "devices": list(lease["devices"])}
        fenced = snapshot.get("fenced", {})
        for slot, entry in fenced.items():
            self.fenced[slot] = entry["lease"], entry["device"]
            self.take(entry["lease"], [entry["device"]], self.revision)
        for cordon in snapshot.get("cordons", ()):
            self.cordons[cordon["target"]] = cordon
        for entry in snapshot.get("waiting", ()):
            self.waiting[entry["claim"]["id"]] = entry["claim"]

    def check_rest(self):
        held = {slot for beside in self.holders.values() for slot in beside}
        owned = {slot_of(device, name) for name, lease in self.live.items() for device in lease["devices"]}
        assert held == owned | set(self.fenced), f"held without a lease: {held ^ (owned | set(self.fenced))}"


def goes_beside(one, other):
    """Whether two may be held at the same time: parts that do not overlap by their table, or shares that add up."""
    if one.get("partition") and other.get("partition"):
        return one["partition"] != other["partition"]
    return bool(one.get("uses")) and bool(other.get("uses")) and one.get("partition") == other.get("partition")


def follow(path, quiet=False, world=None):
    """Return the world at the end of a journal; raise AssertionError for a history that breaks an invariant."""
    journal = Journal(path)
    world = World() if world is None else world
    if journal.oldest:
        starts = [revision for revision in journal.snapshots if revision >= journal.oldest]
        assert starts, f"the records up to {journal.oldest} are gone, and no snapshot holds them"
        world.begin_from(journal.snapshots[min(starts)])
    numbers = [revision for revision, _ in journal.records]
    assert numbers == list(range(journal.oldest + 1, journal.oldest + 1 + len(numbers))), f"a hole in {numbers}"
    for revision, record in journal.records:
        if revision > world.revision:
            world.apply(revision, record)
    check_trail(journal.trail, max(world.revision, journal.oldest))
    world.check_rest()
    if quiet:
        ending = [name for name, lease in world.live.items() if lease["state"] in ("draining", "suspect", "releasing")]
        assert not ending, f"not ended at rest: {ending}"
        assert not world.fenced, f"fenced at rest: {sorted(world.fenced)}"
    return world


def check(path, quiet=False):
    """Return (live leases: id -> (fence, slots, state), fenced slots); raise AssertionError for a broken history."""
    world = follow(path, quiet)
    live = {}
    for name, lease in world.live.items():
        slots = sorted({slot_of(device, name) for device in lease["devices"]})
        live[name] = lease["fence"], slots, lease["state"].replace("suspect", "suspected")
    return live, set(world.fenced)


if __name__ == "__main__":
    print(check(sys.argv[1]))
