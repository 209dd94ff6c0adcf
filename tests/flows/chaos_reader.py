"""Compares the journal, the devices' own log, the guard pages and the holders' diary. It knows nothing of hal.

``look(folder)`` after a death, before anybody has mended anything; ``look(folder, quiet=True)`` when all has come to
rest. Either raises AssertionError with what does not fit. Run it on any folder: chaos_reader.py FOLDER.

* no double allocation: the journal's history (see ``checker``), and no device that its own log shows prepared for two
* no lost claim: what a holder wrote down as acknowledged is there as it was told, or has ended with a proof, if it was
  to end; who was told to wait waits, or was served
* no leaked lease: a device that is prepared is one that the journal knows to be held or fenced; at rest none is
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from tests.unit.broker.checker import World, follow, slot_of


class Remembering(World):
    """Keeps what has been, too."""

    def __init__(self):
        super().__init__()
        self.was_given = defaultdict(set)  # lease -> {(device, fence)}
        self.over = set()
        self.left = set()
        self.shared = set()
        self.begun_from = 0

    def begin_from(self, snapshot):
        super().begin_from(snapshot)
        self.begun_from = snapshot["revision"]
        for lease in self.live.values():
            self.remember(lease["id"], lease["devices"], lease["fence"])
        self.over.update(lease["id"] for lease in snapshot.get("ended", ()))

    def remember(self, lease, devices, fence):
        self.over.discard(lease)  # one that was given up before anybody heard of it may be granted again
        for device in devices:
            self.was_given[lease].add((device["id"], device.get("fence") or fence))
            if device.get("uses"):
                self.shared.add(device["id"])

    def on_lease_granted(self, record):
        super().on_lease_granted(record)
        lease = record["lease"]
        self.remember(lease["id"], lease["devices"], lease["fence"])

    def on_lease_grown(self, record):
        super().on_lease_grown(record)
        self.remember(record["lease"], record["devices"], record["fence"])

    def on_lease_ended(self, record):
        super().on_lease_ended(record)
        self.over.add(record["lease"])

    def on_claim_left(self, record):
        super().on_claim_left(record)
        self.left.add(record["claim"])


def lines(path):
    """Read lines of JSON; the last may be torn by a death."""
    if not path.exists():
        return
    for line in path.read_text().split("\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


class Devices:
    """What the devices' own log says: who has each of them, and which parts are there."""

    def __init__(self, path, world):
        self.world = world
        self.holder = {}
        self.fence = defaultdict(int)
        self.parts = {}
        for line in lines(path):
            getattr(self, line["what"])(line)

    def prepare(self, line):
        device, lease, fence = line["device"], line["lease"], line["fence"]
        known = self.given_as(device)
        other = self.holder.get(device)
        assert other in (None, lease) or known in self.world.shared, f"{device} is prepared for {other} and {lease}"
        assert fence >= self.fence[device], f"{device} is prepared under {fence} after {self.fence[device]}"
        given = self.world.was_given.get(lease)
        if given is not None or not self.world.begun_from:
            assert (known, fence) in (given or ()), f"{device} is prepared for {lease}, {fence}, not in the journal"
        self.holder[device], self.fence[device] = lease, fence

    def unprepare(self, line):
        device, lease = line["device"], line["lease"]
        other = self.holder.pop(device, None)
        shared = self.given_as(device) in self.world.shared
        assert other in (None, lease) or shared, f"{device} is shut for {lease} and prepared for {other}"
        self.fence[device] = max(self.fence[device], line["fence"])

    def made(self, line):
        self.parts[line["device"]] = line["parent"], line["part"]

    def destroyed(self, line):
        assert line["device"] not in self.holder, f"{line['device']} is destroyed while it is prepared"
        self.parts.pop(line["device"], None)

    def given_as(self, device):
        """The device as the journal gives it: of a part, what it is part of."""
        return self.parts[device][0] if device in self.parts else device

    def check(self):
        """Each device that is prepared, and each part that is there, is held or fenced in the journal."""
        for device, lease in self.holder.items():
            known = self.given_as(device)
            by = self.holders(known)
            fits = by if known in self.world.shared else by & {lease}
            assert fits, f"{device} is prepared for {lease}, and the journal gives it to {sorted(by) or 'nobody'}"
        for part, (device, place) in self.parts.items():
            assert f"{device}#{place}" in self.world.holders.get(device, {}), f"part {part} ({place}) is nobody's"

    def holders(self, device):
        return {lease for lease, _ in self.world.holders.get(device, {}).values()}

    def check_rest(self):
        assert not self.holder, f"prepared at rest: {self.holder}"
        assert not self.parts, f"parts at rest: {self.parts}"


def check_diary(path, world):
    """What a holder was told holds, as long as nobody was about to change it; return the ids that were granted."""
    told, changing, ending, elastic = {}, set(), set(), set()
    for line in lines(path):
        what, name = line["what"], line["id"]
        if what == "granted":
            told[name] = line
            changing.discard(name)
        elif what == "queued":
            told[name] = line
        elif what == "refused":
            told.pop(name, None)
        elif what == "elastic":
            elastic.add(name)
        elif what == "changing":
            changing.add(name)
        elif what == "ending":
            ending.add(name)
        elif what == "ended":
            ending.add(name)
            told.pop(name, None)
            assert name not in world.live, f"{name} was said to have ended, and lives"
            assert name not in world.waiting, f"{name} was said to have ended, and waits"
    for name, line in told.items():
        if line["what"] == "queued":
            here = name in world.waiting or name in world.live
            assert here or name in ending or name in world.over, f"{name} was told to wait and is lost"
            continue
        lease = world.live.get(name)
        if lease is None:
            assert name in ending, f"{name} was acknowledged and is lost"
            assert name in world.over or world.begun_from, f"{name} has gone without a proof"
            continue
        assert lease["fence"] == line["fence"], f"{name} has another fence than was told"
        if name not in ending:
            assert lease["state"] in ("bound", "prepared"), f"{name} is {lease['state']}, and nobody ended it"
        if name not in ending | changing | elastic:
            slots = sorted({slot_of(device, name) for device in lease["devices"]})
            assert slots == line["slots"], f"{name} has {slots}, it was told {line['slots']}"
    return told


def look(folder, journal="state/journal.sqlite", pages="state/run/guards", quiet=False):
    """Compare everything; return what the journal adds up to."""
    folder = Path(folder)
    world = follow(folder / journal, quiet, Remembering())
    devices = Devices(folder / "hardware.jsonl", world)
    devices.check()
    check_diary(folder / "diary.jsonl", world)
    if quiet:
        devices.check_rest()
        assert not world.live, f"leases at rest: {sorted(world.live)}"
        assert not world.waiting, f"waiting at rest: {sorted(world.waiting)}"
        open_pages = [page.name for page in (folder / pages).glob("*.page") if any(page.read_bytes()[:8])]
        assert not open_pages, f"open at rest: {open_pages}"
    return world


if __name__ == "__main__":
    look(sys.argv[1])
