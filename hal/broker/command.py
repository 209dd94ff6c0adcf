"""What the broker can be asked, and what it answers. Values only."""

from __future__ import annotations

import msgspec

from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import Lease
from hal.model.tenant import Tenant


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all commands."""


class Begin(Command, frozen=True, gc=False):
    """Start, or start again, under this boot id. The first time it also begins the journal."""

    boot_id: str
    clock_offset_seconds: float = 0.0


class Observe(Command, frozen=True, gc=False):
    """These devices look like this now. ``complete``: what is not among them is not there any more.

    That cannot be said of the devices of ``silent`` drivers, which did not answer: those stay as they were last seen.
    """

    devices: tuple[Device, ...]
    complete: bool = False
    silent: frozenset[str] = frozenset()


class ClaimDevices(Command, frozen=True, gc=False):
    """Grant the claim, or say why not. Idempotent by its id."""

    claim: Claim


class MarkPrepared(Command, frozen=True, gc=False):
    """The agent has prepared every device of the lease under this fence, the newest one it has.

    ``opened_as``: the device id of each part that was made, by slot.
    """

    lease: str
    fence: int
    opened_as: dict[str, str] = {}


class Renew(Command, frozen=True, gc=False):
    """The holder lives; ``ttl_seconds`` changes how long from now on, None keeps it."""

    lease: str
    ttl_seconds: float | None = None
    tenant: str | None = None


class Resize(Command, frozen=True, gc=False):
    """Let an elastic lease have so many replicas. Fewer: the last ones, or those named, leave at once.

    More are granted now or refused.
    """

    lease: str
    replicas: int
    leaving: tuple[int, ...] = ()
    tenant: str | None = None


class Release(Command, frozen=True, gc=False):
    """End the lease; the devices come back when the agent has proven it. A waiting claim leaves the queue."""

    lease: str
    why: str = "released by its holder"
    tenant: str | None = None


class ProveReleased(Command, frozen=True, gc=False):
    """The holder of ``lease`` can do nothing more with the ``freed`` slots; of the ``fenced`` that is not proven.

    ``freed=None`` stands for all that are not fenced.

    ``fence`` is the lease's: a proof about an older holder proves nothing about this one. ``operator`` is a recorded
    order of a person, accepted in any state. ``returned`` takes the whole claim back as if it had never been made.
    """

    lease: str
    fence: int
    freed: tuple[str, ...] | None = None
    fenced: dict[str, str] = {}
    proof: str = "unprepared by the agent"
    operator: bool = False
    returned: bool = False


class ProveShrunk(Command, frozen=True, gc=False):
    """The holder of ``lease`` can do nothing more with the ``replicas`` it was told to leave.

    ``fence`` is the newest under which it has a device of them: numbers of replicas are given again, and a proof about
    older ones proves nothing about these. Of the ``fenced`` slots it is not proven.
    """

    lease: str
    replicas: tuple[int, ...]
    fence: int
    fenced: dict[str, str] = {}
    proof: str = "unprepared by the agent"


class ProveFreed(Command, frozen=True, gc=False):
    """A fenced slot is let go after all."""

    device: str
    fence: int
    proof: str = "unprepared by the agent"


class RepairDevice(Command, frozen=True, gc=False):
    """A device was repaired as ``how`` says, and looks like ``conditions`` now: its latched evidence is cleared.

    Refused while it is held, or something that shares its fate.
    """

    device: str
    how: str = ""
    conditions: tuple[Condition, ...] = ()


class Expire(Command, frozen=True, gc=False):
    """Look at the clock: what has expired becomes suspect, who was to leave is ended, who waited too long goes."""


class Schedule(Command, frozen=True, gc=False):
    """Do the next thing that the queue asks for: grant a waiting claim, make room for one, let an elastic lease grow.

    Answered by ``Granted`` for a claim that waited, or by ``Done``; without records there is nothing to do.
    """


class SetCordon(Command, frozen=True, gc=False):
    """Keep a device (its id) or a machine (``node:NAME``) from new leases.

    With ``drain`` the holders are told to leave, too: within ``grace_seconds``, or as long as each was promised.
    """

    target: str
    why: str = ""
    by: str = "operator"
    drain: bool = False
    grace_seconds: float | None = None


class LiftCordon(Command, frozen=True, gc=False):
    """Take a cordon back."""

    target: str
    by: str = "operator"


class SetTenant(Command, frozen=True, gc=False):
    """Say what a tenant may have, from now on. What it has already stays."""

    tenant: Tenant


class RemoveTenant(Command, frozen=True, gc=False):
    """Forget what was said about a tenant."""

    path: str


AnyCommand = (
    Begin
    | Observe
    | ClaimDevices
    | MarkPrepared
    | Renew
    | Resize
    | Release
    | ProveReleased
    | ProveShrunk
    | ProveFreed
    | RepairDevice
    | Expire
    | Schedule
    | SetCordon
    | LiftCordon
    | SetTenant
    | RemoveTenant
)


class Granted(msgspec.Struct, frozen=True, gc=False, tag="granted"):
    """Yes. The same claim asked again gets the same lease."""

    lease: Lease


class Refused(msgspec.Struct, frozen=True, gc=False, tag="refused"):
    """No, and the proof in words."""

    reason: str


class Queued(msgspec.Struct, frozen=True, gc=False, tag="queued"):
    """Not yet: the claim waits at this position (from 1); ``starts_at`` is when it is expected, where that is known."""

    position: int
    starts_at: float | None = None
    why: str = ""


class Undecided(msgspec.Struct, frozen=True, gc=False, tag="undecided"):
    """Nobody knows: the search was given up after so many steps."""

    steps: int


class Done(msgspec.Struct, frozen=True, gc=False, tag="done"):
    """It is so; ``lease`` as it is afterwards, where there is one; ``leases`` those that now need the agent."""

    lease: Lease | None = None
    leases: tuple[Lease, ...] = ()


Answer = Granted | Queued | Refused | Undecided | Done
