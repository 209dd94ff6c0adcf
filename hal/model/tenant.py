"""On whose account: a tree of tenants, named by paths such as ``physics/lattice/ada``."""

from __future__ import annotations

import msgspec

ROOT = ""
"""The path of the root: it stands for everything there is."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What was said about one tenant, an inner node or a leaf of the tree. Amounts are by resource.

    Resources are the kinds, amounts are whole devices (``gpu: 8``); a share in a device, or a part of one, counts as
    the fraction that it uses. ``weight`` is its share beside its siblings. ``guarantee`` is what it gets back from
    borrowers when it asks; ``quota`` is what it never exceeds. ``most_claims`` and ``most_waiting`` limit its leases
    and its claims in the queue; ``claims_per_second`` the rate of its claims.
    """

    path: str
    weight: int = 1
    guarantee: dict[str, int] = {}
    quota: dict[str, int] = {}
    most_claims: int | None = None
    most_waiting: int | None = None
    claims_per_second: float | None = None


def ancestry(path: str) -> tuple[str, ...]:
    """Return the path and all above it up to the root, nearest first."""
    found = [path]
    while path:
        path = path.rpartition("/")[0]
        found.append(path)
    return tuple(found)
