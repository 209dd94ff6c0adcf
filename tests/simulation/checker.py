"""The invariants I1 to I7, checked after every step from what stands on the disk and what the devices saw.

It knows the journal's JSON and nothing of the program that writes it: no import of hal.

====  ====================================================================================================
I1    a device is held by one lease at a time (or shared within its capacity), fences only rise, and no device
      serves two holders, or one that the journal does not name
I2    what was acknowledged stands in the journal
I3    nothing is left over once everybody has gone
I4    nothing is given that was cordoned, latched or missing at that revision
I5    what the broker counts adds up, and to what the journal says
I6    no quota is exceeded
I7    once faults stop, every release, drain and waiting claim comes to an end
====  ====================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

WHOLE = 1000


class Violation(AssertionError):
    """An invariant does not hold."""


class Checker:
    """Reads records one by one, and what devices saw one by one."""

    def __init__(self) -> None:
        self.read = 0
        self.fence = 0
        self.boot = ""
        self.devices: dict[str, dict] = {}
        self.cordons: set[str] = set()
        self.quotas: dict[str, dict[str, int]] = {}
        self.waiting: set[str] = set()
        self.leases: dict[str, dict] = {}
        self.granted: dict[str, int] = {}
        self.over: set[str] = set()
        self.returned: set[str] = set()
        self.fenced: dict[str, dict] = {}
        self.served: dict[str, dict[str, int]] = {}
        self.closed: dict[tuple[str, str], int] = {}

    def take(self, history: Sequence[object]) -> None:
        """Go on through what was written (bytes of JSON) and what devices saw (tuples), in their one order."""
        while self.read < len(history):
            entry = history[self.read]
            self.read += 1
            if isinstance(entry, bytes):
                record = json.loads(entry)
                handler = getattr(self, "_" + record["type"].replace("-", "_"), None)
                if handler is not None:
                    handler(record)
            else:
                self._touched(*entry)

    # --- the journal

    def _require(self, held: bool, invariant: str, what: str) -> None:
        if not held:
            raise Violation(f"{invariant}: {what} (entry {self.read} of the history)")

    def _journal_begun(self, record: dict) -> None:
        self.fence = record["fence"]

    def _boot_seen(self, record: dict) -> None:
        self.boot = record["boot_id"]

    def _device_seen(self, record: dict) -> None:
        self.devices[record["device"]["id"]] = record["device"]

    def _device_forgotten(self, record: dict) -> None:
        del self.devices[record["device"]]

    def _device_repaired(self, record: dict) -> None:
        self.devices[record["device"]]["conditions"] = record.get("conditions", [])

    def _cordoned(self, record: dict) -> None:
        self.cordons.add(record["target"])

    def _uncordoned(self, record: dict) -> None:
        self.cordons.discard(record["target"])

    def _tenant_set(self, record: dict) -> None:
        self.quotas[record["tenant"]["path"]] = record["tenant"].get("quota", {})

    def _claim_queued(self, record: dict) -> None:
        self.waiting.add(record["claim"]["id"])

    def _claim_left(self, record: dict) -> None:
        self.waiting.discard(record["claim"])
        self.over.add(record["claim"])

    def _lease_granted(self, record: dict) -> None:
        lease = record["lease"]
        self.waiting.discard(lease["id"])
        self._require(lease["id"] not in self.leases, "I1", f"{lease['id']} is granted twice")
        self._rise(lease["fence"])
        self._give(lease["id"], lease["tenant"], lease["devices"])
        self.leases[lease["id"]] = {**lease, "state": "bound"}
        self.granted[lease["id"]] = lease["fence"]
        self.returned.discard(lease["id"])
        self._check_quotas(lease["tenant"], {device["kind"] for device in lease["devices"]})

    def _lease_grown(self, record: dict) -> None:
        lease = self.leases[record["lease"]]
        self._rise(record["fence"])
        self._give(lease["id"], lease["tenant"], record["devices"])
        lease["devices"] = lease["devices"] + record["devices"]
        self._check_quotas(lease["tenant"], {device["kind"] for device in record["devices"]})

    def _rise(self, fence: int) -> None:
        self._require(fence > self.fence, "I1", f"the fence {fence} is not above {self.fence}")
        self.fence = fence

    def _give(self, lease: str, tenant: str, given: Iterable[dict]) -> None:
        for device in given:
            known = self.devices.get(device["id"])
            self._require(known is not None, "I4", f"{device['id']} is given and not there")
            node = known["location"]["node"]
            barred = {device["id"], f"node:{node}"} & self.cordons
            self._require(not barred, "I4", f"{device['id']} is given and cordoned")
            self._require(known.get("presence", "present") == "present", "I4", f"{device['id']} is given and missing")
            bad = [c for c in known.get("conditions", []) if c.get("latched") and c.get("status", "true") == "true"]
            self._require(not bad, "I4", f"{device['id']} is given and latched")
            self._check_free(lease, device)

    def _check_free(self, lease: str, device: dict) -> None:
        uses = device.get("uses")
        used = dict(uses or {})
        for other_id, other in self._slots_of(device["id"]):
            theirs = other.get("uses")
            both = uses and theirs
            self._require(bool(both), "I1", f"{device['id']} is given to {lease} and held by {other_id}")
            for name, amount in theirs.items():
                used[name] = used.get(name, 0) + amount
        for name, amount in used.items():
            whole = WHOLE if name == "fraction_milli" else self.devices[device["id"]]["capacity"][name]
            self._require(amount <= whole, "I1", f"{device['id']} is shared beyond its {name}")

    def _slots_of(self, device_id: str) -> list[tuple[str, dict]]:
        found = [(x["id"], d) for x in self.leases.values() for d in x["devices"] if d["id"] == device_id]
        return found + [(f["lease"], f["device"]) for f in self.fenced.values() if f["device"]["id"] == device_id]

    def _check_quotas(self, tenant: str, kinds: set[str]) -> None:
        for path, quota in self.quotas.items():
            if path and tenant != path and not tenant.startswith(path + "/"):
                continue
            used: dict[str, int] = {}
            for lease in self.leases.values():
                if not path or lease["tenant"] == path or lease["tenant"].startswith(path + "/"):
                    for device in lease["devices"]:
                        used[device["kind"]] = used.get(device["kind"], 0) + device.get("milli", WHOLE)
            for kind, most in quota.items():
                if kind not in kinds:
                    continue  # it may have been set below what was used already
                self._require(used.get(kind, 0) <= most * WHOLE, "I6", f"{path} uses {used.get(kind)} of {most} {kind}")

    def _lease_prepared(self, record: dict) -> None:
        lease = self.leases[record["lease"]]
        for device in lease["devices"]:
            if device.get("uses"):
                continue
            fence = device.get("fence") or lease["fence"]
            serves = self.served.get(device["id"], {}).get(lease["id"])
            self._require(serves == fence, "I1", f"{lease['id']} is said to be prepared, {device['id']} is not")

    def _lease_noticed(self, record: dict) -> None:
        self.leases[record["lease"]]["leaving"] = True

    def _lease_suspected(self, record: dict) -> None:
        self.leases[record["lease"]]["state"] = "suspect"

    def _lease_releasing(self, record: dict) -> None:
        self.leases[record["lease"]]["state"] = "releasing"

    def _lease_shrunk(self, record: dict) -> None:
        lease = self.leases[record["lease"]]
        gone = [d for d in lease["devices"] if d.get("replica", 0) in record["replicas"]]
        lease["devices"] = [d for d in lease["devices"] if d.get("replica", 0) not in record["replicas"]]
        self._let_go(lease, gone, record)

    def _lease_ended(self, record: dict) -> None:
        lease = self.leases.pop(record["lease"])
        proven = lease["state"] in ("suspect", "releasing") or "booted" in record["proof"]
        self._require(proven, "I1", f"{lease['id']} ends from {lease['state']} without anybody ending it")
        self._let_go(lease, lease["devices"], record)
        if record.get("returned"):
            self.returned.add(lease["id"])
        else:
            self.over.add(lease["id"])

    def _let_go(self, lease: dict, devices: Iterable[dict], record: dict) -> None:
        for device in devices:
            slot = f"{device['id']}+{lease['id']}" if device.get("uses") else device["id"]
            if slot in record.get("fenced", {}):
                self.fenced[slot] = {"lease": lease["id"], "device": device}
                continue
            self._require(slot in record["freed"], "I1", f"{slot} is neither freed nor fenced")
            serves = self.served.get(device["id"], {}).get(lease["id"])
            alone = not device.get("uses")
            rebooted = "booted" in record["proof"]
            self._require(
                serves is None or not alone or rebooted,
                "I1",
                f"{device['id']} is said to be free and serves {lease['id']}",
            )

    def _device_freed(self, record: dict) -> None:
        fenced = self.fenced.pop(record["device"])
        device, lease = fenced["device"], fenced["lease"]
        serves = self.served.get(device["id"], {}).get(lease)
        booted = "booted" in record["proof"]
        self._require(
            serves is None or booted or bool(device.get("uses")), "I1", f"{device['id']} is freed and serves {lease}"
        )

    # --- what the devices saw

    def _touched(self, what: str, device: str, lease: str, fence: int) -> None:
        if what == "power":
            self.served.clear()
            return
        serves = self.served.setdefault(device, {})
        if what == "unprepared":
            serves.clear()
        elif what == "prepared":
            holder = self.leases.get(lease)
            self._require(holder is not None, "I1", f"{device} is prepared for {lease}, which has no lease")
            mine = next((d for d in holder["devices"] if d["id"] == device), None)
            self._require(mine is not None, "I1", f"{device} is prepared for {lease}, which does not have it")
            right = mine.get("fence") or holder["fence"]
            self._require(fence == right, "I1", f"{device} is prepared under the fence {fence}, not {right}")
            strangers = set(serves) - {lease}
            self._require(
                not strangers or bool(mine.get("uses")), "I1", f"{device} is prepared for {lease} and {strangers}"
            )
            serves[lease] = fence
        else:
            others = [name for name in serves if name != lease]
            shared = any(d.get("uses") for _, d in self._slots_of(device))
            self._require(lease in serves or shared, "I1", f"{device} is used by {lease}, but serves {others}")

    # --- what was said

    def acknowledged(self, lease: str, fence: int) -> None:
        """A holder was told that it has this lease."""
        self._require(
            self.granted.get(lease) == fence, "I2", f"{lease} was acknowledged under {fence} and is not there"
        )

    def still_there(self, lease: str) -> None:
        """A lease that was acknowledged is there, or it ended with a proof; it was never taken for not made."""
        known = lease in self.leases or lease in self.over
        self._require(known and lease not in self.returned, "I2", f"{lease} was acknowledged and is lost")

    def counted(self, counts: dict[str, dict[str, int]]) -> None:
        """The broker's own counts: each device once, and held where the journal says so."""
        for kind, row in counts.items():
            parts = sum(number for name, number in row.items() if name != "all")
            self._require(parts == row["all"], "I5", f"{kind}: {row} does not add up")
            here = [d for d in self.devices.values() if d["kind"] == kind and d.get("allocatable")]
            self._require(row["all"] >= len(here), "I5", f"{kind}: {row['all']} counted, {len(here)} there")
            held = {
                d["id"] for x in self.leases.values() for d in x["devices"] if d["kind"] == kind and not d.get("uses")
            }
            fenced = {f["device"]["id"] for f in self.fenced.values()}
            self._require(row["held"] == len(held - fenced), "I5", f"{kind}: {row['held']} held, {len(held)} in leases")

    def at_rest(self) -> None:
        """Everybody has gone, and faults have stopped long ago."""
        self._require(not self.leases, "I7", f"leases that never ended: {sorted(self.leases)}")
        self._require(not self.waiting, "I7", f"claims that never came: {sorted(self.waiting)}")
        self._require(not self.fenced, "I3", f"devices that were never freed: {sorted(self.fenced)}")
        serving = {device: serves for device, serves in self.served.items() if serves}
        self._require(not serving, "I3", f"devices that still serve somebody: {serving}")
