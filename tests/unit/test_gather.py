"""Group commit over connections: what waits together is committed together, and nobody suffers for another."""

from __future__ import annotations

import asyncio
import threading

import pytest

from hal.api.server.gather import MOST_AT_ONCE, Gatherer
from hal.api.server.peers import OneWrite
from hal.broker.command import Refused
from hal.errors import BrokerError, ClaimError
from hal.model.claim import Claim, Request
from hal.model.kind import Kind


def wanted(name):
    return Claim(id=name, requests=(Request(kind=Kind.GPU),))


class Slow:
    """Answers each claim with its own id; the first commit waits until it is let go."""

    def __init__(self):
        self.seen = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, claims, actors):
        self.seen.append([claim.id for claim in claims])
        self.begun.set()
        assert self.go.wait(10)
        if any(claim.id == "odd" for claim in claims):
            raise ClaimError("this one makes no sense", during="claim")
        if any(claim.id == "broken" for claim in claims):
            raise ZeroDivisionError
        return [Refused(f"{claim.id} of {actor}") for claim, actor in zip(claims, actors, strict=True)]


async def gathered(slow, *requests):
    """Send the first request, and the others while it is being committed; return what became of each."""
    gatherer = Gatherer(slow)
    first = asyncio.ensure_future(gatherer.submit([wanted("first")], "ada"))
    await asyncio.to_thread(slow.begun.wait, 10)
    others = [asyncio.ensure_future(gatherer.submit([wanted(name) for name in names], "bob")) for names in requests]
    await asyncio.sleep(0)  # each has put its claims in
    slow.go.set()
    try:
        return await asyncio.gather(first, *others, return_exceptions=True), gatherer
    finally:
        gatherer.close()


def test_what_arrives_during_a_commit_is_decided_together_and_told_apart():
    slow = Slow()
    (first, one, two), gatherer = asyncio.run(gathered(slow, ["a", "b"], ["c"]))
    assert slow.seen == [["first"], ["a", "b", "c"]]
    assert [answer.reason for answer in first] == ["first of ada"]
    assert [answer.reason for answer in one] == ["a of bob", "b of bob"]
    assert [answer.reason for answer in two] == ["c of bob"]
    assert (gatherer.commits, gatherer.claims) == (2, 4)


def test_a_request_is_never_parted_however_many_wait():
    slow = Slow()
    many = [f"m{number}" for number in range(MOST_AT_ONCE - 1)]
    (_, one, two, three), _ = asyncio.run(gathered(slow, many, ["x", "y"], ["z"]))
    assert [len(ids) for ids in slow.seen] == [1, MOST_AT_ONCE - 1, 3]
    assert (len(one), len(two), len(three)) == (MOST_AT_ONCE - 1, 2, 1)


def test_one_that_makes_no_sense_does_not_harm_the_others():
    (_, one, odd, two), _ = asyncio.run(gathered(Slow(), ["a"], ["odd"], ["b"]))
    assert one[0].reason == "a of bob"
    assert isinstance(odd, ClaimError)
    assert two[0].reason == "b of bob"


def test_a_mistake_of_ours_is_told_to_those_concerned_and_the_next_commit_is_made():
    async def main():
        slow = Slow()
        (_, broken), _ = await gathered(slow, ["broken"])
        assert isinstance(broken, ZeroDivisionError)
        again = Gatherer(slow)
        for name in ("broken", "well"):
            try:
                found = await again.submit([wanted(name)], "ada")
            except ZeroDivisionError:
                continue
            assert found[0].reason == "well of ada"
        again.close()
        assert again.commits == 2

    asyncio.run(main())


def test_an_answer_that_nobody_waits_for_any_more_is_no_trouble():
    async def main():
        slow = Slow()
        gatherer = Gatherer(slow)
        gone = asyncio.ensure_future(gatherer.submit([wanted("gone")], "ada"))
        await asyncio.to_thread(slow.begun.wait, 10)
        gone.cancel()
        slow.go.set()
        assert (await gatherer.submit([wanted("next")], "ada"))[0].reason == "next of ada"
        gatherer.close()

    asyncio.run(main())


def test_closing_waits_for_the_commit_that_has_begun():
    class Failing(Slow):
        def __call__(self, claims, actors):
            super().__call__(claims, actors)
            raise BrokerError("the journal is closed")

    async def main():
        slow = Failing()
        gatherer = Gatherer(slow)
        asked = asyncio.ensure_future(gatherer.submit([wanted("a")], "ada"))
        await asyncio.to_thread(slow.begun.wait, 10)
        slow.go.set()
        await asyncio.to_thread(gatherer.close)
        with pytest.raises(BrokerError):
            await asked

    asyncio.run(main())
    Gatherer(Slow()).close()  # one that nobody used


def test_head_and_body_go_out_as_one_packet_and_before_the_end():
    class Wire:
        def __init__(self):
            self.packets = []

        def is_closing(self):
            return False

        def write(self, data):
            self.packets.append(data)

        def get_write_buffer_size(self):
            return 10

        def close(self):
            self.packets.append("closed")

    async def main():
        wire = Wire()
        transport = OneWrite(wire, asyncio.get_running_loop())
        transport.write(b"head")
        transport.write(b"body")
        assert wire.packets == []
        assert transport.get_write_buffer_size() == 18
        await asyncio.sleep(0)
        assert wire.packets == [b"headbody"]
        transport.write(b"late")
        transport.close()
        await asyncio.sleep(0)
        assert wire.packets == [b"headbody", b"late", "closed"]

    asyncio.run(main())
