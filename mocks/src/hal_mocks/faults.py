"""Typed faults: what goes wrong with which device, when, for how long, and whether it heals."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.errors import UsageError

FLAP_SECONDS = 10.0
"""The period of a flapping link that does not give its own."""

SHORTEST_FLAP_SECONDS = 1e-3
"""A shorter period is taken for this one: the clock, in seconds since 1970, does not tell shorter times apart."""


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
    RUN_FAULT = "run-fault"
    READ_ONLY = "read-only"
    HANG = "hang"
    SLOW = "slow"
    LIE = "lie"
    BOOT_HANG = "boot-hang"
    THERMAL = "thermal"
    FW_FATAL = "fw-fatal"


def fault_type(word: str) -> FaultType:
    """Return the type of fault that a word names; raises ``UsageError`` with all of them for one that names none."""
    try:
        return FaultType(word)
    except ValueError:
        raise UsageError(f"unknown fault {word!r}", hint=", ".join(FaultType)) from None


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault of one device.

    ``device`` is the device's id. It holds from ``onset_at`` (machine's clock) for ``duration_seconds``, or until it
    is healed. ``code`` is an XID; ``seconds`` a delay (slow) or period (flap); ``offset`` and ``length`` a byte range
    (bad block); ``dpu`` and ``tasklet`` where a program faults on an UPMEM rank (run fault); ``generation`` and
    ``width`` what is left of a link; ``attribute`` and ``value`` what a lying device says instead.
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
    dpu: int = 0
    tasklet: int = 0
    generation: int = 0
    width: int = 0
    attribute: str = ""
    value: str = ""

    def active(self, now: float) -> bool:
        """True while it holds."""
        return self.onset_at <= now and (self.duration_seconds is None or now < self.onset_at + self.duration_seconds)

    @property
    def period_seconds(self) -> float:
        """How long a fault that comes and goes takes for both."""
        return max(self.seconds, SHORTEST_FLAP_SECONDS) if self.seconds else FLAP_SECONDS

    def holds_down(self, now: float) -> bool:
        """True while a fault that comes and goes is in its bad half: the first half of each period (``seconds``)."""
        if not self.active(now):
            return False
        period = self.period_seconds
        return self.type is not FaultType.FLAP or (now - self.onset_at) % period < period / 2

    def next_change(self, now: float) -> float | None:
        """Return when :meth:`active` or :meth:`holds_down` changes next, or None if never."""
        if now < self.onset_at:
            return self.onset_at
        end = None if self.duration_seconds is None else self.onset_at + self.duration_seconds
        if end is not None and now >= end:
            return None
        if self.type is FaultType.FLAP:
            half = self.period_seconds / 2
            turns = (now - self.onset_at) // half + 1
            turn = self.onset_at + turns * half
            if turn <= now:  # rounding: the turn that has just been
                turn = self.onset_at + (turns + 1) * half
            return turn if end is None else min(turn, end)
        return end
