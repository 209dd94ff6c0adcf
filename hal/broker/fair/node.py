"""The tree: what is used and waited for at and below each node, and which of its children have changed."""

from __future__ import annotations

from collections import OrderedDict
from math import lcm
from typing import TYPE_CHECKING

from hal.broker.fair.leaf import Bucket, Leaf
from hal.broker.fair.limits import Pairs, covers, exceeded
from hal.broker.fair.shape import Shapes

if TYPE_CHECKING:
    from hal.broker.fair.view import View
    from hal.model.tenant import Tenant

QUANTUM = 1 << 64
"""Shares are counted in this fraction of a resource's total (the definition says where they are rounded)."""

VIEWS = 64
"""So many views are kept at each node: the sets of shapes it was last asked about."""


class World:
    """What all nodes have in common: resources by index, their totals, and the shapes of waiting claims."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.totals: list[int] = []
        self.shapes = Shapes()
        self.epoch = 0
        self._serial = 0

    def serial(self) -> int:
        """Return a number that was never returned before."""
        self._serial += 1
        return self._serial


class Node:
    """A tenant, or the root. ``use``, ``leases`` and ``waiting`` count what is at and below it."""

    def __init__(self, name: str, parent: Node | None, resources: int) -> None:
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
        self.mask = 0
        self.busy = False
        self.busy_weight = 0
        self.factor = 1
        self.buckets: dict[tuple[int, int], Bucket] = {}
        self.dirty: dict[Leaf, None] = {}
        self.version = 0
        self.log: list[Bucket | Node] = []
        self.forgotten = 0
        self.views: OrderedDict[tuple[int, int], View] = OrderedDict()
        self.stale = True
        self.epoch = -1
        self._counts: dict[int, int] = {}

    def count(self, bit: int, claims: int) -> None:
        """Count claims of a shape that come (or, below zero, go) at or below here."""
        self.waiting += claims
        left = self._counts.get(bit, 0) + claims
        if left:
            self._counts[bit] = left
            self.mask |= 1 << bit
        else:
            del self._counts[bit]
            self.mask &= ~(1 << bit)

    def note(self, changed: Bucket | Node) -> None:
        """Remember that a child is not what it was; views read on from where they were."""
        log = self.log
        log.append(changed)
        if len(log) > 4 * (len(self.children) + len(self.buckets)) + 64:
            half = len(log) // 2
            del log[:half]
            self.forgotten += half

    def touch(self, leaf: Leaf) -> None:
        """Remember that a leaf under this node is not what it was, here and in everything above."""
        self.dirty[leaf] = None
        self.version += 1
        node = self
        while node.parent is not None:
            node.parent.note(node)
            node = node.parent
            node.version += 1

    def narrow(self, world: World, allowed: int, sought: int) -> tuple[int, int]:
        """Return which shapes can be served below here.

        ``allowed`` are those that may be served wherever they wait, ``sought`` those that may where a guarantee covers
        them. The quota takes shapes away; the guarantee makes allowed what was sought.
        """
        allowed &= self.mask
        sought &= self.mask & ~allowed
        if not (self.quota or self.guarantee):
            return allowed, sought if self.guaranteed else 0
        rest = allowed | sought
        while rest:
            lowest = rest & -rest
            rest ^= lowest
            amounts = world.shapes.of_bit[lowest.bit_length() - 1].amounts
            if self.quota and exceeded(self.quota, self.use, amounts) is not None:
                allowed &= ~lowest
                sought &= ~lowest
            elif lowest & sought and covers(self.guarantee, self.use, amounts):
                allowed |= lowest
                sought ^= lowest
        return allowed, sought if self.guaranteed > bool(self.guarantee) else 0

    def settle(self, world: World) -> None:
        """Put the leaves that have changed where they belong."""
        if self.stale or self.epoch != world.epoch:
            self._begin_anew(world)
        if not self.dirty:
            return
        for leaf in self.dirty:
            self._place(leaf, world)
        self.dirty.clear()

    def _begin_anew(self, world: World) -> None:
        self.stale = False
        self.epoch = world.epoch
        self.views.clear()
        self.buckets.clear()
        self.forgotten += len(self.log)
        self.log.clear()
        leaves = [child.own for child in self.children.values() if not child.children]
        if self.children or self.parent is None:
            leaves.append(self.own)
        for leaf in leaves:
            leaf.bucket = None
        self.dirty = {leaf: None for leaf in leaves if leaf.mask}
        self.factor = lcm(*(child.weight for child in self.children.values()))

    def _place(self, leaf: Leaf, world: World) -> None:
        old = leaf.bucket
        if old is not None:
            old.remove(leaf)
            self.note(old)
            if not old.leaves and self.buckets.get((old.mask, old.covered)) is old:
                del self.buckets[old.mask, old.covered]
        mask, covered = leaf.open(world)
        if not mask:
            return
        weight = leaf.weight
        ratios = [
            QUANTUM * used // total if total > 0 else 0 for used, total in zip(leaf.use, world.totals, strict=True)
        ]
        dominant = max(ratios, default=0)
        leaf.scaled = [weight * QUANTUM * ratio // dominant for ratio in ratios] if dominant else ratios
        leaf.stamp = world.serial()
        bucket = self.buckets.get((mask, covered))
        if bucket is None:
            bucket = self.buckets[mask, covered] = Bucket(mask, covered, len(world.names))
        bucket.add(leaf, dominant * (self.factor // weight))
        if bucket is not old:
            self.note(bucket)
