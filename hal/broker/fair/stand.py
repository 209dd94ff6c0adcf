"""How a child stands among its siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal.broker.fair.leaf import Leaf
    from hal.broker.fair.node import Node

Place = tuple[int, str, int, "Leaf | Node"]
"""A child by its weighted dominant share (times its parent's factor), then by name; a number no two places share."""


class Stand:
    """What the parent remembers of a child, and takes back when the child has changed.

    ``place`` is its place in the parent's order, None where it does not wait. ``admits`` are the shapes for which it
    stands there, ``covers`` those of them that a guarantee of it or of one below it covers. ``part`` is what it adds to
    the parent for each unit of level, and ``blocked`` what it adds where it does not wait: all that it uses. None
    stands for nothing.
    """

    __slots__ = ("admits", "blocked", "covers", "part", "place")

    def __init__(self) -> None:
        self.forget_stand()

    def forget_stand(self) -> None:
        """Stand nowhere."""
        self.place: Place | None = None
        self.admits = 0
        self.covers = 0
        self.part: list[int] | None = None
        self.blocked: list[int] | None = None
