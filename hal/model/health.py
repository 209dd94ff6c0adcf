"""Health as evidence: conditions, and the four axes that are never mixed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Presence(StrEnum):
    """Is it there? ``ghost`` is enumerated but does not answer."""

    PRESENT = "present"
    MISSING = "missing"
    GHOST = "ghost"


class Health(StrEnum):
    """How well is it? No data is ``unknown``, never ``healthy``."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    SUSPECT = "suspect"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Admission(StrEnum):
    """May it be handed out?"""

    ADMITTED = "admitted"
    CORDONED = "cordoned"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    REPAIRING = "repairing"
    PROBATION = "probation"
    RETIRED = "retired"


class Severity(StrEnum):
    """How bad one condition is: recorded, deprioritised, finish and test, drain, fence."""

    INFO = "info"
    WARN = "warn"
    DEGRADED = "degraded"
    CRITICAL = "critical"
    FATAL = "fatal"


class Radius(StrEnum):
    """What else one condition takes down."""

    DEVICE = "device"
    LINK = "link"
    BOARD = "board"
    NODE = "node"
    FABRIC = "fabric"


class Status(StrEnum):
    """Whether a condition holds. ``unknown`` is its own answer."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What mends it: the union of what NVML field 230, Level Zero and CXL recommend."""

    NONE = "none"
    RESTART_APP = "restart-app"
    RESET = "reset"
    DRAIN_RESET = "drain-reset"
    REBOOT = "reboot"
    POWER_CYCLE = "power-cycle"
    REPLACE = "replace"


_RANK = {Severity.INFO: 0, Severity.WARN: 1, Severity.DEGRADED: 2, Severity.CRITICAL: 3, Severity.FATAL: 4}
_HEALTH = {
    Severity.INFO: Health.HEALTHY,
    Severity.WARN: Health.HEALTHY,
    Severity.DEGRADED: Health.DEGRADED,
    Severity.CRITICAL: Health.SUSPECT,
    Severity.FATAL: Health.FAILED,
}


class Condition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence about one device at one time.

    ``type`` is a CamelCase name in the manner of Kubernetes (``XidError``, ``LinkDown``); ``evidence`` what was seen;
    ``code`` the vendor's number (an XID, say). Times are seconds since the Unix epoch on the observer's clock.
    ``latched`` evidence does not clear by itself, only by a repair step that passed.
    """

    device: str
    type: str
    severity: Severity
    evidence: str
    source: str
    status: Status = Status.TRUE
    radius: Radius = Radius.DEVICE
    action: Action = Action.NONE
    code: int | None = None
    first_seen_at: float = 0.0
    last_seen_at: float = 0.0
    count: int = 1
    expires_at: float | None = None
    latched: bool = False

    def holds(self, now: float) -> bool:
        """True if the condition is asserted and has not expired at ``now``."""
        return self.status is Status.TRUE and (self.expires_at is None or self.expires_at > now)

    @property
    def blocks_new_leases(self) -> bool:
        """True if a device under this condition is not handed out (DEGRADED and worse, or not known)."""
        return self.status is Status.UNKNOWN or (self.status is Status.TRUE and _RANK[self.severity] >= 2)


def worst(conditions: Iterable[Condition], now: float = 0.0) -> Health:
    """Return the health that a set of conditions amounts to: the worst one that still holds.

    A condition of status ``unknown`` makes the device ``unknown`` unless another one makes it worse.
    """
    rank = -1
    health = Health.HEALTHY
    unknown = False
    for condition in conditions:
        if condition.status is Status.UNKNOWN:
            unknown = True
        elif condition.holds(now) and _RANK[condition.severity] > rank:
            rank = _RANK[condition.severity]
            health = _HEALTH[condition.severity]
    if unknown and health in (Health.HEALTHY, Health.DEGRADED):
        return Health.UNKNOWN
    return health
