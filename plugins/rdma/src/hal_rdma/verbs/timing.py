"""Patience in the NIC's own steps: how long a sender waits for a receive, and how soon a dead peer is noticed.

Timer values are those of the IBA specification, tables 45 (RNR NAK timer) and 54 (local ACK timeout).
"""

from __future__ import annotations

from typing import NamedTuple

ACK_TIMEOUT = 14
"""4.096 us * 2**14 = 67 ms until a packet that nobody acknowledged is sent again."""

ACK_RETRIES = 6
"""So that a peer that does not answer breaks the connection after 7 * 67 ms = 0.47 s."""

PULSE_SECONDS = 0.2
"""How long a connection that only waits for messages goes without asking whether its peer is alive."""

FOREVER = 7
"""``rnr_retry`` of 7 means: again and again."""

RNR_TIMERS_MS = (
    655.36, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.48, 0.64, 0.96, 1.28, 1.92,
    2.56, 3.84, 5.12, 7.68, 10.24, 15.36, 20.48, 30.72, 40.96, 61.44, 81.92, 122.88, 163.84, 245.76, 327.68, 491.52,
)  # fmt: skip
"""What each value of ``min_rnr_timer`` means."""

_RETRIES = 6  # the most that is not for ever
_LONGEST_STEP_MS = 5.12
_STEADY_TIMER = 16


class RnrPlan(NamedTuple):
    """``min_rnr_timer`` for the receiving side, ``rnr_retry`` for the sending one, and whether the sending side has to
    look at the clock itself.
    """

    timer: int
    retries: int
    by_clock: bool


def plan_rnr(patience_seconds: float) -> RnrPlan:
    """Return how a sender's patience is had from the NIC.

    Short patience is the NIC's own: six retries of a sixth each, never less in all. A longer one would make each retry
    so late that a receive posted in between is found late, too; there the NIC retries every 2.56 ms without end, and
    the sender's side ends it by the clock.
    """
    step_ms = patience_seconds * 1000 / _RETRIES
    if step_ms > _LONGEST_STEP_MS:
        return RnrPlan(_STEADY_TIMER, FOREVER, True)
    fitting = [(each, code) for code, each in enumerate(RNR_TIMERS_MS) if each >= step_ms]
    return RnrPlan(min(fitting)[1], _RETRIES, False)
