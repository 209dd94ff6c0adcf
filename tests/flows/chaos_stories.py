"""What holders do, told against any broker, and what they write down before they rely on it.

Each line of a holder's diary is on the disk before the holder goes on, as one that acts on an acknowledgement would
have acted by then:

* ``asked`` before a claim is sent, with the claim
* ``granted`` when it is acknowledged, with fence and slots; again after a change
* ``queued`` when it was told that it waits
* ``elastic`` before a claim that grows and shrinks by itself
* ``changing`` and ``ending`` before anything that may change or end a lease (a release, time that passes)
* ``ended`` when the end is acknowledged
* ``drained`` before a device is, so that it can be given back to the rest
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from hal.api.ask import make_claim, pairs
from hal.broker import command as c
from hal.errors import ClaimRefused
from hal.interfaces.deadline import Deadline
from tests.flows.chaos_hooks import travel

DIARY = "diary.jsonl"


class Diary:
    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / DIARY, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def say(self, what: str, id: str, **more: object) -> None:
        os.write(self._file, json.dumps({"what": what, "id": id, **more}).encode() + b"\n")
        os.fsync(self._file)


class Holder:
    """Claims, and remembers in its diary."""

    def __init__(self, broker, folder: Path) -> None:
        self.broker, self.folder, self.diary = broker, folder, Diary(folder)

    def claim(self, id, asked="gpu", ttl=500.0, **words):
        return self.submit(make_claim(asked, id=id, ttl_seconds=ttl, **words))[0]

    def submit(self, *claims):
        for claim in claims:
            self.diary.say("asked", claim.id, claim=msgspec.to_builtins(claim))
        answers = self.broker.submit(list(claims))
        for claim, answer in zip(claims, answers, strict=True):
            self.heard(claim.id, answer)
        return answers

    def heard(self, id, answer):
        match answer:
            case c.Granted(lease=lease):
                self.granted(lease)
            case c.Queued():
                self.diary.say("queued", id, position=answer.position)
            case c.Refused():
                self.diary.say("refused", id, why=answer.reason)
            case _:
                raise AssertionError(answer)

    def granted(self, lease):
        self.diary.say("granted", lease.id, fence=lease.fence, slots=sorted({lease.slot_of(d) for d in lease.devices}))

    def wait(self, id):
        answer = self.broker.wait_for(id, Deadline.after(20))
        assert isinstance(answer, c.Granted), answer
        self.granted(answer.lease)

    def renew(self, id, ttl=None):
        self.broker.renew(id, ttl)

    def resize(self, id, replicas):
        self.diary.say("changing", id)
        try:
            self.broker.resize(id, replicas)
        except ClaimRefused:
            pass
        self.look(id)

    def look(self, id):
        found = [lease for lease in self.broker.list() if lease.id == id]
        if found and str(found[0].state) == "prepared":
            self.granted(found[0])

    def release(self, *ids):
        for name in ids:
            self.diary.say("ending", name)
            self.broker.release(name)
            self.diary.say("ended", name)

    def pass_time(self, seconds, *ending):
        for name in ending:
            self.diary.say("ending", name)
        travel(self.folder, seconds)
        self.broker.list()  # somebody looks; a server's heart may have been quicker

    def over(self, id):
        """Wait until a lease has ended, and write it down."""
        deadline = Deadline.after(20)
        while any(lease.id == id for lease in self.broker.list()):
            assert not deadline.expired, f"{id} does not end"
        self.diary.say("ended", id)


def single(h):
    h.claim("one", count=2)
    h.renew("one")
    h.renew("one", 900)
    h.release("one")
    h.claim("two", asked="rnic")
    h.release("two")


def batch(h):
    h.submit(
        make_claim("gpu", id="b1", count=2, same="numa"),
        make_claim(pairs("gpu", "rnic", count=2), id="b2"),
        make_claim("gpu", id="b3", count=64),
        make_claim("rnic", id="b4"),
    )
    h.release("b2", "b1")
    h.release("b4")


def shared(h):
    h.claim("s1", asked="rnic", fraction=0.5, where="name == 'mlx5_0'")
    h.claim("s2", asked="rnic", fraction=0.5, where="name == 'mlx5_0'")
    h.claim("s3", asked="rnic", fraction=0.5, where="name == 'mlx5_0'")
    h.release("s1")
    h.claim("s4", asked="rnic", fraction=0.3, where="name == 'mlx5_0'")
    h.release("s2", "s4")


def parts(h):
    h.claim("p1", profile="1g.10gb")
    h.claim("p2", profile="3g.40gb")
    h.release("p1")
    h.claim("p3", profile="1g.10gb")
    h.release("p2", "p3")


def waiting(h):
    h.claim("all", count=8)
    h.claim("w1", count=5, wait=True)
    h.claim("w2", count=2, wait=True, wait_seconds=50.0)
    h.claim("w3", count=1, wait=True)
    h.release("all")
    h.wait("w1")
    h.release("w1", "w2", "w3")


def given_up(h):
    h.claim("all", count=8)
    h.claim("g1", wait=True, wait_seconds=30.0)
    h.pass_time(40, "g1")
    h.release("all")


def preempting(h):
    h.claim("low", count=6, grace_seconds=5.0)
    h.claim("lower", count=2, priority=-1, grace_seconds=3.0)
    h.diary.say("ending", "low")
    h.diary.say("ending", "lower")
    h.claim("high", count=8, priority=10, preempt="lower")
    h.pass_time(10)
    h.wait("high")
    h.release("high")


def elastic(h):
    h.diary.say("elastic", "e")
    h.claim("e", count=2, replicas=1, max_replicas=3)
    h.broker.list()
    h.resize("e", 1)
    h.claim("f", count=4, grace_seconds=2.0, priority=1, preempt="lower")
    h.pass_time(40)
    h.wait("f")
    h.release("f")
    h.resize("e", 2)
    h.release("e")


def reserved(h):
    h.claim("r0", count=4, duration_seconds=60.0)
    begins = next(lease for lease in h.broker.list() if lease.id == "r0").granted_at + 100.0
    h.claim("r1", count=6, start_at=begins, duration_seconds=50.0)
    h.claim("r2", count=4)
    h.claim("r3", count=2, duration_seconds=20.0)
    h.pass_time(70, "r0", "r3")
    h.pass_time(40)
    h.wait("r1")
    h.pass_time(60, "r1")
    h.over("r1")


def draining(h):
    h.claim("d1", asked="rnic", grace_seconds=20.0)
    device = h.broker.get("d1").devices[0].id
    h.diary.say("ending", "d1")
    h.diary.say("drained", device)
    h.broker.drain(device, "a new cable")
    h.pass_time(30)
    h.over("d1")
    h.broker.uncordon(device)
    h.claim("d2", asked="rnic", count=10)
    h.release("d2")


def expiring(h):
    h.claim("x1", count=3, ttl=20.0)
    h.claim("x2", asked="rnic", ttl=100.0)
    h.renew("x1")
    h.pass_time(30, "x1")
    h.over("x1")
    h.claim("x3", count=8)
    h.renew("x2")
    h.pass_time(600, "x2", "x3")
    h.over("x3")


def opening(h):
    """Nothing but a journal begun, and devices seen."""


def shortened(h):
    for number in range(3):
        h.claim(f"k{number}")
        h.release(f"k{number}")
    h.claim("k", asked="rnic")
    h.release("k")


STORIES = {
    story.__name__: story
    for story in (
        opening,
        single,
        batch,
        shared,
        parts,
        waiting,
        given_up,
        preempting,
        elastic,
        reserved,
        draining,
        expiring,
        shortened,
    )
}
"""``shortened`` is told to a ledger that takes a snapshot at every turn and drops what it holds."""
