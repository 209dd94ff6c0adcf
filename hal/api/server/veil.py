"""Other tenants' claims are nobody's business: what is said to one tenant names no lease or tenant of another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from hal.api import wire as w
from hal.api.held import Ticket
from hal.api.local import Status
from hal.api.server.callers import Caller
from hal.api.surface import Broker
from hal.broker.allocation.explain import Conflicting, Explanation, Nearby
from hal.broker.command import Answer, Granted, Queued, Refused
from hal.model.event import Event
from hal.model.lease import Lease

_NEEDED = re.compile(r"needed for \S+ \(priority")
_WAITS = re.compile(r"waits for .+ to leave")
_WORD = re.compile(r"[^\s,;:()'\"]+")
HELD = "held by somebody else"


class Veil:
    """Hides what ``caller`` must not know. Others' names are looked up when the first text is hidden, not before."""

    def __init__(self, broker: Broker, caller: Caller) -> None:
        self._broker = broker
        self._caller = caller
        self._foreign: frozenset[str] | None = None
        self._odd: tuple[str, ...] = ()  # names that are no single word: an id may hold commas and brackets

    def text(self, said: str, instead: str = HELD) -> str:
        """Return a sentence, or ``instead`` if it names a lease, a claim or a tenant of somebody else."""
        if self._caller.operator or not said:
            return said
        if self._foreign is None:
            self._foreign = self._names()
            self._odd = tuple(name for name in self._foreign if _WORD.fullmatch(name) is None)
        said = unnamed(said)
        if any(word in self._foreign for word in _WORD.findall(said)) or any(name in said for name in self._odd):
            return instead
        return said

    def _names(self) -> frozenset[str]:
        covers = self._caller.covers
        leases = [(lease.id, lease.tenant) for lease in self._broker.list()]
        waiting = [(one.claim.id, one.claim.tenant) for one in self._broker.queue()]
        fenced = [(one.lease, one.tenant) for one in self._broker.status().fenced]
        return frozenset(
            name for one, tenant in (*leases, *waiting, *fenced) if not covers(tenant) for name in (one, tenant)
        )

    def answer(self, answer: Answer) -> Answer:
        """Return an answer to a claim without others' names."""
        if isinstance(answer, Refused):
            return Refused(self.text(answer.reason, "not enough devices are free: others hold them"))
        if isinstance(answer, Queued) and answer.why:
            return msgspec.structs.replace(answer, why=self.text(answer.why, "others hold what it needs"))
        return answer

    def explanation(self, told: Explanation) -> Explanation:
        """Return an explanation without others' names."""
        if self._caller.operator:
            return told
        return msgspec.structs.replace(
            told,
            reason=self.text(told.reason, "not enough devices are free: others hold them"),
            devices=tuple(msgspec.structs.replace(row, reason=self.text(row.reason)) for row in told.devices),
            conflict=self._conflict(told.conflict),
            nearest=tuple(text for text in told.nearest if self.text(text) == text),
            nearby=tuple(near for near in told.nearby if self._is_mine(near)),
        )

    def _is_mine(self, near: Nearby) -> bool:
        return self.text(near.text) == near.text

    def _conflict(self, conflict: Conflicting | None) -> Conflicting | None:
        if conflict is None:
            return None
        return msgspec.structs.replace(conflict, text=self.text(conflict.text, "others hold what it needs"))

    def status(self, status: Status, count: Callable[[], int]) -> Status:
        """Return the status with this tenant's own leases counted, and nothing said of others' fenced devices."""
        if self._caller.operator:
            return status
        fenced = tuple(one for one in status.fenced if self._caller.covers(one.tenant))
        return msgspec.structs.replace(status, leases=count(), fenced=fenced)


def unnamed(said: str) -> str:
    """Return what a holder is told with nobody's name in it: for whom it is to leave, or whom it waits for.

    Those may be over by the time it is read, so they are not looked up.
    """
    if "needed for " in said:
        said = _NEEDED.sub("needed for another claim (priority", said)
    if "waits for " in said:
        said = _WAITS.sub("waits for others to leave", said)
    return said


def events_unnamed(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return events without names of others."""
    found = []
    for event in events:
        detail = unnamed(event.detail)
        found.append(event if detail is event.detail else msgspec.structs.replace(event, detail=detail))
    return tuple(found)


def reply_unnamed(reply: Any) -> Any:
    """Return an answer to a tenant with the leases and events in it as far as they name nobody else."""
    match reply:
        case w.OneAnswer(answer=answer):
            return w.OneAnswer(answer=_answer(answer))
        case w.Answers(answers=answers):
            if any(isinstance(answer, Granted) and _names_somebody(answer.lease) for answer in answers):
                return w.Answers(answers=tuple(map(_answer, answers)))
        case w.Leases(leases=leases):
            if any(map(_names_somebody, leases)):
                return w.Leases(leases=tuple(map(_lease, leases)))
        case w.LeaseReply(lease=lease):
            return w.LeaseReply(lease=_lease(lease))
        case Ticket(lease=lease):
            return msgspec.structs.replace(reply, lease=_lease(lease))
        case w.Events(events=events):
            return msgspec.structs.replace(reply, events=events_unnamed(events))
    return reply


def _names_somebody(lease: Lease) -> bool:
    return bool(lease.notice or lease.why_ended)


def _lease(lease: Lease) -> Lease:
    if not _names_somebody(lease):
        return lease
    return msgspec.structs.replace(lease, notice=unnamed(lease.notice), why_ended=unnamed(lease.why_ended))


def _answer(answer: w.AnyAnswer) -> w.AnyAnswer:
    return Granted(_lease(answer.lease)) if isinstance(answer, Granted) else answer
