"""Weighted hierarchical dominant-resource fairness: what a node counts as using, and which child comes first.

The definition is in ``docs/explanation/fairness.md``; the names here are its names.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from hal.broker.fair.leaf import Bucket
from hal.broker.fair.node import QUANTUM, VIEWS, Node, World

Item = Bucket | Node
"""What stands among a node's children: one of them, or leaves that wait for the same."""


class View:
    """A node, seen by one decision: which children are open, who of them is first, and what the node counts as using.

    It is kept and brought up to date with what has changed, for as long as decisions with the same shapes follow.
    """

    __slots__ = (
        "allowed",
        "consumption",
        "dominant",
        "heap",
        "items",
        "node",
        "position",
        "scaled",
        "sought",
        "use",
        "version",
    )

    def __init__(self, node: Node, allowed: int, sought: int) -> None:
        self.node = node
        self.allowed = allowed
        self.sought = sought
        self.position = self.version = -1
        self._clear()

    def _clear(self) -> None:
        resources = len(self.node.use)
        self.items: dict[Item, tuple[int, list[int], list[int]]] = {}
        self.heap: list[tuple[int, str, int, Item]] = []
        self.scaled = [0] * resources
        self.use = [0] * resources
        self.consumption: list[int] = []
        self.dominant = 0

    def update(self, world: World) -> None:
        """Bring it up to date."""
        node = self.node
        if self.version == node.version:
            return
        if self.position < node.forgotten:
            self._clear()
            changed: list[Item] = [*node.buckets.values(), *(c for c in node.children.values() if c.children)]
        else:
            changed = list(dict.fromkeys(node.log[self.position - node.forgotten :]))
        for item in changed:
            self._replace(item, world)
        self.position = node.forgotten + len(node.log)
        self.version = node.version
        if len(self.heap) > 2 * len(self.items) + 16:
            self.heap = [entry for entry in self.heap if self._lives(entry)]
            heapify(self.heap)
        if self.items:
            self._sum_up(world)

    def _replace(self, item: Item, world: World) -> None:
        old = self.items.pop(item, None)
        if old is not None:
            self.scaled = [a - b for a, b in zip(self.scaled, old[1], strict=True)]
            self.use = [a - b for a, b in zip(self.use, old[2], strict=True)]
        if isinstance(item, Bucket):
            if not item.leaves or not (item.mask & self.allowed or item.covered & self.sought):
                return
            key, name, _, _ = item.head()
            scaled, use = item.scaled, item.use
        else:
            below = look(item, world, self.allowed, self.sought) if item.children else None
            if below is None:
                return
            name, weight, dominant = item.name, item.weight, below.dominant
            key = dominant * (self.node.factor // weight)
            scaled = [weight * QUANTUM * c // dominant for c in below.consumption] if dominant else below.consumption
            use = item.use.copy()
        serial = world.serial()
        self.items[item] = serial, scaled, use
        self.scaled = [a + b for a, b in zip(self.scaled, scaled, strict=True)]
        self.use = [a + b for a, b in zip(self.use, use, strict=True)]
        heappush(self.heap, (key, name, serial, item))

    def _lives(self, entry: tuple[int, str, int, Item]) -> bool:
        held = self.items.get(entry[3])
        return held is not None and held[0] == entry[2]

    def first(self) -> tuple[int, Item]:
        """Return the key of the open child with the lowest weighted dominant share, and where it is."""
        while not self._lives(self.heap[0]):
            heappop(self.heap)
        return self.heap[0][0], self.heap[0][3]

    def _sum_up(self, world: World) -> None:
        key, _ = self.first()
        scale = self.node.factor * QUANTUM
        self.consumption = [
            (QUANTUM * (used - open_use) // total if total > 0 else 0) + key * scaled // scale
            for used, open_use, total, scaled in zip(self.node.use, self.use, world.totals, self.scaled, strict=True)
        ]
        self.dominant = max(self.consumption, default=0)


def look(node: Node, world: World, allowed: int, sought: int) -> View | None:
    """Return how a decision sees the node: None where nothing at or below it can be served."""
    allowed, sought = node.narrow(world, allowed, sought)
    if not (allowed or sought):
        return None
    node.settle(world)
    view = node.views.get((allowed, sought))
    if view is None:
        view = node.views[allowed, sought] = View(node, allowed, sought)
        if len(node.views) > VIEWS:
            node.views.popitem(last=False)
    else:
        node.views.move_to_end((allowed, sought))
    view.update(world)
    return view if view.items else None


def pick(root: Node, world: World, allowed: int, sought: int) -> str | None:
    """Return the claim that is served next, of the shapes that can be."""
    node = root
    while (view := look(node, world, allowed, sought)) is not None:
        allowed, sought = view.allowed, view.sought
        item = view.first()[1]
        if isinstance(item, Bucket):
            leaf = item.head()[3]
            mask, covered = leaf.open(world)
            return leaf.first((mask & allowed) | (covered & sought))
        node = item
    return None
