"""Typed faults: what goes wrong with which device, when, for how long, and whether it heals."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class FaultType(StrEnum):
    """What can go wrong. The words are those of the kernel and the vendors where they have one."""

    LOST = "lost"
    FALLEN_OFF_BUS = "fallen-off-bus"
    XID = "xid"
    ECC_UNCORRECTABLE = "ecc-uncorrectable"
    LINK_DOWN = "link-down"
    LINK_DEGRADED = "link-degraded"
    FLAP = "flap"
    BAD_BLOCK = "bad-block"
    READ_ONLY = "read-only"
    HANG = "hang"
    SLOW = "slow"
    LIE = "lie"
    BOOT_HANG = "boot-hang"
    THERMAL = "thermal"
    FW_FATAL = "fw-fatal"


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault of one device.

    ``device`` is the device's id. It holds from ``onset_at`` (machine's clock) for ``duration_seconds``, or until it
    is healed. ``code`` is an XID; ``seconds`` a delay (slow) or period (flap); ``offset`` and ``length`` a byte range
    (bad block); ``generation`` and ``width`` what is left of a link; ``attribute`` and ``value`` what a lying device
    says instead.
    """

    id: int
    device: str
    type: FaultType
    onset_at: float = 0.0
    duration_seconds: float | None = None
    code: int | None = None
    seconds: float = 0.0
    offset: int = 0
    length: int = 0
    generation: int = 0
    width: int = 0
    attribute: str = ""
    value: str = ""

    def active(self, now: float) -> bool:
        """True while it holds."""
        return self.onset_at <= now and (self.duration_seconds is None or now < self.onset_at + self.duration_seconds)

    def next_change(self, now: float) -> float | None:
        """Return when :meth:`active` changes next, or None if never."""
        if now < self.onset_at:
            return self.onset_at
        if self.duration_seconds is not None and now < self.onset_at + self.duration_seconds:
            return self.onset_at + self.duration_seconds
        return None
