"""What a tenant is entitled to beside those who use or wait now, and how far it is above that."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hal.broker.fair.node import Node, World
from hal.model.tenant import Tenant


@dataclass(frozen=True)
class TenantShare:
    """One tenant: what was said about it and what it uses. ``over_share`` above 1 means that it borrows."""

    tenant: Tenant
    uses: dict[str, int]
    dominant_share: Fraction
    fair_share: Fraction
    over_share: Fraction
    leases: int
    waiting: int


def dominant_share(node: Node, world: World) -> Fraction:
    """Return the largest fraction of any resource that is used at and below the node."""
    found = Fraction(0)
    for used, total in zip(node.use, world.totals, strict=True):
        if used and total > 0:
            found = max(found, Fraction(used, total))
    return found


def fair_share(node: Node) -> Fraction:
    """Return the fraction of everything that it is entitled to: by weight, beside siblings that use or wait."""
    share = Fraction(1)
    while node.parent is not None:
        rivals = node.parent.busy_weight + (0 if node.busy else node.weight)
        share *= Fraction(node.weight, rivals)
        node = node.parent
    return share


def over_share(node: Node, world: World) -> Fraction:
    """Return the largest ratio of what it uses of a resource to its fair share of it, or its guarantee if larger."""
    fair, promised = fair_share(node), dict(node.guarantee)
    found = Fraction(0)
    for index, (used, total) in enumerate(zip(node.use, world.totals, strict=True)):
        if used and total > 0:
            found = max(found, used / max(fair * total, Fraction(promised.get(index, 0))))
    return found


def rows(node: Node, world: World) -> list[TenantShare]:
    """Return the node and all below it, in the order of their paths."""
    found = [
        TenantShare(
            tenant=node.tenant or Tenant(path=node.path),
            uses={name: node.use[world.index[name]] for name in sorted(world.names) if node.use[world.index[name]]},
            dominant_share=dominant_share(node, world),
            fair_share=fair_share(node),
            over_share=over_share(node, world),
            leases=node.leases,
            waiting=node.waiting,
        )
    ]
    for name in sorted(node.children):
        found += rows(node.children[name], world)
    return found
