"""One decision on the tree: of those that can be served now, who is first.

The definition is in ``docs/explanation/fairness.md``; the names here are its names.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from hal.broker.fair.leaf import Leaf
from hal.broker.fair.limits import bits_of, covers
from hal.broker.fair.node import Node, World, head

VIEWS = 64
"""So many views are kept at each node: the sets of shapes it was last asked about."""


class View:
    """The children of one node that have others below them, in the order of one set of shapes that can be served.

    It is kept and brought up to date with what has changed, for as long as decisions on the same shapes follow.
    """

    __slots__ = ("_heap", "_held", "_mask", "_node", "_position", "_version")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._mask = 0
        self._position = self._version = -1
        self._held: dict[Node, int] = {}
        self._heap: list[tuple[int, str, int, Node]] = []

    def stands_for(self, different: int) -> bool:
        """Whether it can be brought up to date for a set that differs in these shapes.

        It can where nobody has waited for them all the time since: all children that did, or do, have changed.
        """
        return not different & self._mask & self._node.mask

    def update(self, world: World, allowed: int, sought: int) -> None:
        """Bring it up to date."""
        node = self._node
        if self._version == node.version:
            return
        if self._position < node.forgotten:
            self._held.clear()
            self._heap.clear()
            changed = [child for child in node.children.values() if child.children]
        else:
            changed = list(dict.fromkeys(node.log[self._position - node.forgotten :]))
        for child in changed:
            self._held.pop(child, None)
            dominant = level(child, world, allowed, sought)
            if dominant is not None:
                serial = self._held[child] = world.serial()
                heappush(self._heap, (dominant * (node.factor // child.weight), child.name, serial, child))
        self._position = node.forgotten + len(node.log)
        self._version, self._mask = node.version, node.mask
        if len(self._heap) > 2 * len(self._held) + 16:
            self._heap = [place for place in self._heap if self._held.get(place[3]) == place[2]]
            heapify(self._heap)

    def first(self) -> tuple[int, str, int, Leaf | Node] | None:
        """Return who is first, None if there is nobody."""
        while self._heap and self._held.get(self._heap[0][3]) != self._heap[0][2]:
            heappop(self._heap)
        return self._heap[0] if self._heap else None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The child that comes first, its weighted dominant share (times the node's factor), and what may be served."""

    key: int
    child: Leaf | Node
    allowed: int
    sought: int


def choose(node: Node, world: World, allowed: int, sought: int) -> Chosen | None:
    """Return which child comes first; None where nothing at or below the node can be served.

    Of the shapes, ``allowed`` may be served wherever they wait, ``sought`` where a guarantee covers them.
    """
    allowed, sought = _narrow(node, world, allowed, sought)
    if not (allowed or sought):
        return None
    if allowed == node.mask and not node.partial:  # all that wait can be served: who is first is known
        place = head(node.order)
        return None if place is None else Chosen(place[0], place[3], allowed, sought)
    best = None
    for lines, mask in ((node.lines, allowed), (node.covered_lines, sought)):
        if mask and lines:
            for bit, line in lines.items():
                if mask >> bit & 1:
                    place = head(line)
                    if place is not None and (best is None or place[:2] < best[:2]):
                        best = place
    if node.inner:  # children that have others below them
        place_below = _view(node, world, allowed, sought).first()
        if place_below is not None and (best is None or place_below[:2] < best[:2]):
            best = place_below
    return None if best is None else Chosen(best[0], best[3], allowed, sought)


def level(node: Node, world: World, allowed: int, sought: int) -> int | None:
    """Return the dominant share, in quanta, that the node has in a decision; None where nothing can be served."""
    chosen = choose(node, world, allowed, sought)
    if chosen is None:
        return None
    return node.dominant if chosen.key == node.lowest else max(node.at_level(chosen.key), default=0)


def pick(root: Node, world: World, allowed: int, sought: int) -> str | None:
    """Return the claim that is served next, of the shapes that can be."""
    root.settle(world)
    node = root
    while (chosen := choose(node, world, allowed, sought)) is not None:
        allowed, sought, child = chosen.allowed, chosen.sought, chosen.child
        if isinstance(child, Leaf):
            entry = child.entry
            assert entry is not None
            return child.first((entry.admitted & allowed) | (entry.covered & sought))
        node = child
    return None


def _view(node: Node, world: World, allowed: int, sought: int) -> View:
    key = allowed, sought
    view = node.views.get(key)
    if view is None:
        if node.views:
            last = next(reversed(node.views))
            if node.views[last].stands_for((last[0] ^ allowed) | (last[1] ^ sought)):
                view = node.views.pop(last)
        view = node.views[key] = view or View(node)
        if len(node.views) > VIEWS:
            node.views.popitem(last=False)
    else:
        node.views.move_to_end(key)
    view.update(world, allowed, sought)
    return view


def _narrow(node: Node, world: World, allowed: int, sought: int) -> tuple[int, int]:
    """Take away what the node's quota refuses, and allow what was sought and its guarantee covers."""
    allowed &= node.admitted
    sought &= node.admitted & ~allowed
    if node.guarantee:
        for bit in bits_of(sought):
            if covers(node.guarantee, node.use, world.shapes.of_bit[bit].amounts):
                allowed |= 1 << bit
        sought &= ~allowed
    return allowed, sought if node.guaranteed > bool(node.guarantee) else 0
