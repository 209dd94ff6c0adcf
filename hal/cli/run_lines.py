"""How ``hal run`` speaks with the broker for as long as its program runs: through a server, or by itself.

Without a server nobody may keep the journal open, or no other command of this user could do anything meanwhile: so it
is opened for every word, and looked at from time to time.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol

from hal.api.held import HeldLease
from hal.broker import command as c
from hal.errors import BrokerError, ClaimRefused
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from hal.model.event import EventType
from hal.model.lease import Lease

LOOK_SECONDS = 2.0
"""How often a journal is looked at that nobody serves."""
_QUEUE_SECONDS = 5.0
_QUIET = (EventType.RENEWED, EventType.GRANTED, EventType.PREPARED)
Tell = Callable[[c.Queued], None]


class Line(Protocol):
    """What is said to a broker while a program runs."""

    def claim(self, claim: Claim, tell: Tell) -> HeldLease:
        """Return the lease of a claim; while it waits in the queue, ``tell`` hears of each change."""
        ...

    def renew(self, lease_id: str) -> Lease:
        """Renew."""
        ...

    def look(self, lease_id: str, seconds: float, stop: threading.Event) -> Lease:
        """Return the lease as it is, after so many seconds at most, as soon as something happens to it."""
        ...

    def release(self, lease_id: str) -> None:
        """Release it, or take the claim out of the queue."""
        ...


class Served:
    """A broker that stays: a server's client."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker
        self._since = broker.status().revision

    def claim(self, claim: Claim, tell: Tell) -> HeldLease:
        """Claim, and wait as long as the claim does."""
        self._since = self._broker.status().revision
        answer = self._broker.submit([claim])[0]
        while isinstance(answer, c.Queued):
            tell(answer)
            answer = self._broker.wait_for(claim.id, Deadline.after(_QUEUE_SECONDS))
        return _granted(self._broker, claim, answer)

    def renew(self, lease_id: str) -> Lease:
        """Renew."""
        lease: Lease = self._broker.renew(lease_id)
        return lease

    def look(self, lease_id: str, seconds: float, stop: threading.Event) -> Lease:
        """Watch the events until one is the lease's."""
        for event in self._broker.watch(self._since, Deadline.after(min(seconds, LOOK_SECONDS))):
            self._since = event.revision
            if event.subject == lease_id and event.type not in _QUIET:
                break
        lease: Lease = self._broker.get(lease_id).lease
        return lease

    def release(self, lease_id: str) -> None:
        """Release."""
        self._broker.release(lease_id)


class Reopened:
    """A broker that is opened for every word."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened
        self._lock = threading.Lock()  # one of ours must not wait for the other as for a stranger

    def claim(self, claim: Claim, tell: Tell) -> HeldLease:
        """Claim; while the claim waits, look for it again and again."""
        with self._lock, closing(self._opened()) as broker:
            answer = broker.submit([claim])[0]
            if not isinstance(answer, c.Queued):
                return _granted(broker, claim, answer)
        while True:
            tell(answer)
            threading.Event().wait(LOOK_SECONDS)
            with self._lock, closing(self._opened()) as broker:
                answer = broker.wait_for(claim.id, Deadline.after(0.0))
                if not isinstance(answer, c.Queued):
                    return _granted(broker, claim, answer)

    def renew(self, lease_id: str) -> Lease:
        """Renew."""
        with self._lock, closing(self._opened()) as broker:
            lease: Lease = broker.renew(lease_id)
            return lease

    def look(self, lease_id: str, seconds: float, stop: threading.Event) -> Lease:
        """Wait a while, then look."""
        stop.wait(min(seconds, LOOK_SECONDS))
        with self._lock, closing(self._opened()) as broker:
            lease: Lease = broker.get(lease_id).lease
            return lease

    def release(self, lease_id: str) -> None:
        """Release."""
        with self._lock, closing(self._opened()) as broker:
            broker.release(lease_id)


def line_of(options: argparse.Namespace) -> Line:
    """Return the way to the broker that the options of every command name."""
    from hal.api.connect import connect, find_server
    from hal.api.opening import open_broker

    if find_server(state=options.state) is not None:
        return Served(connect(state=options.state, deadline_seconds=options.wait))
    return Reopened(lambda: open_broker(state=options.state, deadline_seconds=options.wait))


def _granted(broker: Any, claim: Claim, answer: Any) -> HeldLease:
    if isinstance(answer, c.Granted):
        held: HeldLease = broker.get(claim.id)
        return held
    if isinstance(answer, c.Refused):
        hint = "hal explain, with the same words; --queue waits until there is room"
        raise ClaimRefused(answer.reason, device=claim.id, during="claim", hint=hint)
    raise BrokerError(
        "undecided: the search was given up", device=claim.id, during="claim", hint="ask for fewer requests at once"
    )
