"""How GPUs are joined: XGMI links as KFD lists them, and what two GPUs have in common on PCI Express."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hal.interfaces.gpu import Ancestor, Peer, PeerAccess
from hal.model.device import Device, Link
from hal_amd.cards import Card
from hal_amd.kfd import XGMI, IoLink

_ORDER = tuple(Ancestor)


def homes(cards: Iterable[Card]) -> dict[int, Card]:
    """Return the GPU of each node."""
    return {node.number: card for card in cards for node in card.nodes}


def links(card: Card, home: Mapping[int, Card]) -> tuple[Link, ...]:
    """Return the XGMI links of a GPU to others. KFD tells no number of lanes; a way of several hops is one, too."""
    best = _ways(card, home)
    return tuple(
        Link(
            type="xgmi",
            peer=home[way.to].id,
            bandwidth_bytes_per_second=way.bandwidth or None,
            detail="" if way.hops == 1 else f"{way.hops} hops",
        )
        for _, way in sorted(best.items())
        if way.type == XGMI
    )


def _ways(card: Card, home: Mapping[int, Card]) -> dict[str, IoLink]:
    """Return the best way to each other GPU by its id: XGMI before PCI Express, and few hops before many."""
    best: dict[str, IoLink] = {}
    for node in card.nodes:
        for way in node.links:
            other = home.get(way.to)
            if other is None or other is card:
                continue
            before = best.get(other.id)
            if before is None or (way.type != XGMI, way.hops) < (before.type != XGMI, before.hops):
                best[other.id] = way
    return best


def peers(card: Card, device: Device, others: Sequence[tuple[Card, Device]]) -> list[Peer]:
    """Return the other GPUs of the machine, nearest first. A way that KFD does not list is not known to be open.

    ``nvlinks`` counts the direct ways that do not lead over PCI Express: 1 for XGMI of one hop.
    """
    ways = _ways(card, homes([other for other, _ in others]))
    found: list[Peer] = []
    for other, there in others:
        if other is card or there.location.node != device.location.node:
            continue
        way = ways.get(other.id)
        found.append(
            Peer(
                device=other.id,
                ancestor=_ancestor(device, there),
                access=PeerAccess.OK if way is not None else PeerAccess.UNKNOWN,
                nvlinks=int(way is not None and way.type == XGMI and way.hops == 1),
            )
        )
    return sorted(found, key=lambda peer: (-peer.nvlinks, _ORDER.index(peer.ancestor)))


def _ancestor(one: Device, other: Device) -> Ancestor:
    mine, theirs = one.location.pci_path, other.location.pci_path
    shared = 0
    for here, there in zip(mine, theirs, strict=False):
        if here != there:
            break
        shared += 1
    if shared >= 2:  # the host bridge and at least one port below it
        return Ancestor.SINGLE if shared >= min(len(mine), len(theirs)) - 1 else Ancestor.MULTIPLE
    if shared == 1:
        return Ancestor.HOST_BRIDGE
    same = one.location.numa_node is not None and one.location.numa_node == other.location.numa_node
    return Ancestor.NODE if same else Ancestor.SYSTEM
