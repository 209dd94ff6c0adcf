"""The tree of tenants: what each node uses, what it counts as using, and who of its children waits.

The definition is in ``docs/explanation/fairness.md``; the names here are its names.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from math import lcm
from operator import add, sub
from typing import TYPE_CHECKING

from hal.broker.fair.leaf import Leaf
from hal.broker.fair.limits import Pairs, bits_of
from hal.broker.fair.lines import Lines
from hal.broker.fair.shape import Shapes
from hal.broker.fair.stand import Place, Stand

if TYPE_CHECKING:
    from hal.broker.fair.view import Chosen
    from hal.model.tenant import Tenant

QUANTUM = 1 << 64
"""Shares are counted in this fraction of a resource's total (the definition says where they are rounded)."""

MANY = 64
"""Of more children than these, the leaves are kept in lines by shape; of fewer, one looks at all in their order."""


class World:
    """What all nodes have in common: resources by index, their totals, and the shapes of waiting claims."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.totals: list[int] = []
        self.shapes = Shapes()
        self.epoch = 0

    def ratios(self, use: list[int]) -> list[int]:
        """Return what part of everything a use is, in quanta; of what there is nothing, nothing counts."""
        return [
            (used << 64) // total if used and total > 0 else 0 for used, total in zip(use, self.totals, strict=True)
        ]


class Node(Stand):
    """A tenant, or the root. ``use``, ``leases`` and ``waiting`` count what is at and below it.

    What is computed of it is brought up to date by :meth:`settle`, and depends on no decision: ``admitted`` are the
    shapes that wait here or below and that no quota here or below refuses, ``covered`` those of them that its own
    guarantee covers and ``coverable`` those that its own or one below does; ``full`` is what it uses, ``consumption``
    what it counts as using while all that wait can be served (both in quanta); ``direction`` has the proportions of the
    latter. ``rest`` and ``scaled`` are its parts: of children that do not wait, and of those that do, for each unit of
    their common level.

    ``order`` are the children that wait by what they would count as using if all that wait could be served, which is
    the least that they can count as in any decision. Where there are many children, ``lines`` are the leaves among
    them by shape, and ``inner_order`` those of them with others below them.
    """

    __slots__ = (
        "_admitting",
        "_blocked",
        "_covering",
        "_serials",
        "admitted",
        "below",
        "busy",
        "busy_weight",
        "children",
        "choices",
        "coverable",
        "covered",
        "direction",
        "dirty",
        "dominant",
        "epoch",
        "factor",
        "full",
        "guarantee",
        "guaranteed",
        "inner_order",
        "leases",
        "lines",
        "lowest",
        "mask",
        "name",
        "order",
        "own",
        "parent",
        "partial",
        "path",
        "quota",
        "rest",
        "scaled",
        "stale",
        "tenant",
        "unit",
        "use",
        "waiting",
        "weight",
    )

    def __init__(self, name: str, parent: Node | None, resources: int) -> None:
        super().__init__()
        self.name = name
        self.parent = parent
        self.path: str = f"{parent.path}/{name}" if parent and parent.path else name
        self.tenant: Tenant | None = None
        self.weight = 1
        self.quota: Pairs = ()
        self.guarantee: Pairs = ()
        self.guaranteed = 0
        self.children: dict[str, Node] = {}
        self.own = Leaf(self, resources)
        self.use = [0] * resources
        self.leases = 0
        self.waiting = 0
        self.busy = False
        self.busy_weight = 0

        self.stale = True
        self.epoch = -1
        self.dirty: dict[Leaf | Node, None] = {}

        self.factor = 1
        self.unit = QUANTUM
        self.mask = 0
        self.admitted = self.covered = self.coverable = self.below = 0
        self.full: list[int] | None = None
        self.rest: list[int] | None = None
        self.direction: list[int] = []
        self.dominant = self.lowest = 0
        self._serials = 0

    def touch(self, leaf: Leaf) -> None:
        """Remember that a leaf under this node is not what it was, here and in everything above."""
        if leaf in self.dirty:
            return
        self.dirty[leaf] = None
        node, parent = self, self.parent
        while parent is not None and node not in parent.dirty:
            parent.dirty[node] = None
            node, parent = parent, parent.parent

    def settle(self, world: World) -> None:
        """Bring up to date what is computed of the node and of all below it that have changed."""
        if self.stale or self.epoch != world.epoch or (self.lines is None and len(self.children) > MANY):
            self._begin_anew(world)
        elif not self.dirty:
            return
        for item in self.dirty:
            if isinstance(item, Leaf):
                self._place_leaf(item, world)
            elif item.children:  # one without has become a leaf, and everything was begun anew
                item.settle(world)
                self._place_node(item)
        self.dirty.clear()
        self._sum_up(world)

    def _begin_anew(self, world: World) -> None:
        """Forget what is remembered of the children; a tenant without any never has room for it."""
        self.stale = False
        self.epoch = world.epoch
        items: list[Leaf | Node] = [child if child.children else child.own for child in self.children.values()]
        if self.children or self.parent is None:
            items.append(self.own)
        for item in (*items, *self.dirty):
            item.forget_stand()
        self.dirty = dict.fromkeys(items)
        self.factor = lcm(*(child.weight for child in self.children.values()))
        self.unit = self.factor * QUANTUM
        self.mask = self.below = 0
        self.scaled = [0] * len(world.names)
        self.rest = None
        self.choices: dict[tuple[int, int], Chosen | None] = {}
        self.partial: set[Node] = set()
        self.order: list[Place] = []
        self.inner_order: list[Place] = []
        self._admitting: list[int] = []
        self._covering: list[int] = []
        self._blocked = [0] * len(world.names)
        self.lines = Lines() if len(self.children) > MANY else None

    def _place_leaf(self, leaf: Leaf, world: World) -> None:
        """Let a leaf stand among its siblings as it is now."""
        tenant = leaf.node
        name, weight, admits, covers = "", 1, leaf.mask, 0
        if tenant is not self:
            name, weight = tenant.name, tenant.weight
            if admits and (tenant.quota or tenant.guarantee):
                admits, covers = leaf.open(world)
        if not admits:
            self._block(leaf, leaf.use)
            return
        ratios = world.ratios(leaf.use)
        dominant = max(ratios, default=0)
        key = dominant * (self.factor // weight)
        if self.parent is not None:  # what the root counts as using is never asked
            unit = weight << 64
            self._add_part(leaf, [unit * part // dominant for part in ratios] if dominant else None)
        changed = admits != leaf.admits or covers != leaf.covers
        place = leaf.place
        if place is None or key != place[0] or (changed and self.lines is not None):
            place = self._stand(leaf, key, name)
            if self.lines is not None:
                self.lines.put(leaf, place, admits, covers)
            leaf.place = place
        if changed:
            self._recount(leaf, admits, covers)

    def _place_node(self, child: Node) -> None:
        """Let a child with others below it stand among its siblings as it is now."""
        admits, before = child.admitted, child.place
        if (
            before is not None
            and self.lines is not None
            and (not admits or child.dominant * (self.factor // child.weight) != before[0])
        ):
            del self.inner_order[bisect_left(self.inner_order, before[:3])]
        if not admits:
            self.partial.discard(child)
            self._block(child, child.use)
            return
        key = child.dominant * (self.factor // child.weight)
        if self.parent is not None:
            unit, largest = child.weight << 64, max(child.direction, default=0)
            self._add_part(child, [unit * part // largest for part in child.direction] if largest else None)
        if before is None or key != before[0]:
            place = child.place = self._stand(child, key, child.name)
            if self.lines is not None:
                insort(self.inner_order, place)
        # One in or below which a quota refuses some that wait: what it counts as using is not that of a decision.
        if child.partial or admits != child.mask:
            self.partial.add(child)
        else:
            self.partial.discard(child)
        if admits != child.admits or child.coverable != child.covers:
            self._recount(child, admits, child.coverable)

    def _stand(self, child: Leaf | Node, key: int, name: str) -> Place:
        """Return a new place in the order for a child that waits, and take it out of the one it had."""
        before, order = child.place, self.order
        if before is None:
            self._unblock(child)
        else:
            del order[bisect_left(order, before[:3])]
        self._serials += 1
        place = (key, name, self._serials, child)
        insort(order, place)
        return place

    def _block(self, child: Leaf | Node, use: list[int]) -> None:
        """Let a child that does not wait stand for all that it uses."""
        place = child.place
        if place is not None:
            del self.order[bisect_left(self.order, place[:3])]
            child.place = None
            if self.lines is not None and isinstance(child, Leaf):
                self.lines.leave()
            self._add_part(child, None)
            self._recount(child, 0, 0)
        self._unblock(child)
        if self.parent is not None and any(use):
            child.blocked = use.copy()
            self._blocked = list(map(add, self._blocked, use))
            self.rest = None

    def _unblock(self, child: Leaf | Node) -> None:
        if child.blocked is not None:
            self._blocked = list(map(sub, self._blocked, child.blocked))
            child.blocked = None
            self.rest = None

    def _add_part(self, child: Leaf | Node, part: list[int] | None) -> None:
        """Exchange what a child adds for each unit of level."""
        before = child.part
        if before is not None:
            self.scaled = list(map(sub, self.scaled, before))
        if part is not None:
            self.scaled = list(map(add, self.scaled, part))
        child.part = part

    def _recount(self, child: Leaf | Node, admits: int, covers: int) -> None:
        """Count for each shape how many children stand for it, and of how many a guarantee covers it."""
        if admits != child.admits:
            gone = count(self._admitting, child.admits, admits)
            self.mask = (self.mask | admits) & ~gone
            if gone and self.lines is not None:
                for bit in bits_of(gone):
                    self.lines.forget(bit)
        if covers != child.covers:
            gone = count(self._covering, child.covers, covers)
            self.below = (self.below | covers) & ~gone
        child.admits, child.covers = admits, covers

    def _sum_up(self, world: World) -> None:
        self.choices.clear()
        self.admitted = self.mask
        if self.quota:
            self.admitted &= ~world.shapes.refused(self.quota, self.use)
        if self.guarantee and self.admitted:
            self.covered = self.admitted & ~world.shapes.uncovered(self.guarantee, self.use)
        else:
            self.covered = 0
        self.coverable = self.admitted & (self.covered | self.below)
        if self.parent is None:
            return
        if not self.order:
            return
        key, unit, rest = self.order[0][0], self.unit, self.rest
        self.lowest = key
        self.full = None
        if rest is None:
            rest = self.rest = world.ratios(self._blocked) if any(self._blocked) else []
        if not rest and self.parent.parent is None:  # only its dominant share is asked for
            self.dominant = key * max(self.scaled) // unit if key else 0
            return
        # With all that wait at the lowest level nothing is above what is used: all that is rounded is rounded down.
        consumption = [key * scaled // unit for scaled in self.scaled]
        if rest:
            consumption = list(map(add, rest, consumption))
        self.dominant = max(consumption, default=0)
        self.direction = consumption if self.dominant else self.scaled

    def dominant_at(self, key: int, world: World) -> int:
        """Return its dominant share with all children that wait at this level; it never counts as more than it uses."""
        if key == self.lowest:
            return self.dominant
        full, unit = self.full, self.unit
        if full is None:
            full = self.full = world.ratios(self.use)
        raised = [key * scaled // unit for scaled in self.scaled]
        if self.rest:
            raised = list(map(add, self.rest, raised))
        return max(map(min, full, raised), default=0)


def count(counts: list[int], before: int, after: int) -> int:
    """Count one less of each bit that was and one more of each that is now; return those of which none is left."""
    gone, fewer, more = 0, before & ~after, after & ~before
    while fewer:
        bit = fewer.bit_length() - 1
        fewer ^= 1 << bit
        counts[bit] -= 1
        if not counts[bit]:
            gone |= 1 << bit
    if more:
        short = more.bit_length() - len(counts)
        if short > 0:
            counts.extend([0] * short)
        while more:
            bit = more.bit_length() - 1
            more ^= 1 << bit
            counts[bit] += 1
    return gone
