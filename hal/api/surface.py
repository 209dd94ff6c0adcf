"""What every broker can be asked, in this process or through a socket: one surface, three implementations.

:class:`hal.api.local.LocalBroker` decides itself; :class:`hal.api.client.Client` asks a server, and
:class:`hal.api.aio.Client` does the same with ``await``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from hal.model.claim import Claim
from hal.model.lease import Lease
from hal.model.tenant import Tenant

if TYPE_CHECKING:
    from hal.agent.repair import Repair
    from hal.api.ask import Asked
    from hal.api.held import HeldLease
    from hal.api.local import Status
    from hal.broker.allocation.explain import Explanation
    from hal.broker.command import Answer
    from hal.broker.snapshot import Cordon
    from hal.interfaces.deadline import Deadline
    from hal.model.device import Device
    from hal.model.event import Event


class Waiting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim in the queue. ``position`` counts from 1; ``starts_at`` is when it is expected, where that is known.

    ``devices`` are kept free for it already; ``why`` is what it waits for.
    """

    claim: Claim
    since: float
    position: int
    starts_at: float | None = None
    devices: tuple[str, ...] = ()
    why: str = ""


class TenantReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tenant: what was said about it, what it uses (whole devices by kind), and its shares of everything."""

    tenant: Tenant
    uses: dict[str, float] = {}
    dominant_share: float = 0.0
    fair_share: float = 0.0
    leases: int = 0
    waiting: int = 0


@runtime_checkable
class Broker(Protocol):
    """The verbs. ``tenant`` arguments narrow what is seen or touched; None is everybody's (an operator's view)."""

    def claim(self, asked: Asked, **words: Any) -> HeldLease:
        """Grant and prepare devices; with ``wait=True`` block until they are there or ``wait_seconds`` are over."""
        ...

    def submit(self, claims: Sequence[Claim], *, dry_run: bool = False) -> list[Answer]:
        """Decide many claims in one commit and return at once what became of each, in their order.

        An answer is ``Granted``, ``Queued``, ``Refused`` or ``Undecided``. ``dry_run`` changes nothing.
        """
        ...

    def wait_for(self, claim_id: str, deadline: Deadline, tenant: str | None = None) -> Answer:
        """Return as soon as a claim is granted (and prepared) or over, or what is known of it at the deadline."""
        ...

    def explain(self, asked: Asked, **words: Any) -> Explanation:
        """Say whether a claim would be granted now, and if not, what stands in the way."""
        ...

    def renew(self, lease_id: str, ttl_seconds: float | None = None, tenant: str | None = None) -> Lease:
        """Let a lease last for another time to live."""
        ...

    def resize(self, lease_id: str, replicas: int, tenant: str | None = None) -> Lease:
        """Let an elastic lease have so many replicas; growing is granted now or refused, and nothing is lost then."""
        ...

    def release(self, lease_id: str, tenant: str | None = None) -> Lease:
        """End a lease, or take a waiting claim out of the queue; the same again is no error."""
        ...

    def get(self, lease_id: str, tenant: str | None = None) -> HeldLease:
        """Return a lease that is not over."""
        ...

    def list(self, tenant: str | None = None) -> tuple[Lease, ...]:
        """Return the leases that are not over."""
        ...

    def queue(self, tenant: str | None = None) -> tuple[Waiting, ...]:
        """Return the waiting claims, who is next first."""
        ...

    def status(self) -> Status:
        """Return the broker at a glance."""
        ...

    def now(self) -> float:
        """Return what time it is by the broker's clock, in seconds since the Unix epoch; its times are by that."""
        ...

    def devices(self) -> tuple[Device, ...]:
        """Return all devices as they were last seen; who holds them is not said."""
        ...

    def events(self, since: int = 0, tenant: str | None = None) -> Iterator[Event]:
        """Yield what happened after a revision, in order, up to now."""
        ...

    def watch(self, since: int, deadline: Deadline, tenant: str | None = None) -> Iterator[Event]:
        """Yield what happens after a revision, as it happens, until the deadline; nothing is left out."""
        ...

    def cordon(self, target: str, why: str = "", by: str = "operator") -> tuple[Cordon, ...]:
        """Keep a device (id, name, alias) or a node from new leases; leases go on. Returns all cordons."""
        ...

    def uncordon(self, target: str, by: str = "operator") -> tuple[Cordon, ...]:
        """Take a cordon back."""
        ...

    def cordons(self) -> tuple[Cordon, ...]:
        """Return what is kept from new leases, by whom and why."""
        ...

    def drain(
        self, target: str, why: str = "", by: str = "operator", grace_seconds: float | None = None
    ) -> tuple[Lease, ...]:
        """Cordon, and tell every holder to leave within their grace; return the leases concerned."""
        ...

    def tenants(self, tenant: str | None = None) -> tuple[TenantReport, ...]:
        """Return every tenant at or below ``tenant`` with what it uses."""
        ...

    def set_tenant(self, tenant: Tenant) -> TenantReport:
        """Say what a tenant may have, from now on."""
        ...

    def remove_tenant(self, path: str) -> None:
        """Forget what was said about a tenant; its leases go on."""
        ...

    def repair(self, device: str, **words: Any) -> Repair:
        """Repair a device that nobody holds."""
        ...
