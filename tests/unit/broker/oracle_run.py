"""Ask the broker and the oracle the same, many times: ``python -m tests.unit.broker.oracle_run 100000 1``."""

from __future__ import annotations

import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hal.broker import command as c
from hal.broker.core import decide
from hal.broker.state import State
from hal.model.claim import Claim
from hal.model.lease import Lease
from tests.unit.broker.oracle import Best, best, gang, places_of
from tests.unit.broker.oracle_explain import check_explanation
from tests.unit.broker.oracle_values import Hold, World
from tests.unit.broker.oracle_verify import Wrong, hold_of, verify
from tests.unit.broker.oracle_worlds import ALL, SELECTORS, made_of, profiles_of, random_claim, random_devices

CLAIMS_PER_WORLD = 6
EXPLAIN_EACH = 8


@dataclass
class Tally:
    """How often what came out; ``mismatches`` in words, with what makes each again."""

    outcomes: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    explained: int = 0

    @property
    def instances(self) -> int:
        return self.outcomes.total()


class Game:
    """One random data center, a broker's state of it, and the plain list of who holds what beside it."""

    def __init__(self, seed: int, features: frozenset[str] = ALL) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.features = features
        self.state = State()
        self.leases: dict[str, Lease] = {}
        self.lost: list[Hold] = []
        self.cordoned: frozenset[str] = frozenset()
        devices = random_devices(self.rng)
        self.world = World(devices=devices, meaning=SELECTORS, profiles=profiles_of(devices), made=made_of(devices))
        self.do(c.Begin(boot_id="boot-1"))
        self.do(c.Observe(devices=self.world.devices, complete=True))

    def do(self, command: c.AnyCommand) -> c.Answer:
        records, answer = decide(self.state, command, 1000.0)
        for record in records:
            self.state.apply(record)
        return answer

    def claims(self) -> Iterator[tuple[Claim, c.Answer, World]]:
        """Yield claims one after the other, each with its answer and the world as it was before."""
        for number in range(CLAIMS_PER_WORLD):
            claim = random_claim(self.rng, f"c{number}", self.features)
            before = self.look()
            answer = self.do(c.ClaimDevices(claim=claim))
            yield claim, answer, before
            if isinstance(answer, c.Granted):
                self.leases[claim.id] = answer.lease
            if self.rng.random() < 0.08:
                self.cordon()
            if self.leases and self.rng.random() < 0.35:
                self.end(self.leases.pop(self.rng.choice(sorted(self.leases))))

    def end(self, lease: Lease) -> None:
        """Release a lease; now and then its holder of one device is not proven to be gone."""
        lost = self.rng.choice(lease.devices) if self.rng.random() < 0.2 else None
        fenced = {lease.slot_of(lost): "it clings"} if lost is not None else {}
        self.do(c.Release(lease=lease.id))
        self.do(c.ProveReleased(lease=lease.id, fence=lease.fence, fenced=fenced))
        if lost is not None:
            self.lost.append(hold_of(self.world, lost))

    def cordon(self) -> None:
        """Keep a device or a machine from new leases, or take all that back."""
        if self.cordoned:
            for target in sorted(self.cordoned):
                self.do(c.LiftCordon(target=target))
            self.cordoned = frozenset()
            return
        device = self.rng.choice(self.world.devices)
        target = device.id if self.rng.random() < 0.7 else f"node:{device.location.node}"
        self.do(c.SetCordon(target=target, why="firmware", by="ada"))
        self.cordoned = frozenset((target,))

    def look(self) -> World:
        """Return the world as it is now."""
        held = [hold_of(self.world, found) for lease in self.leases.values() for found in lease.devices]
        return replace(self.world, holds=(*held, *self.lost), cordoned=self.cordoned)


def judge(world: World, claim: Claim, answer: c.Answer) -> str | None:
    """Return what is wrong with an answer, or None."""
    if isinstance(answer, c.Undecided):
        return None
    expected = best(world, claim)
    if isinstance(answer, c.Refused):
        return None if expected is None else f"refused ({answer.reason}), but {expected} is possible"
    if not isinstance(answer, c.Granted):
        return f"answered {answer}"
    try:
        cost = verify(world, claim, answer.lease.devices)
    except Wrong as error:
        return f"granted, but {error}"
    if expected is None:
        return "granted, and the oracle found nothing"
    nodes = [found.node for _, found in sorted({d.replica: d for d in answer.lease.devices}.items())]
    places = places_of(world, claim, nodes) if claim.gang is not None else expected.places
    got = Best(len(nodes_of(answer.lease)), cost, places)
    return None if got in allowed(world, claim, expected) else f"granted {got}, but {expected} is possible"


def nodes_of(lease: Lease) -> dict[int, str]:
    """Return where each replica lies."""
    return {found.replica: found.node for found in lease.devices}


def allowed(world: World, claim: Claim, expected: Best) -> list[Best]:
    """Return what is as good as it gets."""
    if claim.gang is None or claim.gang.how.value != "fewest":
        return [expected, *(replace_places(expected, n) for n in range((claim.max_replicas or claim.replicas) + 1))]
    return list(gang(world, claim))


def replace_places(found: Best, places: int) -> Best:
    """Return the same in another number of places: where it is not asked for, it does not count."""
    return found._replace(places=places)


def play(seed: int, tally: Tally, features: frozenset[str] = ALL, explain_each: int = EXPLAIN_EACH) -> None:
    """Ask one world's claims, and note what came out; one of so many refusals is to be explained, too."""
    game = Game(seed, features)
    for claim, answer, world in game.claims():
        tally.outcomes[type(answer).__name__] += 1
        wrong = judge(world, claim, answer)
        if (
            wrong is None
            and isinstance(answer, c.Refused)
            and zlib.crc32(f"{seed} {claim.id}".encode()) % explain_each == 0
        ):
            tally.explained += 1
            wrong = check_explanation(world, game.state, claim)
        if wrong is not None:
            tally.mismatches.append(f"seed {seed}, {claim.id}: {wrong}\n    {claim}")


def main(arguments: list[str]) -> int:
    """Run so many instances from a seed on; the third argument names the only features to use."""
    wanted, seed = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    features = frozenset(arguments[2].split(",")) if len(arguments) > 2 else ALL
    tally, began = Tally(), time.perf_counter()
    while tally.instances < wanted:
        seen = len(tally.mismatches)
        play(seed, tally, features)
        for line in tally.mismatches[seen:]:
            print(line)
        seed += 1
    seconds = time.perf_counter() - began
    print(f"{tally.instances} instances, {tally.instances / seconds:.0f} a second: {dict(tally.outcomes)}")
    print(f"{len(tally.mismatches)} differ from the oracle; {tally.explained} explanations were examined, too")
    return 1 if tally.mismatches else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
