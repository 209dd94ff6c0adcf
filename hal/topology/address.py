"""The address net: who sees which memory at which address.

After the decoding nets of Achermann, Humbel, Cock and Roscoe ("Formalizing Memory Accesses and Interrupts", MARS 2017).
A node accepts ranges of addresses, translates ranges to other nodes, and may lie over another node, to which it then
passes every address unchanged. What an address means is a *set* of names, since memory and its caches may both accept.
A request carries properties; a block may require or forbid some, a translation adds and strips some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from hal.errors import HalError, UsageError

ADDRESS_LIMIT = (1 << 64) - 1
COHERENT = "coherent"
_STEPS = 100_000
_DEPTH = 1_000  # translations one after another; real machines have fewer than a dozen

Properties = frozenset[str]
NOTHING: Properties = frozenset()


class AddressError(HalError):
    """A net that cannot be resolved: its translations shift an address in a circle for too long."""


class Block(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Addresses ``base`` to ``limit``, both included, for requests with all of ``require`` and none of ``forbid``."""

    base: int
    limit: int
    require: Properties = NOTHING
    forbid: Properties = NOTHING

    def passes(self, properties: Properties) -> bool:
        """True if a request with these properties may use the block."""
        return self.require <= properties and not (self.forbid & properties)


class MapBlock(Block, frozen=True, kw_only=True, omit_defaults=True):
    """A block whose addresses continue at node ``to``, its base at ``to_base``."""

    to: int
    to_base: int
    add: Properties = NOTHING
    strip: Properties = NOTHING


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decoder: memory, a bus, an IOMMU, a core's view.

    ``issues`` are the properties with which the node's own requests begin (``coherent`` for a member of the coherence
    protocol). ``copies`` says that it can move data on behalf of others. ``slots`` is how many translations can still
    be configured in it, and ``opens`` the nodes to which they may lead (an IOMMU).
    """

    id: int
    name: str
    accept: tuple[Block, ...] = ()
    map: tuple[MapBlock, ...] = ()
    overlay: int | None = None
    issues: Properties = NOTHING
    copies: bool = False
    slots: int = 0
    opens: tuple[int, ...] = ()


class Name(msgspec.Struct, frozen=True, order=True):
    """Where an address ends: the node that accepts it, the address there, and the properties that arrived."""

    node: int
    address: int
    properties: Properties = NOTHING


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """What one node sees: its addresses ``base`` to ``limit`` are those of ``node`` from ``to_base`` on."""

    base: int
    limit: int
    node: int
    to_base: int
    properties: Properties = NOTHING

    @property
    def size_bytes(self) -> int:
        """How much is seen."""
        return self.limit - self.base + 1


class Walk:
    """What a range of addresses meets: the regions in which it ends, the nodes it crosses, the loops it runs into."""

    def __init__(self) -> None:
        self.regions: dict[Region, None] = {}
        self.visited: set[int] = set()
        self.loops: set[tuple[int, int, int]] = set()


class _Step(NamedTuple):
    """An interval at a node: ``shift`` is its address here less the address at the start."""

    node: int
    low: int
    high: int
    shift: int
    properties: Properties
    trail: tuple[_Step, ...]

    def repeats(self, earlier: _Step) -> bool:
        """True if this is an earlier step again, or a part of it: nothing new can follow."""
        return (
            self.node == earlier.node
            and self.shift == earlier.shift
            and earlier.low <= self.low
            and self.high <= earlier.high
            and self.properties == earlier.properties
        )


class AddressNet:
    """All decoders of a machine.

    >>> net = AddressNet("toy", [
    ...     Node(id=0, name="core", map=(MapBlock(base=0x1000, limit=0x1fff, to=1, to_base=0),)),
    ...     Node(id=1, name="dram", accept=(Block(base=0, limit=0xffff),)),
    ... ])
    >>> [(name.node, hex(name.address)) for name in net.resolve(0, 0x1010)]
    [(1, '0x10')]
    """

    def __init__(self, machine: str, nodes: Iterable[Node]) -> None:
        self.machine = machine
        self.listed = tuple(nodes)
        self.nodes: Mapping[int, Node] = {node.id: node for node in self.listed}

    def node(self, key: int | str) -> Node:
        """Return a node by id or by a name that only one has; raises ``UsageError``."""
        if isinstance(key, int):
            found = [self.nodes[key]] if key in self.nodes else []
        else:
            found = [node for node in self.listed if node.name == key]
        if len(found) != 1:
            raise UsageError(
                f"{len(found)} nodes of {self.machine} are called {key!r}", during="look-up", hint="use the node's id"
            )
        return found[0]

    def walk(self, start: int | str, base: int = 0, limit: int = ADDRESS_LIMIT) -> Walk:
        """Follow a range from a node to everything it can mean. Works on intervals, never on single addresses."""
        first = self.node(start)
        walk = Walk()
        pending = [_Step(first.id, base, limit, 0, first.issues, ())] if base <= limit else []
        steps = 0
        while pending:
            steps += 1
            step = pending.pop()
            if steps > _STEPS or len(step.trail) > _DEPTH:
                raise AddressError(
                    f"{self.machine}: translations shift addresses in a circle",
                    device=first.name,
                    during="resolve",
                    hint="check() names the loops",
                )
            node = self.nodes.get(step.node)
            walk.visited.add(step.node)
            if node is None:
                continue  # dangling: nothing answers there
            if any(step.repeats(earlier) for earlier in step.trail):
                walk.loops.add((step.node, step.low, step.high))
                continue
            self._enter(node, step, walk, pending)
        return walk

    @staticmethod
    def _enter(node: Node, step: _Step, walk: Walk, pending: list[_Step]) -> None:
        """Take one step: what the node accepts is found, what it translates is still to be followed."""
        trail, shift = (*step.trail, step), step.shift
        for block in node.accept:
            low, high = max(step.low, block.base), min(step.high, block.limit)
            if low <= high and block.passes(step.properties):
                found = Region(
                    base=low - shift, limit=high - shift, node=node.id, to_base=low, properties=step.properties
                )
                walk.regions[found] = None
        for mapped in node.map:
            low, high = max(step.low, mapped.base), min(step.high, mapped.limit)
            if low <= high and mapped.passes(step.properties):
                moved = mapped.to_base - mapped.base
                left = (step.properties | mapped.add) - mapped.strip
                pending.append(_Step(mapped.to, low + moved, high + moved, shift + moved, left, trail))
        if node.overlay is not None:
            pending.append(_Step(node.overlay, step.low, step.high, shift, step.properties, trail))

    def resolve(self, node: int | str, address: int) -> frozenset[Name]:
        """Return everything that an address of a node means; empty if nothing answers."""
        found = self.walk(node, address, address).regions
        return frozenset(Name(region.node, region.to_base, region.properties) for region in found)

    def regions(self, node: int | str) -> tuple[Region, ...]:
        """Return all that a node sees, in the order of its own addresses."""
        return tuple(sorted(self.walk(node).regions, key=lambda region: (region.base, region.node, region.to_base)))

    def reachable(self, node: int | str) -> frozenset[int]:
        """Return the nodes of which a node can address something."""
        return frozenset(region.node for region in self.walk(node).regions)

    def coherence(self, node: int | str, address: int) -> bool | None:
        """True if all that an address means is reached coherently, False if not; None if it means nothing.

        Coherence is never assumed: a node that takes part issues requests with the property ``coherent``.
        """
        names = self.resolve(node, address)
        return all(COHERENT in name.properties for name in names) if names else None


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    machine: str
    nodes: tuple[dict[str, object], ...]


def load_net(data: bytes) -> AddressNet:
    """Read the JSON form: ``machine``, and ``nodes`` with ``accept``, ``map`` and ``overlay``.

    Addresses are integers or hexadecimal strings. Mistakes in the net itself are kept, for :func:`check` to report;
    raises ``UsageError`` for what is not a net at all.
    """
    try:
        written = msgspec.json.decode(data, type=_Written)
        return AddressNet(written.machine, [_node(node) for node in written.nodes])
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not an address net: {error}", during="load", hint="the JSON form is described at load_net"
        ) from error


def _node(raw: Mapping[str, object]) -> Node:
    plain = dict(raw)
    for key in ("accept", "map"):
        blocks = plain.get(key, ())
        if not isinstance(blocks, Sequence):
            raise TypeError(f"{key} is not a list")
        plain[key] = [{name: _number(value) for name, value in block.items()} for block in blocks]
    return msgspec.convert(plain, Node)


def _number(value: object) -> object:
    return int(value, 16) if isinstance(value, str) else value


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake in a net: ``self-loop``, ``loop``, ``dangling``, ``inverted`` or ``duplicate``."""

    node: int
    mistake: str
    detail: str


def check(net: AddressNet) -> tuple[Finding, ...]:
    """Report what is wrong with a net, node by node; an empty answer means that nothing was found."""
    found: dict[Finding, None] = {}

    def report(node: Node, mistake: str, detail: str) -> None:
        found[Finding(node=node.id, mistake=mistake, detail=f"{node.name}: {detail}")] = None

    seen: set[int] = set()
    for node in net.listed:
        if node.id in seen:
            report(node, "duplicate", f"another node has the id {node.id}")
        seen.add(node.id)
        for block in (*node.accept, *node.map):
            if block.limit < block.base:
                report(node, "inverted", f"{_range(block)} ends before it begins")
        for mapped in node.map:
            if mapped.to == node.id:
                report(node, "self-loop", f"{_range(mapped)} is translated to the node itself")
        for target in (*(mapped.to for mapped in node.map), *(() if node.overlay is None else (node.overlay,))):
            if target not in net.nodes:
                report(node, "dangling", f"leads to node {target}, which does not exist")
        if node.overlay == node.id:
            report(node, "self-loop", "lies over itself")
    for node in net.listed:
        try:
            loops = net.walk(node.id).loops
        except AddressError:
            report(node, "loop", "its addresses are shifted in a circle")
            continue
        for at, low, high in sorted(loops):
            report(net.nodes[at], "loop", f"{low:#x}-{high:#x} comes back to where it was")
    return tuple(found)


def _range(block: Block) -> str:
    return f"{block.base:#x}-{block.limit:#x}"
