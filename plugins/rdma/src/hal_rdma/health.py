"""Health of a NIC: what its ports show now, and what its counters did meanwhile. A rate, never a total.

A NIC that has run for a year has counted errors; what matters is how many came in the last minutes. Every look adds
one :class:`Observation`; what counts is the growth within :data:`WINDOW_SECONDS`. A condition that was raised stays
until its rate has fallen to half of what raised it, so that it does not flap itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from hal.interfaces.rnic import Port
from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_rdma.counters import growth

if TYPE_CHECKING:
    from collections.abc import Iterable

SOURCE = "rdma"
WINDOW_SECONDS = 300.0
PENALTY, SUPPRESS, REUSE, HALF_LIFE_SECONDS, CEILING = 1000.0, 2500.0, 750.0, 900.0, 12_000.0
"""Damping as of route flaps (RFC 2439); the ceiling is what decays to ``REUSE`` in an hour."""

_HEADROOM = 1.5  # a link does not carry more than its rate; clocks and reads are not exact
_MOST_DOWNS_A_SECOND = 100.0
_UNKNOWN_RATE_GBPS = 800.0
_REMEMBERED_DOWNS = 64


class Rule(NamedTuple):
    """A counter, the condition that its growth amounts to, and from how many in a window on."""

    counter: str
    type: str
    many: int
    severity: Severity
    action: Action
    what: str


RULES = (
    # Limits of ibqueryerrors, which are per look, taken per window.
    Rule("symbol_error", "SymbolErrors", 10, Severity.WARN, Action.NONE, "symbol errors: reseat or change the cable"),
    Rule("link_error_recovery", "LinkRecovering", 10, Severity.DEGRADED, Action.NONE, "link error recoveries"),
    Rule("local_link_integrity_errors", "LinkIntegrity", 10, Severity.DEGRADED, Action.REPLACE, "integrity errors"),
    Rule("port_rcv_errors", "ReceiveErrors", 10, Severity.WARN, Action.NONE, "packets received with errors"),
    Rule("excessive_buffer_overrun_errors", "BufferOverruns", 10, Severity.WARN, Action.NONE, "buffer overruns"),
    Rule("port_xmit_discards", "Discards", 100, Severity.WARN, Action.NONE, "packets discarded when sent: congestion"),
    Rule(
        "local_ack_timeout_err", "AckTimeouts", 100, Severity.WARN, Action.NONE, "acknowledgements that came too late"
    ),
    Rule("packet_seq_err", "SequenceErrors", 1000, Severity.WARN, Action.NONE, "packets out of sequence: loss"),
    Rule("rcvd_seq_err", "SequenceErrors", 1000, Severity.WARN, Action.NONE, "packets out of sequence: loss"),
)


class Observation(NamedTuple):
    """The counters of one port at one time on the monotonic clock."""

    at: float
    counters: Mapping[str, int]


class PortHistory:
    """What one port did: growth of its counters within the window, and how often its link went down."""

    def __init__(self) -> None:
        self._last: Observation | None = None
        self._grown: deque[tuple[float, dict[str, int]]] = deque()
        self._raised: set[str] = set()
        self.downs: deque[float] = deque(maxlen=_REMEMBERED_DOWNS)
        self.best_gbps = 0.0

    def observe(self, at: float, port: Port, counters: Mapping[str, int]) -> None:
        """Add a look. The first is only what later ones are measured against."""
        if port.up:
            self.best_gbps = max(self.best_gbps, port.rate_gbps)
        last, self._last = self._last, Observation(at, dict(counters))
        if last is None:
            return
        seconds = max(at - last.at, 0.001)
        rate = max(self.best_gbps, port.rate_gbps) or _UNKNOWN_RATE_GBPS
        most = rate * 1e9 / 8 * seconds * _HEADROOM + 1e6
        grown: dict[str, int] = {}
        for name, now in counters.items():
            before = last.counters.get(name)
            if before is None:
                continue
            limit = _MOST_DOWNS_A_SECOND * (seconds + 1) if name == "link_downed" else most
            more = growth(name, before, now, limit)
            if more:
                grown[name] = more
        self._grown.append((at, grown))
        self.downs.extend([at] * min(grown.get("link_downed", 0), _REMEMBERED_DOWNS))
        while self._grown and self._grown[0][0] < at - WINDOW_SECONDS:
            self._grown.popleft()

    def recent(self, name: str) -> int:
        """Return how much a counter has grown within the window."""
        return sum(grown.get(name, 0) for _, grown in self._grown)

    def penalty(self, now: float) -> tuple[float, bool]:
        """Return what the link's downs amount to, and whether it is to be held for flapping."""
        return damp(self.downs, now)

    def raised(self, rule: Rule) -> bool:
        """Return whether a rule's condition holds: from ``many`` on, until it is half of that."""
        count = self.recent(rule.counter)
        key = rule.counter
        if count >= rule.many or (key in self._raised and count * 2 > rule.many):
            self._raised.add(key)
            return True
        self._raised.discard(key)
        return False


def damp(downs: Iterable[float], now: float) -> tuple[float, bool]:
    """Return the penalty of a link's downs at ``now``, and whether the link is suppressed for flapping.

    Each adds 1000; the sum halves in 15 minutes. Suppressed from 2500 on, until it has decayed to 750.
    """
    penalty, suppressed, last = 0.0, False, now
    for at in downs:
        penalty *= 0.5 ** (max(0.0, at - last) / HALF_LIFE_SECONDS)
        suppressed = suppressed and penalty > REUSE
        penalty = min(penalty + PENALTY, CEILING)
        suppressed = suppressed or penalty >= SUPPRESS
        last = at
    penalty *= 0.5 ** (max(0.0, now - last) / HALF_LIFE_SECONDS)
    return penalty, suppressed and penalty > REUSE


def judge_ports(device: str, ports: Sequence[Port], unread: Mapping[int, str]) -> tuple[Condition, ...]:
    """Return what the ports' states amount to; ``unread`` says why the state of some is not known.

    A NIC of which no port is up is of no use to anybody (critical: drain); one port of several may be meant to be down.
    """
    down = [port for port in ports if not port.up]
    severity = Severity.CRITICAL if len(down) == len(ports) else Severity.WARN
    found: list[Condition] = []
    for port in down:
        if port.number in unread:
            evidence = f"port {port.number} is in a state that cannot be read: {unread[port.number]}"
            unknown = condition(device, "PortUnknown", severity, evidence)
            found.append(msgspec.structs.replace(unknown, status=Status.UNKNOWN))
        else:
            evidence = f"port {port.number} is {port.state.value} (physical state {port.physical_state.value})"
            found.append(condition(device, "PortDown", severity, evidence))
    return tuple(found)


def judge_history(device: str, port: Port, history: PortHistory, now: float) -> list[Condition]:
    """Return what a port's past amounts to."""
    found: list[Condition] = []
    if port.up and 0 < port.rate_gbps < history.best_gbps:
        evidence = f"port {port.number}: rate is {port.rate_gbps:g} Gb/s of {history.best_gbps:g} seen before"
        found.append(condition(device, "LinkDegraded", Severity.DEGRADED, evidence))
    penalty, suppressed = history.penalty(now)
    if suppressed:
        evidence = (
            f"port {port.number}: link_downed grew by {len(history.downs)} "
            f"(penalty {penalty:.0f}, cleared at {REUSE:.0f})"
        )
        found.append(condition(device, "LinkFlapping", Severity.DEGRADED, evidence, count=len(history.downs)))
    for rule in RULES:
        if history.raised(rule):
            count = history.recent(rule.counter)
            evidence = f"port {port.number}: {rule.counter} grew by {count} in {WINDOW_SECONDS:.0f} s ({rule.what})"
            found.append(condition(device, rule.type, rule.severity, evidence, action=rule.action, count=count))
    return found


def condition(
    device: str, type: str, severity: Severity, evidence: str, *, action: Action = Action.NONE, count: int = 1
) -> Condition:
    """Return a condition of a link, seen now."""
    now = time.time()
    return Condition(
        device=device,
        type=type,
        severity=severity,
        evidence=evidence,
        source=SOURCE,
        radius=Radius.LINK,
        action=action,
        first_seen_at=now,
        last_seen_at=now,
        count=count,
    )
