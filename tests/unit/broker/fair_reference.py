"""The definition of fairness, word by word and slowly: what docs/explanation/fairness.md says, in fractions.

It shares nothing with hal.broker.fair. Everything is computed anew from what is used and who waits, at every question.
``QUANTUM = None`` leaves out the rounding: that is the ideal, whose numbers grow with every tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

Amounts = Mapping[str, int]
OWN = "(own)"
"""The child that stands for what an inner node uses and waits for itself."""


@dataclass(frozen=True)
class Said:
    """What was said about a tenant."""

    weight: int = 1
    guarantee: Amounts = field(default_factory=dict)
    quota: Amounts = field(default_factory=dict)


@dataclass(frozen=True)
class Waits:
    """A waiting claim."""

    id: str
    path: str
    amounts: Amounts
    group: Hashable
    priority: int
    since: float
    number: int


def above(path: str) -> list[str]:
    """Return the path and those above it, the root last."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:length]) for length in range(len(parts), -1, -1)]


class Reference:
    """Tenants, what they use, and who waits."""

    def __init__(self, quantum: int | None = 1 << 64) -> None:
        self.quantum = quantum
        self.totals: dict[str, int] = {}
        self.said: dict[str, Said] = {}
        self.used: dict[str, list[dict[str, int]]] = {}
        self.waiting: dict[str, Waits] = {}
        self.arrivals = 0

    # What it is told

    def push(self, claim: str, path: str, amounts: Amounts, group: Hashable, priority: int, since: float) -> None:
        """Let a claim wait."""
        self.arrivals += 1
        self.waiting[claim] = Waits(claim, path, dict(amounts), group, priority, since, self.arrivals)

    def use(self, path: str, amounts: Amounts) -> None:
        """Count a lease."""
        self.used.setdefault(path, []).append(dict(amounts))

    def give_back(self, path: str, amounts: Amounts) -> None:
        """Take a lease away."""
        self.used[path].remove(dict(amounts))
        if not self.used[path]:
            del self.used[path]

    # The tree

    def known(self) -> set[str]:
        """Return every tenant that was named, uses something or waits, and all above them."""
        named = {*self.said, *self.used, *(claim.path for claim in self.waiting.values())}
        return {node for path in named for node in above(path)} | {""}

    def children(self, node: str) -> list[str]:
        """Return the paths one step below a node."""
        return sorted(path for path in self.known() if path and above(path)[1] == node)

    def use_of(self, node: str) -> dict[str, int]:
        """Return what is used at and below a node."""
        total: dict[str, int] = {}
        for path, leases in self.used.items():
            if node in above(path):
                for lease in leases:
                    for resource, amount in lease.items():
                        total[resource] = total.get(resource, 0) + amount
        return total

    def own_use(self, node: str) -> dict[str, int]:
        """Return what is used at a node, and not below it."""
        total: dict[str, int] = {}
        for lease in self.used.get(node, []):
            for resource, amount in lease.items():
                total[resource] = total.get(resource, 0) + amount
        return total

    def weight(self, node: str) -> int:
        """Return a node's weight beside its siblings."""
        return self.said.get(node, Said()).weight

    # What may be

    def refused(self, path: str, amounts: Amounts, top: str = "") -> tuple[str, str] | None:
        """Return the nearest node, not above ``top``, whose quota the claim would exceed, and in which resource."""
        for node in above(path):
            if top not in above(node):
                break
            use = self.use_of(node)
            for resource, quota in self.said.get(node, Said()).quota.items():
                asked = amounts.get(resource, 0)
                if asked > 0 and use.get(resource, 0) + asked > quota:
                    return node, resource
        return None

    def guaranteed(self, path: str, amounts: Amounts, held: bool = False) -> bool:
        """Whether a claim (or a lease that is held) is within what is guaranteed to a node on its path."""
        asked = {resource: amount for resource, amount in amounts.items() if amount}
        for node in above(path):
            promised, use = self.said.get(node, Said()).guarantee, self.use_of(node)
            if asked and all(
                promised.get(resource, 0) >= use.get(resource, 0) + (0 if held else amount) and promised.get(resource)
                for resource, amount in asked.items()
            ):
                return True
        return False

    # The shares

    def down(self, number: Fraction) -> Fraction:
        """Round down to the quantum."""
        return number if self.quantum is None else Fraction(floor(number * self.quantum), self.quantum)

    def ratios(self, use: Mapping[str, int]) -> dict[str, Fraction]:
        """Return what fraction of everything a use is, by resource."""
        return {
            resource: self.down(Fraction(use.get(resource, 0), total)) if total > 0 else Fraction(0)
            for resource, total in self.totals.items()
        }

    # What it counts as using while all that wait can be served: H-DRF

    def waits(self, child: str) -> bool:
        """Whether a claim waits at or below a child that no quota from its tenant up to the child refuses."""
        if child.endswith(OWN):
            return any(claim.path == child.removesuffix(OWN) for claim in self.waiting.values())
        return any(
            child in above(claim.path) and self.refused(claim.path, claim.amounts, top=child) is None
            for claim in self.waiting.values()
        )

    def competing(self, node: str) -> list[str]:
        """Return all children of an inner node: the nodes below it, and what it uses and waits for itself."""
        return [node + OWN, *self.children(node)]

    def child_weight(self, child: str) -> int:
        """Return the weight of a child beside its siblings."""
        return 1 if child.endswith(OWN) else self.weight(child)

    def child_use(self, child: str) -> dict[str, int]:
        """Return what is used by a child."""
        return self.own_use(child.removesuffix(OWN)) if child.endswith(OWN) else self.use_of(child)

    def is_leaf(self, child: str) -> bool:
        """Whether nothing is below a child."""
        return child.endswith(OWN) or not self.children(child)

    def raised(self, node: str, level: Fraction) -> dict[str, Fraction]:
        """Return what a node counts as using with each child that waits at this weighted dominant share."""
        use = self.use_of(node)
        rest, parts = dict(use), {resource: Fraction(0) for resource in self.totals}
        for child in self.competing(node):
            if not self.waits(child):
                continue
            rest = {resource: amount - self.child_use(child).get(resource, 0) for resource, amount in rest.items()}
            proportions = self.proportions(child)
            largest = max(proportions.values(), default=Fraction(0))
            if largest:
                for resource in self.totals:
                    parts[resource] += self.down(self.child_weight(child) * proportions[resource] / largest)
        full, blocked = self.ratios(use), self.ratios(rest)
        return {r: min(full[r], blocked[r] + self.down(level * parts[r])) for r in self.totals}

    def proportions(self, child: str) -> dict[str, Fraction]:
        """Return in what proportions a waiting child uses resources; at the level of zero, those just above it."""
        consumption = self.consumption(child)
        if self.is_leaf(child) or any(consumption.values()):
            return consumption
        parts = {resource: Fraction(0) for resource in self.totals}
        for below in self.competing(child):
            if self.waits(below):
                proportions = self.proportions(below)
                largest = max(proportions.values(), default=Fraction(0))
                if largest:
                    for resource in self.totals:
                        parts[resource] += self.down(self.child_weight(below) * proportions[resource] / largest)
        return parts

    def consumption(self, child: str) -> dict[str, Fraction]:
        """Return what a waiting child counts as using."""
        if self.is_leaf(child):
            return self.ratios(self.child_use(child))
        lowest = min(
            max(self.consumption(below).values(), default=Fraction(0)) / self.child_weight(below)
            for below in self.competing(child)
            if self.waits(below)
        )
        return self.raised(child, lowest)

    # What it counts as using in one decision

    def is_open(self, child: str, open_paths: set[str]) -> bool:
        """Whether something at or below a child can be served."""
        if child.endswith(OWN):
            return child.removesuffix(OWN) in open_paths
        return any(child in above(path) for path in open_paths)

    def weighted(self, child: str, open_paths: set[str]) -> Fraction:
        """Return the weighted dominant share of an open child."""
        if self.is_leaf(child):
            counted = self.ratios(self.child_use(child))
        else:
            levels = [
                self.weighted(below, open_paths) for below in self.competing(child) if self.is_open(below, open_paths)
            ]
            counted = self.raised(child, min(levels))
        return max(counted.values(), default=Fraction(0)) / self.child_weight(child)

    # The decision

    def open_claims(self, feasible: Callable[[Hashable], bool]) -> list[Waits]:
        """Return the claims one of which is served next: of the highest class that has any, the guaranteed if any."""
        can = [
            claim
            for claim in self.waiting.values()
            if feasible(claim.group) and self.refused(claim.path, claim.amounts) is None
        ]
        top = [claim for claim in can if claim.priority == max(other.priority for other in can)]
        return [claim for claim in top if self.guaranteed(claim.path, claim.amounts)] or top

    def next(self, feasible: Callable[[Hashable], bool]) -> str | None:
        """Return the claim to be served next."""
        claims = self.open_claims(feasible)
        if not claims:
            return None
        open_paths = {claim.path for claim in claims}
        node = ""
        while self.children(node):
            # OWN sorts as the empty name, before every other.
            ranked = [
                (self.weighted(child, open_paths), "" if child.endswith(OWN) else child, child)
                for child in self.competing(node)
                if self.is_open(child, open_paths)
            ]
            chosen = min(ranked)[2]
            if chosen.endswith(OWN):
                break
            node = chosen
        return min((claim for claim in claims if claim.path == node), key=lambda c: (c.since, c.number)).id

    # What it is entitled to

    def busy(self, node: str) -> bool:
        """Whether something at or below a node uses or waits for anything."""
        return any(self.use_of(node).values()) or any(node in above(claim.path) for claim in self.waiting.values())

    def fair_share(self, node: str) -> Fraction:
        """Return what a node is entitled to beside its busy siblings, as a fraction of everything."""
        if not node:
            return Fraction(1)
        parent = above(node)[1]
        rivals = sum(self.weight(child) for child in self.children(parent) if child == node or self.busy(child))
        if any(self.own_use(parent).values()) or any(claim.path == parent for claim in self.waiting.values()):
            rivals += 1
        return self.fair_share(parent) * Fraction(self.weight(node), rivals)

    def over_share(self, node: str) -> Fraction:
        """Return what a node uses against what it is entitled to."""
        use, fair = self.use_of(node), self.fair_share(node)
        promised = self.said.get(node, Said()).guarantee
        return max(
            (
                use.get(resource, 0) / max(fair * total, Fraction(promised.get(resource, 0)))
                for resource, total in self.totals.items()
                if total > 0
            ),
            default=Fraction(0),
        )
