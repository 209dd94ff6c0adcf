"""What the broker can be asked, and what it answers. Values only."""

from __future__ import annotations

import msgspec

from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import Lease


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
    """The agent has prepared every device of the lease under this fence."""

    lease: str
    fence: int


class Renew(Command, frozen=True, gc=False):
    """The holder lives; ``ttl_seconds`` changes how long from now on, None keeps it."""

    lease: str
    ttl_seconds: float | None = None
    tenant: str | None = None


class Release(Command, frozen=True, gc=False):
    """End the lease; the devices come back when the agent has proven it."""

    lease: str
    why: str = "released by its holder"
    tenant: str | None = None


class ProveReleased(Command, frozen=True, gc=False):
    """The holder of ``lease`` can do nothing more with the ``freed`` devices; of the ``fenced`` that is not proven.

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


class ProveFreed(Command, frozen=True, gc=False):
    """A fenced device is let go after all."""

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
    """Look at the clock: leases that have expired become suspect, conditions that have expired go."""


AnyCommand = (
    Begin | Observe | ClaimDevices | MarkPrepared | Renew | Release | ProveReleased | ProveFreed | RepairDevice | Expire
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
