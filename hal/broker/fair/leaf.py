"""The claims of one tenant, waiting in line, and what its leases use."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from hal.broker.fair.limits import covers, exceeded
from hal.broker.fair.stand import Stand

if TYPE_CHECKING:
    from hal.broker.fair.node import Node, World


class WaitingClaim(NamedTuple):
    """One claim in the queue. ``number`` is the place of its arrival."""

    id: str
    leaf: Leaf
    bit: int
    since: float
    number: int


class Leaf(Stand):
    """What one tenant uses and waits for itself, without those below it.

    It competes under its ``host``: the tenant's parent, or the tenant itself where others are below it. It then is a
    child of its own tenant, with the name ``""`` and the weight 1.
    """

    __slots__ = ("busy", "lines", "mask", "node", "use", "waiting")

    def __init__(self, node: Node, resources: int) -> None:
        super().__init__()
        self.node = node
        self.use = [0] * resources
        self.waiting = 0
        self.busy = False
        self.lines: dict[int, list[tuple[float, int, str]]] = {}
        self.mask = 0

    @property
    def alone(self) -> bool:
        """Whether it stands for its whole tenant in the parent."""
        return not self.node.children and self.node.parent is not None

    @property
    def host(self) -> Node:
        """The node among whose children it competes."""
        node = self.node
        return node if node.parent is None or node.children else node.parent

    def push(self, claim: WaitingClaim) -> None:
        """Put a claim in line."""
        heappush(self.lines.setdefault(claim.bit, []), (claim.since, claim.number, claim.id))
        self.mask |= 1 << claim.bit
        self.waiting += 1

    def leave(self, claim: WaitingClaim, waiting: dict[str, WaitingClaim]) -> None:
        """Take a claim out of the line; ``waiting`` are those that still wait."""
        self.waiting -= 1
        line = self.lines[claim.bit]
        while line and not ((held := waiting.get(line[0][2])) and held.number == line[0][1]):
            heappop(line)
        if not line:
            del self.lines[claim.bit]
            self.mask &= ~(1 << claim.bit)
        elif len(line) > 2 * self.waiting + 16:
            line[:] = [entry for entry in line if (held := waiting.get(entry[2])) and held.number == entry[1]]
            heapify(line)

    def first(self, allowed: int) -> str:
        """Return the claim that came first, of the shapes that are allowed."""
        if len(self.lines) == 1:
            (line,) = self.lines.values()
            return line[0][2]
        return min(line[0] for bit, line in self.lines.items() if allowed >> bit & 1)[2]

    def open(self, world: World) -> tuple[int, int]:
        """Return the shapes that its own quota admits, and those of them that its own guarantee covers."""
        mask, node = self.mask, self.node
        if not self.alone or not (node.quota or node.guarantee):
            return mask, 0
        admitted = covered = 0
        for bit in self.lines:
            amounts = world.shapes.of_bit[bit].amounts
            if node.quota and exceeded(node.quota, self.use, amounts) is not None:
                continue
            admitted |= 1 << bit
            if covers(node.guarantee, self.use, amounts):
                covered |= 1 << bit
        return admitted, covered
