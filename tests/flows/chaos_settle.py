"""What comes after a death: what was told stands, and then time ends all that is left."""

from __future__ import annotations

import os
import time

import msgspec

from hal.broker import command as c
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from tests.flows.chaos_hooks import travel
from tests.flows.chaos_reader import lines
from tests.flows.chaos_stories import DIARY, Holder


def settle(holder: Holder, *, asks_again: bool, late_request: bool) -> None:
    """What was told stands, the same claim again is the same lease, time ends the rest, and all is free then.

    ``late_request``: the server goes on, and the last request of a client that died may be decided at any time, also
    when all else is over.
    """
    live = {lease.id: lease for lease in holder.broker.list()}
    told, ending, asked = {}, set(), {}
    for line in lines(holder.folder / DIARY):
        if line["what"] == "granted":
            told[line["id"]] = line
        elif line["what"] in ("ending", "ended", "refused"):
            ending.add(line["id"])
        elif line["what"] == "asked":
            asked[line["id"]] = line["claim"]
    standing = told.keys() - ending
    for name in standing:
        assert live[name].fence == told[name]["fence"], f"{name} was acknowledged with another fence"
    if asks_again:
        for name in [name for name in asked if name in live or name in standing]:
            answer = holder.submit(msgspec.convert(asked[name], Claim))[0]
            if name in standing:
                assert answer.lease.fence == live[name].fence, f"{name} asked again is another lease"
    end_all(holder, ending)
    name = f"everything-{os.getpid()}"
    answer = holder.claim(name, count=8)
    if late_request and isinstance(answer, c.Refused):
        end_all(holder, ending)
        name = f"everything-else-{os.getpid()}"
        answer = holder.claim(name, count=8)
    assert isinstance(answer, c.Granted), answer
    assert answer.lease.fence > max([0, *(line["fence"] for line in told.values())])
    more = holder.claim(f"more-{os.getpid()}")
    assert isinstance(more, c.Refused), "nine of eight"
    holder.release(name)


def end_all(holder: Holder, ending: set[str]) -> None:
    """Let time pass until nobody holds anything and nobody waits, and give back what was drained."""
    broker = holder.broker
    maintain = getattr(broker, "maintain", None)
    deadline = Deadline.after(20)
    while True:
        for name in (line["id"] for line in lines(holder.folder / DIARY)):
            if name not in ending:
                ending.add(name)
                holder.diary.say("ending", name)
        travel(holder.folder, 1000.0)
        if maintain is not None:
            maintain()
        queue = broker.queue()  # first: a claim goes from the queue to the leases and never back
        leases = broker.list()
        if not queue and not leases:
            break
        assert not deadline.expired, f"they never end: {leases}, or never come: {queue}"
        time.sleep(0.05 if maintain is None else 0.0)  # a server's heart looks at the clock once a second
    assert not broker.status().fenced, "a device that is never freed"
    for line in lines(holder.folder / DIARY):
        if line["what"] == "drained":
            broker.uncordon(line["id"])
