"""What is given: an allocation, held as a lease with an expiry and a fence."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.model.kind import Kind


class LeaseState(StrEnum):
    """Where a lease is in its life (the table is in :mod:`hal.broker.lifecycle`).

    ``draining``: its holder was told to leave, and still may use it until ``leave_by``. ``suspect``: expired, but the
    devices are not proven to be let go.
    """

    BOUND = "bound"
    PREPARED = "prepared"
    DRAINING = "draining"
    SUSPECT = "suspect"
    RELEASING = "releasing"
    ENDED = "ended"


class AllocatedDevice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One device of an allocation, with what a holder needs to open it without asking anybody.

    ``fence`` is that of the grant which gave this device (0: the lease's own). ``uses`` is what is used up of a shared
    device, empty for one held alone. ``partition`` is the part to be made of it, ``profile@first slice``, and
    ``opened_as`` the device id of that part once it was made. ``milli`` is how much of the device counts on its
    tenant's account, in thousandths.
    """

    id: str
    kind: Kind
    name: str
    node: str
    driver: str
    request: str = ""
    vendor: str = ""
    aliases: tuple[str, ...] = ()
    replica: int = 0
    fence: int = 0
    uses: dict[str, int] = {}
    partition: str = ""
    opened_as: str = ""
    milli: int = 1000

    @property
    def slot(self) -> str:
        """The device, or the part of it that was given."""
        return f"{self.id}#{self.partition}" if self.partition else self.id


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An allocation held by a tenant until ``expires_at`` (seconds since the Unix epoch, broker's steady clock).

    ``fence`` grows with every grant; a driver refuses a holder whose fence is lower than the highest it has seen.
    ``id`` is the claim's id. ``ends_at`` is where its duration ends, renewed or not. While it is ``draining``,
    ``leave_by`` is when its devices are taken back and ``notice`` says why; with ``leaving`` replicas only those go.
    ``elastic`` are the fewest and the most replicas it may have, ``wanted`` is how many its holder asked for since.
    """

    id: str
    tenant: str
    devices: tuple[AllocatedDevice, ...]
    fence: int
    granted_at: float
    expires_at: float
    ttl_seconds: float
    state: LeaseState = LeaseState.BOUND
    why_ended: str = ""
    ended_at: float = 0.0
    priority: int = 0
    ends_at: float | None = None
    leave_by: float = 0.0
    notice: str = ""
    leaving: tuple[int, ...] = ()
    elastic: tuple[int, int] | None = None
    wanted: int | None = None

    @property
    def replicas(self) -> int:
        """How many replicas it has now."""
        return len({device.replica for device in self.devices})

    def fence_of(self, device: AllocatedDevice) -> int:
        """Return the fence under which one of the devices is held."""
        return device.fence or self.fence

    def slot_of(self, device: AllocatedDevice) -> str:
        """Return what one holder has alone and a fence speaks of: a device, a part of it, or a share in it."""
        return f"{device.id}+{self.id}" if device.uses else device.slot
