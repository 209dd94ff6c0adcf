"""One decision on the tree: of those that can be served now, who is first.

The definition is in ``docs/explanation/fairness.md``; the names here are its names. What a child counts as using is
worked out only where it can decide: no child counts as less than with all that wait below it, and in that order they
are looked at, until the next could not come first any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from hal.broker.fair.leaf import Leaf
from hal.broker.fair.limits import bits_of
from hal.broker.fair.node import Node, World
from hal.broker.fair.stand import Heap, Place, head

FEW = 8
"""So many leaves are looked at in their order, before the lines of all shapes that can be served are."""

REMEMBERED = 64
"""The answers to so many questions are kept at a node until something at or below it changes."""


@dataclass(slots=True)
class Chosen:
    """The child that comes first, its weighted dominant share (times the node's factor), and what may be served.

    ``below`` is what comes first within it, where that is known.
    """

    key: int
    child: Leaf | Node
    allowed: int
    sought: int
    below: Chosen | None = None


def choose(node: Node, world: World, allowed: int, sought: int) -> Chosen | None:
    """Return which child comes first; None where nothing at or below the node can be served.

    Of the shapes, ``allowed`` may be served wherever they wait, ``sought`` where a guarantee covers them.
    """
    allowed &= node.admitted
    if sought:
        sought &= node.coverable & ~allowed
        if node.guarantee:
            allowed |= sought & node.covered
            sought &= ~node.covered
    if not (allowed or sought):
        return None
    if allowed == node.mask and not node.partial:  # all that wait can be served: who is first is known
        place = head(node.order)
        return None if place is None else Chosen(place[0], place[3], allowed, sought)
    asked = allowed, sought
    if asked not in node.choices:
        if len(node.choices) >= REMEMBERED:
            node.choices.clear()
        node.choices[asked] = _search(node, world, allowed, sought)
    return node.choices[asked]


def _search(node: Node, world: World, allowed: int, sought: int) -> Chosen | None:
    """Look at the children in their order, until the next could not come first any more."""
    best = None
    if node.lines:
        leaf = _first_leaf(node, allowed, sought)
        if leaf is not None:
            best = leaf[0], leaf[1], Chosen(leaf[0], leaf[3], allowed, sought)
    for bound, name, child in node.inner_order:  # children that have others below them
        if best is not None and (bound > best[0] or (bound == best[0] and name > best[1])):
            break
        if not (child.admitted & allowed or child.coverable & sought):
            continue
        below = choose(child, world, allowed, sought)
        if below is None:
            continue
        key = child.dominant_at(below.key, world) * (node.factor // child.weight)
        if best is None or key < best[0] or (key == best[0] and name < best[1]):
            best = key, name, Chosen(key, child, allowed, sought, below)
    return None if best is None else best[2]


def pick(root: Node, world: World, allowed: int, sought: int) -> str | None:
    """Return the claim that is served next, of the shapes that can be."""
    root.settle(world)
    chosen = choose(root, world, allowed, sought)
    while chosen is not None:
        child = chosen.child
        if isinstance(child, Leaf):
            return child.first((child.admits & chosen.allowed) | (child.covers & chosen.sought))
        chosen = chosen.below or choose(child, world, chosen.allowed, chosen.sought)
    return None


def in_order(heap: Heap) -> Iterator[Place]:
    """Yield the places of a heap that are still taken, the first first; the heap stays as it is."""
    if head(heap) is None:
        return
    size = len(heap)
    ahead = [(*heap[0][:3], 0)]
    while ahead:
        _, _, serial, at = heappop(ahead)
        place = heap[at]
        if place[3].serial == serial:
            yield place
        for following in (2 * at + 1, 2 * at + 2):
            if following < size:
                heappush(ahead, (*heap[following][:3], following))


def _first_leaf(node: Node, allowed: int, sought: int) -> Place | None:
    """Return the place of the leaf that comes first of those that can be served."""
    if not node.inner and (allowed | sought).bit_count() > FEW:
        first = head(node.order)
        if first is not None and (first[3].admits & allowed or first[3].covers & sought):
            return first
        for number, place in enumerate(in_order(node.order)):
            leaf = place[3]
            if leaf.admits & allowed or leaf.covers & sought:
                return place
            if number >= FEW:
                break
    best = None
    for lines, mask in ((node.lines, allowed), (node.covered_lines, sought)):
        for bit in bits_of(mask):
            line = lines.get(bit)
            if line:
                place_here = head(line)
                if place_here is not None and (best is None or place_here < best):
                    best = place_here
    return best
