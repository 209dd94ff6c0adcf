"""Those who claim: each asks, uses, renews and gives back, over a network that is none to rely on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.model.claim import Claim, Constraint, Preempt, Request, Share
from hal.model.kind import Kind
from hal.model.lease import Lease, LeaseState

if TYPE_CHECKING:
    from tests.simulation.world import World

TENANTS = ("red/a", "red/b", "blue/a", "blue/b")


class Holder:
    """One claim from beginning to end. It may die at any time, and never says so."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.time = world.time
        self.claim = _claim(world, number)
        self.lease: Lease | None = None
        self.done = False
        self.dead = False
        self._asked = 0

    @property
    def id(self) -> str:
        return self.claim.id

    # --- what it does

    def ask(self) -> None:
        if self.dead or self.done or self.lease is not None:
            return
        self._asked += 1
        if self._asked > 40:
            self.done = True
            return
        self.world.tell(f"claim {self.id}", lambda broker: broker.submit([self.claim])[0], self._answered)
        self.time.after(1 + self.time.random.random() * 4, self.ask)

    def _answered(self, answer: object) -> None:
        lease = getattr(answer, "lease", None)
        if self.dead or self.done:
            return
        if isinstance(lease, Lease) and lease.state in (LeaseState.PREPARED, LeaseState.DRAINING):
            if self.lease is None:
                self.world.checker.acknowledged(lease.id, lease.fence)
                self.time.note(f"{self.id}: has {', '.join(device.name for device in lease.devices)}")
                self.lease = lease
                self.world.acknowledged.add(lease.id)
                self._plan(lease)
        elif type(answer).__name__ in ("Refused", "Undecided"):
            self.done = True

    def _plan(self, lease: Lease) -> None:
        random = self.time.random
        self.time.after(lease.ttl_seconds / 3, self.renew)
        self.time.after(random.random() * 5, self.use)
        self.time.after(random.random() * 120, self.leave)
        if self.time.chance(0.15):
            self.time.after(random.random() * 60, self.die)
        if lease.elastic is not None:
            self.time.after(random.random() * 30, self.resize)

    def die(self) -> None:
        self.time.note(f"{self.id}: dies")
        self.dead = True

    def use(self) -> None:
        if self.dead or self.done or self.lease is None:
            return
        for device in self.lease.devices:
            self.world.use(self.lease, device)
        self.time.after(self.time.random.random() * 10, self.use)

    def renew(self) -> None:
        if self.dead or self.done or self.lease is None:
            return
        self.world.tell(f"renew {self.id}", lambda broker: broker.renew(self.id), self._renewed)
        self.time.after(self.claim.ttl_seconds / 3, self.renew)

    def _renewed(self, answer: object) -> None:
        if isinstance(answer, Lease) and not self.done:
            self.lease = answer
            if answer.state is LeaseState.DRAINING and self.time.chance(0.7):
                self.leave()
        elif type(answer).__name__ in ("LeaseEnded", "LeaseNotFound"):
            self.done = True

    def resize(self) -> None:
        if self.dead or self.done or self.lease is None or self.claim.max_replicas is None:
            return
        wanted = self.time.random.randint(self.claim.replicas, self.claim.max_replicas)
        self.world.tell(f"resize {self.id} {wanted}", lambda broker: broker.resize(self.id, wanted), lambda _: None)

    def leave(self) -> None:
        if self.dead or self.done or self.lease is None:
            return
        self.world.tell(f"release {self.id}", lambda broker: broker.release(self.id), self._left)
        self.time.after(2 + self.time.random.random() * 5, self.leave)

    def _left(self, answer: object) -> None:
        if isinstance(answer, Lease) or type(answer).__name__ in ("LeaseEnded", "LeaseNotFound"):
            self.done = True


def _claim(world: World, number: int) -> Claim:
    random = world.time.random
    kind = random.choice((Kind.GPU, Kind.GPU, Kind.RNIC))
    count = random.choice((1, 1, 2))
    requests = (Request(kind=kind, count=count),)
    constraints: tuple[Constraint, ...] = ()
    fields: dict[str, object] = {}
    form = random.random()
    if form < 0.15:
        requests = (Request(kind=Kind.GPU, count=count, name="g"), Request(kind=Kind.RNIC, count=count, name="n"))
        constraints = (Constraint(same="pci-switch", pairwise=True),)
    elif form < 0.3:
        share = {"fraction_milli": random.choice((250, 500))}
        requests = (Request(kind=Kind.GPU, count=1, share=Share.SHARED, capacity=share),)
    elif form < 0.45:
        requests = (Request(kind=Kind.GPU, count=1),)
        fields |= {"replicas": 1, "max_replicas": random.choice((2, 3))}
    elif form < 0.55:
        constraints = (Constraint(same="numa"),)
    if random.random() < 0.6:
        fields |= {"wait": True, "wait_seconds": random.choice((None, 30.0, 200.0))}
    if random.random() < 0.3:
        fields |= {"duration_seconds": random.choice((20.0, 60.0))}
    if random.random() < 0.1:
        fields |= {"start_at": world.time.now() + random.random() * 60}
    if random.random() < 0.25:
        fields |= {"preempt": Preempt.LOWER}
    return Claim(
        id=f"c{number}",
        requests=requests,
        constraints=constraints,
        tenant=random.choice(TENANTS),
        ttl_seconds=random.choice((10.0, 30.0, 60.0)),
        priority=random.randint(0, 3),
        grace_seconds=random.choice((0.0, 5.0, 20.0)),
        **fields,
    )
