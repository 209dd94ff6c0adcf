"""What is asked: requests, what binds them together, how often, for how long, and how much it matters."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from hal.model.kind import Kind

Count = int | Literal["all"]


class Locality(StrEnum):
    """Places that devices can share, from near to far. ``link-domain`` is what one NVLink or xGMI fabric joins."""

    NODE = "node"
    NUMA = "numa"
    PCI_SWITCH = "pci-switch"
    RACK = "rack"
    LINK_DOMAIN = "link-domain"


class Share(StrEnum):
    """Whether others may use the device at the same time."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class Preempt(StrEnum):
    """Whom a claim that finds no room may push out: nobody, or holders of a lower priority."""

    NEVER = "never"
    LOWER = "lower-priority"


class Gather(StrEnum):
    """How the replicas of a gang lie: in as few places as can be, all in one, or apart."""

    FEWEST = "fewest"
    ONE = "one"
    SPREAD = "spread"


FRACTION = "fraction_milli"
"""A capacity that every device has 1000 of: for sharing one by thousandths."""


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Some devices of one kind, for each replica of the claim.

    ``count`` is a number, or ``all``: every device of a node that fits, and at least one. ``where`` is a selector in
    the short form (:mod:`hal.model.selector`); ``cel`` are selectors in CEL with the variables of Kubernetes' dynamic
    resource allocation (:mod:`hal.model.cel`); a device must match each of them. ``capacity`` maps names of capacities
    (``memory_bytes``, ``rate_bps``, :data:`FRACTION`) to amounts: at least that much of an exclusive device, used up
    on a shared one. ``profile`` asks for a partition to be made (``1g.10gb``) instead of a whole device. ``tolerate``
    names types of conditions that this holder can live with. ``or_else`` are alternatives, best first, each with the
    ``cost`` of taking it instead; alternatives have none of their own, and no names.
    """

    kind: Kind
    count: Count = 1
    where: str = ""
    name: str = ""
    cel: tuple[str, ...] = ()
    capacity: dict[str, int] = {}
    share: Share = Share.EXCLUSIVE
    profile: str = ""
    tolerate: tuple[str, ...] = ()
    or_else: tuple[Request, ...] = ()
    cost: float = 0.0

    def __hash__(self) -> int:
        # A dict has no hash. What is equal has the same one, and that is all that is asked of it.
        return hash((self.kind, self.count, self.where, self.name, self.cel, self.share, self.profile))


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What the devices of the named requests (of all requests if none is named) have in common, or must not have.

    Exactly one of ``same`` and ``distinct`` is given: a :class:`Locality`, or the name of an attribute, as DRA's
    ``matchAttribute`` and ``distinctAttribute``; a device without that attribute fits neither. ``pairwise``, with
    ``same``: the first device of each request shares a place, the second of each shares one, and so on: each GPU with
    its own NIC on its switch. With a ``weight`` it is a wish: not keeping it costs that much.
    """

    same: str = ""
    distinct: str = ""
    requests: tuple[str, ...] = ()
    pairwise: bool = False
    weight: float | None = None


class Gang(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """How the replicas of a claim lie over places of one level: a :class:`Locality` from the node up.

    ``most`` replicas are in any one place (a failure domain): without it no limit, and 1 when they are spread.
    """

    how: Gather = Gather.FEWEST
    over: Locality = Locality.RACK
    most: int | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """All or nothing: every request of every replica is met under every constraint, or none is.

    ``id`` is chosen by the caller (or made for them) and makes the claim idempotent: asked twice, granted once.
    ``ttl_seconds`` is how long the lease lasts without renewal.

    Each of the ``replicas`` lies on one node, and the constraints hold within it; a claim of one replica may lie on
    several nodes unless a constraint forbids it. With ``max_replicas`` the claim is elastic: it is granted with as many
    as there is room for, at least ``replicas``, shrinks before anybody is evicted, and grows again.

    ``priority``: higher goes first. ``preempt`` says whom it may push out; the pushed out have their own
    ``grace_seconds`` to leave. ``wait`` puts a claim that finds no room in the queue, for ``wait_seconds`` at most.
    ``start_at`` (seconds since the Unix epoch) reserves for later; ``duration_seconds`` ends the lease by itself, and
    lets others be planned around it.
    """

    id: str
    requests: tuple[Request, ...]
    constraints: tuple[Constraint, ...] = ()
    tenant: str = "default"
    ttl_seconds: float = 60.0
    replicas: int = 1
    max_replicas: int | None = None
    gang: Gang | None = None
    priority: int = 0
    preempt: Preempt = Preempt.NEVER
    grace_seconds: float = 30.0
    start_at: float | None = None
    duration_seconds: float | None = None
    wait: bool = False
    wait_seconds: float | None = None


def request_names(requests: tuple[Request, ...]) -> tuple[str, ...]:
    """Return what each request is called: its name, or its kind, numbered where that is not unique."""
    taken = {request.name for request in requests if request.name}
    names: list[str] = []
    for request in requests:
        name = request.name
        if not name:
            name = request.kind.value
            number = 2
            while name in taken:
                name = f"{request.kind.value}-{number}"
                number += 1
            taken.add(name)
        names.append(name)
    return tuple(names)
