"""One decision on the tree: of those that can be served now, who is first.

The definition is in ``docs/explanation/fairness.md``; the names here are its names. What a child counts as using is
worked out only where it can decide: no child counts as less than with all that wait below it, and in that order they
are looked at, until the next could not come first any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from hal.broker.fair.leaf import Leaf
from hal.broker.fair.node import Node, World
from hal.broker.fair.stand import Place

FEW = 8
"""Where there are many leaves, so many are looked at in their order before the lines of the shapes are."""

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
        place = node.order[0]
        return Chosen(place[0], place[3], allowed, sought)
    asked = allowed, sought
    if asked not in node.choices:
        if len(node.choices) >= REMEMBERED:
            node.choices.clear()
        node.choices[asked] = _search(node, world, allowed, sought)
    return node.choices[asked]


def _search(node: Node, world: World, allowed: int, sought: int) -> Chosen | None:
    """Look at the children in their order, until the next could not come first any more."""
    best = None
    children = node.order
    if node.lines is not None:
        children = node.inner_order
        leaf = _first_leaf(node, allowed, sought)
        if leaf is not None:
            best = leaf[0], leaf[1], Chosen(leaf[0], leaf[3], allowed, sought)
    for bound, name, _, child in children:
        if best is not None and (bound > best[0] or (bound == best[0] and name > best[1])):
            break
        if not (child.admits & allowed or child.covers & sought):
            continue
        if isinstance(child, Leaf):  # no other comes before it
            return Chosen(bound, child, allowed, sought)
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


def _first_leaf(node: Node, allowed: int, sought: int) -> Place | None:
    """Return the place of the leaf that comes first of those that can be served, of many."""
    for place in node.order[:FEW]:
        leaf = place[3]
        if isinstance(leaf, Leaf) and (leaf.admits & allowed or leaf.covers & sought):
            return place
    assert node.lines is not None
    return node.lines.first(allowed, sought)
