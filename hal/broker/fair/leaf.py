"""The claims of one tenant, waiting in line, and what its leases use; and leaves that wait for the same, together."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from hal.broker.fair.limits import covers, exceeded

if TYPE_CHECKING:
    from hal.broker.fair.node import Node, World


@dataclass(frozen=True, slots=True)
class WaitingClaim:
    """One claim in the queue. ``number`` is the place of its arrival."""

    id: str
    leaf: Leaf
    bit: int
    since: float
    number: int


class Leaf:
    """What one tenant uses and waits for itself, without those below it.

    It competes under its ``host``: the tenant's parent, or the tenant itself where others are below it. It then is a
    child of its own tenant, with the name ``""`` and the weight 1.
    """

    __slots__ = ("bucket", "busy", "counted", "lines", "mask", "node", "scaled", "stamp", "use", "waiting")

    def __init__(self, node: Node, resources: int) -> None:
        self.node = node
        self.use = [0] * resources
        self.waiting = 0
        self.busy = False
        self.lines: dict[int, list[tuple[float, int, str]]] = {}
        self.mask = 0
        self.bucket: Bucket | None = None
        self.counted: list[int] = []
        self.scaled: list[int] = []
        self.stamp = 0

    @property
    def alone(self) -> bool:
        """Whether it stands for its whole tenant in the parent."""
        return not self.node.children and self.node.parent is not None

    @property
    def host(self) -> Node:
        """The node among whose children it competes."""
        node = self.node
        return node if node.parent is None or node.children else node.parent

    @property
    def name(self) -> str:
        """What it is called among its siblings: ties are decided by it."""
        return self.node.name if self.alone else ""

    @property
    def weight(self) -> int:
        """Its weight beside its siblings."""
        return self.node.weight if self.alone else 1

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


class Bucket:
    """Sibling leaves that wait for the same shapes: they are blocked or not together.

    ``scaled`` is the sum of their consumption, each rescaled to a weighted dominant share of one; ``use`` the sum of
    what they use; on top of the heap is the leaf with the lowest weighted dominant share.
    """

    __slots__ = ("covered", "heap", "leaves", "mask", "scaled", "use")

    def __init__(self, mask: int, covered: int, resources: int) -> None:
        self.mask = mask
        self.covered = covered
        self.leaves = 0
        self.use = [0] * resources
        self.scaled = [0] * resources
        self.heap: list[tuple[int, str, int, Leaf]] = []

    def add(self, leaf: Leaf, key: int) -> None:
        """Take a leaf in; ``key`` is its weighted dominant share, times what makes those of its siblings integers."""
        self.leaves += 1
        leaf.counted = leaf.use.copy()
        self.use = [a + b for a, b in zip(self.use, leaf.use, strict=True)]
        self.scaled = [a + b for a, b in zip(self.scaled, leaf.scaled, strict=True)]
        heappush(self.heap, (key, leaf.name, leaf.stamp, leaf))
        leaf.bucket = self

    def remove(self, leaf: Leaf) -> None:
        """Let a leaf go, and with it what it used when it came."""
        self.leaves -= 1
        self.use = [a - b for a, b in zip(self.use, leaf.counted, strict=True)]
        self.scaled = [a - b for a, b in zip(self.scaled, leaf.scaled, strict=True)]
        leaf.bucket = None
        if len(self.heap) > 2 * self.leaves + 16:
            self.heap = [entry for entry in self.heap if self._lives(entry)]
            heapify(self.heap)

    def _lives(self, entry: tuple[int, str, int, Leaf]) -> bool:
        return entry[3].bucket is self and entry[3].stamp == entry[2]

    def head(self) -> tuple[int, str, int, Leaf]:
        """Return the key, the name, the stamp and the leaf that is first."""
        while not self._lives(self.heap[0]):
            heappop(self.heap)
        return self.heap[0]
