"""How two masters of an address net can hand data to one another: the best way there is, and what it costs."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.topology.address import COHERENT, AddressNet, Region


class Way(StrEnum):
    """From best to worst."""

    COHERENT = "coherent"
    """Both see the memory, and the caches agree."""
    DIRECT = "direct"
    """Both see the memory; software flushes and invalidates."""
    DMA = "dma"
    """Both would see it, if a translation were configured."""
    STAGED = "staged"
    """A third one copies."""
    NONE = "none"
    """There is no way."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that two nodes see: bytes ``base`` to ``limit`` of ``node``, and where it begins in either's addresses."""

    node: int
    base: int
    limit: int
    first_base: int
    second_base: int
    coherent: bool


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A translation to configure: in ``node`` (it has ``slots`` left), leading to ``target``, for ``master``."""

    node: int
    target: int
    master: int
    slots: int


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer: the way, the memory it uses, the translations to configure, the node that copies."""

    way: Way
    shared: tuple[Shared, ...] = ()
    configure: tuple[Slot, ...] = ()
    via: int | None = None


def shared(net: AddressNet, first: int | str, second: int | str) -> tuple[Shared, ...]:
    """Return the memory that both nodes see, in the order of its own addresses."""
    ours, theirs = net.regions(first), net.regions(second)
    found = [both for mine in ours for other in theirs if (both := _overlap(mine, other)) is not None]
    return tuple(sorted(found, key=lambda both: (both.node, both.base, both.first_base, both.second_base)))


def _overlap(mine: Region, other: Region) -> Shared | None:
    if mine.node != other.node:
        return None
    base = max(mine.to_base, other.to_base)
    limit = min(mine.to_base + mine.size_bytes, other.to_base + other.size_bytes) - 1
    if base > limit:
        return None
    return Shared(
        node=mine.node,
        base=base,
        limit=limit,
        first_base=mine.base + (base - mine.to_base),
        second_base=other.base + (base - other.to_base),
        coherent=COHERENT in mine.properties and COHERENT in other.properties,
    )


def path(net: AddressNet, first: int | str, second: int | str) -> Route:
    """Return the best way for two nodes to hand data to one another."""
    both = shared(net, first, second)
    coherent = tuple(region for region in both if region.coherent)
    if coherent:
        return Route(way=Way.COHERENT, shared=coherent)
    if both:
        return Route(way=Way.DIRECT, shared=both)
    slots = (*_slots(net, first, second), *_slots(net, second, first))
    if slots:
        return Route(way=Way.DMA, configure=slots)
    ends = {net.node(first).id, net.node(second).id}
    for copier in masters(net):
        if copier not in ends and shared(net, first, copier) and shared(net, copier, second):
            return Route(way=Way.STAGED, via=copier)
    return Route(way=Way.NONE)


def _slots(net: AddressNet, master: int | str, other: int | str) -> tuple[Slot, ...]:
    seen = net.reachable(other)
    return tuple(
        Slot(node=node.id, target=target, master=net.node(master).id, slots=node.slots)
        for crossed in sorted(net.walk(master).visited)
        if (node := net.nodes.get(crossed)) is not None and node.slots > 0
        for target in node.opens
        if target in seen
    )


def masters(net: AddressNet) -> tuple[int, ...]:
    """Return the nodes that issue requests of their own: said to copy, or led to by nothing."""
    led_to = {mapped.to for node in net.listed for mapped in node.map} | {node.overlay for node in net.listed}
    return tuple(node.id for node in net.listed if node.copies or node.id not in led_to)
