"""The tree of tenants as the broker uses it: who may have more, who is next, who has too much."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from fractions import Fraction

from hal.broker.fair import entitlement
from hal.broker.fair.entitlement import TenantShare
from hal.broker.fair.leaf import WaitingClaim
from hal.broker.fair.limits import LimitReached, Pairs, QuotaExceeded, covers, exceeded
from hal.broker.fair.node import Node, World
from hal.broker.fair.shape import Shape
from hal.broker.fair.view import pick
from hal.errors import BrokerError, UsageError
from hal.model.tenant import ROOT, Tenant

NOTHING = Tenant(path=ROOT)
_REMEMBERED = 4096


class FairTree:
    """Weighted hierarchical dominant-resource fairness over all resources at once, in integers.

    A tenant that nobody said anything about has the weight 1 and no limits, from the moment when it uses something or
    waits. Amounts are integers of any unit, the same in totals, quotas, guarantees and uses. Equal calls in equal order
    make equal trees; what :meth:`next` answers depends only on what is used, who waits, and in which order they came.
    """

    def __init__(self) -> None:
        self._world = World()
        self._root = Node("", None, 0)
        self._claims: dict[str, WaitingClaim] = {}
        self._arrivals = 0
        self._nodes: dict[str, Node] = {ROOT: self._root}
        self._pairs: dict[tuple[tuple[str, int], ...], Pairs] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, claim_id: str) -> bool:
        return claim_id in self._claims

    # What there is, and who

    def set_total(self, totals: Mapping[str, int]) -> None:
        """Say how much there is of each resource; of one that is not named there is nothing."""
        for name in totals:
            self._index(name)
        new = [totals.get(name, 0) for name in self._world.names]
        if new != self._world.totals:
            self._world.totals = new
            self._world.epoch += 1

    def set_tenant(self, tenant: Tenant) -> None:
        """Say what a tenant may have, from now on. The root's weight means nothing; its limits are everybody's."""
        if tenant.weight < 1:
            raise UsageError(
                f"tenant {tenant.path!r} has the weight {tenant.weight}", during="set tenant", hint="1 or more"
            )
        quota = self._amounts(tenant.quota, "set tenant", zeros=True)
        guarantee = self._amounts(tenant.guarantee, "set tenant")
        node = self._make(tenant.path)
        node.tenant = tenant
        self._limit(node, tenant.weight, quota, guarantee)

    def remove_tenant(self, path: str) -> None:
        """Forget what was said about a tenant; what it uses and waits for goes on."""
        node = self._find(path)
        if node is None or node.tenant is None:
            return
        node.tenant = None
        self._limit(node, NOTHING.weight, (), ())
        self._prune(node)

    # What is used

    def use(self, path: str, amounts: Mapping[str, int], *, leases: int = 1) -> None:
        """Count what was granted. ``leases`` is 0 where a lease that is counted already has grown."""
        pairs = self._amounts(amounts, "use")
        self._take(self._make(path), pairs, leases)

    def give_back(self, path: str, amounts: Mapping[str, int], *, leases: int = 1) -> None:
        """Count what has ended. ``leases`` is 0 where a lease that goes on has shrunk."""
        pairs = self._amounts(amounts, "give back")
        node = self._find(path)
        use = node.own.use if node is not None else ()
        less = [(index, -amount) for index, amount in pairs if use and use[index] >= amount]
        if node is None or node.leases < leases or len(less) < len(pairs):
            raise BrokerError(f"tenant {path!r} gives back more than it uses: {dict(amounts)}", during="give back")
        self._take(node, less, -leases)
        if not node.busy:
            self._prune(node)

    def verdict(self, path: str, amounts: Mapping[str, int]) -> QuotaExceeded | None:
        """Return whose quota the claim would exceed, the nearest first; None if nobody's."""
        asked = self._amounts(amounts, "verdict")
        node: Node | None = self._nearest(path)
        while node is not None:
            index = exceeded(node.quota, node.use, asked) if node.quota else None
            if index is not None:
                return QuotaExceeded(
                    path=node.path,
                    resource=self._world.names[index],
                    used=node.use[index],
                    asked=dict(asked)[index],
                    quota=dict(node.quota)[index],
                )
            node = node.parent
        return None

    def admit(self, path: str, waiting: bool) -> LimitReached | None:
        """Return whose number of leases (or of waiting claims) is at its limit, the nearest first; None if nobody's."""
        node: Node | None = self._nearest(path)
        while node is not None:
            said = node.tenant
            if said is not None:
                limit, count = (said.most_waiting, node.waiting) if waiting else (said.most_claims, node.leases)
                if limit is not None and count >= limit:
                    what = "waiting claims" if waiting else "leases"
                    return LimitReached(path=node.path, what=what, limit=limit)
            node = node.parent
        return None

    # What is promised, and who has more

    def below_guarantee(self, path: str, amounts: Mapping[str, int]) -> bool:
        """Whether the claim fits what is guaranteed to the tenant or one above it: it may take it from borrowers."""
        asked = self._amounts(amounts, "below guarantee")
        return any(covers(node.guarantee, node.use, asked) for node in self._ancestry(path))

    def is_borrowing(self, path: str, amounts: Mapping[str, int]) -> bool:
        """Whether a lease with these amounts, in use now, is more than is guaranteed to its tenant or any above it."""
        held = self._amounts(amounts, "is borrowing")
        return not any(covers(node.guarantee, node.use, held, held=True) for node in self._ancestry(path))

    def share(self, path: str) -> Fraction:
        """Return the largest fraction of any resource that is used at and below the tenant."""
        node = self._find(path)
        return entitlement.dominant_share(node, self._world) if node else Fraction(0)

    def fair_share(self, path: str) -> Fraction:
        """Return the fraction of everything that the tenant is entitled to beside those who use or wait now."""
        node = self._find(path)
        return entitlement.fair_share(node) if node else Fraction(0)

    def over_share(self, path: str) -> Fraction:
        """Return what the tenant uses against what it is entitled to: above 1 it borrows."""
        node = self._find(path)
        return entitlement.over_share(node, self._world) if node else Fraction(0)

    def victim_key(
        self, path: str, priority: int, work_lost_seconds: float, amounts: Mapping[str, int]
    ) -> tuple[int, bool, tuple[Fraction, ...], float]:
        """Return what sorts victims, the first to go first.

        The lowest priority goes first; then who borrows; then who is most above its share, compared from the top of the
        tree down; then whose work was the shortest.
        """
        over = tuple(-entitlement.over_share(node, self._world) for node in reversed(self._ancestry(path)[:-1]))
        return priority, not self.is_borrowing(path, amounts), over, work_lost_seconds

    def report(self, path: str = ROOT) -> list[TenantShare]:
        """Return a row for the tenant and each below it; none for a tenant that nobody knows."""
        node = self._find(path)
        return entitlement.rows(node, self._world) if node else []

    # Who waits

    def push(
        self,
        claim_id: str,
        path: str,
        amounts: Mapping[str, int],
        group: Hashable,
        priority: int = 0,
        since: float = 0.0,
    ) -> None:
        """Put a claim in line. Claims of equal ``group`` are feasible or not together."""
        if claim_id in self._claims:
            raise UsageError(f"claim {claim_id!r} is waiting already", during="push")
        pairs = self._amounts(amounts, "push")
        self._arrivals += 1
        self._enqueue(claim_id, self._make(path), Shape(priority, group, pairs), since, self._arrivals)

    def remove(self, claim_id: str) -> bool:
        """Take a claim out of the line; False if it did not wait."""
        claim = self._claims.get(claim_id)
        if claim is None:
            return False
        self._dequeue(claim)
        self._prune(claim.leaf.node)
        return True

    def next(self, feasible: Callable[[Hashable], bool]) -> str | None:
        """Return the claim to be served next, which stays in line; None if no feasible one is within its quotas.

        ``feasible`` is asked about each group of a priority class at most once, the highest class first.
        """
        for mask in self._world.shapes.classes(feasible):
            found = pick(self._root, self._world, 0, mask) if self._root.guaranteed else None
            found = found or pick(self._root, self._world, mask, 0)
            if found is not None:
                return found
        return None

    def order(self, limit: int | None = None) -> list[str]:
        """Return the waiting claims as they would be served, were there room for each in its turn and nothing ended.

        Those that a quota would refuse even then come last, by priority and age.
        """
        most = len(self._claims) if limit is None else min(limit, len(self._claims))
        served: list[tuple[WaitingClaim, Shape]] = []
        try:
            while len(served) < most and (found := self.next(lambda group: True)) is not None:
                claim = self._claims[found]
                shape = self._world.shapes.of_bit[claim.bit]
                self._take(claim.leaf.node, shape.amounts, 1)
                self._dequeue(claim)
                served.append((claim, shape))
            of_bit = self._world.shapes.of_bit
            rest = sorted(self._claims.values(), key=lambda c: (-of_bit[c.bit].priority, c.since, c.number))
        finally:
            for claim, shape in reversed(served):
                self._enqueue(claim.id, claim.leaf.node, shape, claim.since, claim.number)
                self._take(claim.leaf.node, tuple((index, -amount) for index, amount in shape.amounts), -1)
        return [claim.id for claim, _ in served] + [claim.id for claim in rest[: most - len(served)]]

    # Inside

    def _index(self, resource: str) -> int:
        world = self._world
        index = world.index.get(resource)
        if index is None:
            index = world.index[resource] = len(world.names)
            world.names.append(resource)
            world.totals.append(0)
            world.epoch += 1
            for node in _all(self._root):
                node.use.append(0)
                node.own.use.append(0)
        return index

    def _amounts(self, amounts: Mapping[str, int], during: str, *, zeros: bool = False) -> Pairs:
        named = tuple(amounts.items())
        if not zeros:
            known = self._pairs.get(named)
            if known is not None:
                return known
        if amounts and min(amounts.values()) < 0:
            raise UsageError(f"an amount is negative: {dict(amounts)}", during=during)
        pairs = tuple(sorted([(self._index(name), amount) for name, amount in named if amount or zeros]))
        if not zeros:
            if len(self._pairs) >= _REMEMBERED:
                self._pairs.clear()
            self._pairs[named] = pairs
        return pairs

    def _find(self, path: str) -> Node | None:
        node = self._nodes.get(path)
        if node is not None:
            return node
        node = self._root
        for name in path.split("/") if path else ():
            child = node.children.get(name)
            if child is None:
                return None
            node = child
        return node

    def _make(self, path: str) -> Node:
        known = self._nodes.get(path)
        if known is not None:
            return known
        node = self._root
        names = path.split("/")
        named = "" not in names  # only then is a path one node's alone
        for name in names:
            child = node.children.get(name)
            if child is None:
                child = Node(name, node, len(self._world.names))
                moves = not node.children
                node.children[name] = child
                if named:
                    self._nodes[child.path] = child
                if moves:
                    self._moved(node)
            node = child
        return node

    def _moved(self, node: Node) -> None:
        """Its own leaf now competes elsewhere: in the node, or in its parent."""
        node.stale = True
        node.dirty.clear()
        if node.parent is not None:
            node.parent.stale = True
        node.own.host.touch(node.own)

    def _prune(self, node: Node) -> None:
        while node.parent is not None and not (node.children or node.tenant or node.busy or node.leases):
            parent = node.parent
            del parent.children[node.name]
            if self._nodes.get(node.path) is node:
                del self._nodes[node.path]
            if not parent.children:
                self._moved(parent)
            node = parent

    def _ancestry(self, path: str) -> list[Node]:
        """Return the nodes of the path that there are, the nearest first, the root last."""
        return list(_upwards(self._nearest(path)))

    def _nearest(self, path: str) -> Node:
        """Return the node of the path, or the lowest above it that there is."""
        known = self._nodes.get(path)
        if known is not None:
            return known
        node = self._root
        for name in path.split("/"):
            child = node.children.get(name)
            if child is None:
                break
            node = child
        return node

    def _limit(self, node: Node, weight: int, quota: Pairs, guarantee: Pairs) -> None:
        parent = node.parent
        if parent is not None and weight != node.weight:
            if node.busy:
                parent.busy_weight += weight - node.weight
            parent.stale = True
            node.weight = weight
        more = bool(guarantee) - bool(node.guarantee)
        node.quota, node.guarantee = quota, guarantee
        for above in _upwards(node):
            above.guaranteed += more
        node.own.host.touch(node.own)

    def _take(self, node: Node, pairs: Iterable[tuple[int, int]], leases: int) -> None:
        own = node.own.use
        for index, amount in pairs:
            own[index] += amount
        above: Node | None = node
        while above is not None:
            if leases:
                above.leases += leases
            use = above.use
            for index, amount in pairs:
                use[index] += amount
            above = above.parent
        self._changed(node)

    def _enqueue(self, claim_id: str, node: Node, shape: Shape, since: float, number: int) -> None:
        bit = self._world.shapes.add(shape)
        claim = self._claims[claim_id] = WaitingClaim(claim_id, node.own, bit, since, number)
        node.own.push(claim)
        above: Node | None = node
        while above is not None:
            above.waiting += 1
            above = above.parent
        self._changed(node)

    def _dequeue(self, claim: WaitingClaim) -> None:
        del self._claims[claim.id]
        claim.leaf.leave(claim, self._claims)
        above: Node | None = claim.leaf.node
        while above is not None:
            above.waiting -= 1
            above = above.parent
        self._world.shapes.discard(claim.bit)
        self._changed(claim.leaf.node)

    def _changed(self, node: Node) -> None:
        leaf = node.own
        (node if node.parent is None or node.children else node.parent).touch(leaf)
        busy = leaf.waiting > 0 or any(leaf.use)
        if busy == leaf.busy:
            return
        leaf.busy = busy
        node.busy_weight += 1 if busy else -1
        while node.busy != (node.busy_weight > 0):
            node.busy = not node.busy
            if node.parent is None:
                return
            node.parent.busy_weight += node.weight if node.busy else -node.weight
            node = node.parent


def _upwards(node: Node) -> Iterator[Node]:
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _all(child)
