"""Random trees with churn, in which the tree of the broker and the reference are asked the same.

``python -m tests.unit.broker.fair_run 10000`` runs the seeds 0 to 9,999 and says how many decisions were compared.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Hashable

from hal.broker.fair.tree import FairTree
from hal.model.tenant import Tenant
from tests.unit.broker.fair_reference import Reference, Said


class Churn:
    """One random tree, and a random life of it; every answer is compared on the way."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tree = FairTree()
        self.reference = Reference()
        self.resources = ["gpu", "rnic", "pmem", "dpu"][: self.random.randint(1, 4)]
        self.shapes = [self._amounts() for _ in range(self.random.randint(1, 5))]
        self.paths = self._paths()
        self.leases: list[tuple[str, dict[str, int]]] = []
        self.claims = 0
        self.decisions = 0
        self._set_total()

    def _amounts(self) -> dict[str, int]:
        return {name: self.random.choice((0, 0, 1, 1, 2, 3, 7, 1000)) for name in self.resources}

    def _paths(self) -> list[str]:
        found = [""] if self.random.random() < 0.1 else []
        for _ in range(self.random.randint(1, 8)):
            above = self.random.choice([*found, "", ""])
            name = self.random.choice("abcdefg") + self.random.choice(("", "-x"))
            found.append(f"{above}/{name}" if above else name)
        return found

    def _set_total(self) -> None:
        totals = {name: self.random.choice((0, 7, 16, 30, 1000, 4096)) for name in self.resources}
        self.tree.set_total(totals)
        self.reference.totals = {name: totals[name] for name in self.resources}

    def _limits(self, share: float) -> dict[str, int]:
        return {name: self.random.choice((0, 1, 3, 8, 1001)) for name in self.resources if self.random.random() < share}

    def _set_tenant(self) -> None:
        path = self.random.choice(self.paths)
        if self.random.random() < 0.15:
            self.tree.remove_tenant(path)
            self.reference.said.pop(path, None)
            return
        limited = self.random.random() < 0.5
        said = Said(
            weight=self.random.choice((1, 1, 1, 2, 3, 50)),
            quota=self._limits(0.5) if limited else {},
            guarantee=self._limits(0.5) if self.random.random() < 0.4 else {},
        )
        self.tree.set_tenant(
            Tenant(path=path, weight=said.weight, quota=dict(said.quota), guarantee=dict(said.guarantee))
        )
        self.reference.said[path] = said

    def _push(self) -> None:
        self.claims += 1
        number = self.random.randrange(len(self.shapes))
        # Mostly a group's claims ask for the same; the tree must not count on it.
        amounts = self.shapes[number] if self.random.random() < 0.95 else self._amounts()
        words = (
            f"c{self.claims}",
            self.random.choice(self.paths),
            amounts,
            number,
            self.random.choice((0, 0, 0, 1)),
            float(self.random.randint(0, 5)),
        )
        self.tree.push(*words)
        self.reference.push(*words)

    def _remove(self) -> None:
        if self.reference.waiting:
            claim = self.random.choice(sorted(self.reference.waiting))
            del self.reference.waiting[claim]
            assert self.tree.remove(claim)

    def _end(self) -> None:
        if self.leases:
            path, amounts = self.leases.pop(self.random.randrange(len(self.leases)))
            self.tree.give_back(path, amounts)
            self.reference.give_back(path, amounts)

    def _decide(self) -> None:
        can = {number for number in range(len(self.shapes)) if self.random.random() < 0.75}

        def feasible(group: Hashable) -> bool:
            return group in can

        found = self.tree.next(feasible)
        assert found == self.reference.next(feasible)
        self.decisions += 1
        if found is None:
            return
        claim = self.reference.waiting.pop(found)
        assert self.tree.verdict(claim.path, claim.amounts) is None
        self.leases.append((claim.path, dict(claim.amounts)))
        for side in self.random.sample((0, 1), 2):
            if side:
                self.tree.use(claim.path, claim.amounts)
            else:
                self.tree.remove(found)
        self.reference.use(claim.path, claim.amounts)

    def _ask(self) -> None:
        path, amounts = self.random.choice(self.paths), self.random.choice(self.shapes)
        verdict = self.tree.verdict(path, amounts)
        refused = self.reference.refused(path, amounts)
        assert (verdict and verdict.path) == (refused and refused[0])
        assert self.tree.below_guarantee(path, amounts) == self.reference.guaranteed(path, amounts)
        assert self.tree.is_borrowing(path, amounts) != self.reference.guaranteed(path, amounts, held=True)
        if path in self.reference.known():
            assert self.tree.fair_share(path) == self.reference.fair_share(path)
            assert self.tree.over_share(path) == self.reference.over_share(path)

    def _order(self) -> None:
        assert self.tree.order() == order(self.reference)

    def step(self) -> None:
        """Do one thing."""
        verbs = (self._push, self._remove, self._end, self._decide, self._ask, self._set_tenant, self._set_total)
        self.random.choices(verbs, (30, 4, 12, 40, 6, 5, 1))[0]()

    def run(self, steps: int) -> int:
        """Live for so many steps; return how many decisions were compared."""
        for _ in range(steps):
            self.step()
        self._order()
        return self.decisions


def order(reference: Reference) -> list[str]:
    """Return the reference's claims in the order of service; the reference is as before afterwards."""
    waiting = dict(reference.waiting)
    served = []
    while (found := reference.next(lambda group: True)) is not None:
        claim = reference.waiting.pop(found)
        reference.use(claim.path, claim.amounts)
        served.append(claim)
    rest = sorted(reference.waiting.values(), key=lambda c: (-c.priority, c.since, c.number))
    for claim in served:
        reference.give_back(claim.path, claim.amounts)
    reference.waiting = waiting
    return [claim.id for claim in [*served, *rest]]


def main(many: int, first: int = 0) -> None:
    """Run so many trees from a seed on."""
    decisions = 0
    for seed in range(first, first + many):
        try:
            decisions += Churn(seed).run(60)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
    print(f"{many} trees from seed {first} on, {decisions} decisions: no difference from the reference")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["10000"]))
