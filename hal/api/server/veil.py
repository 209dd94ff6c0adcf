"""Other tenants' claims are nobody's business: what is said to one tenant names no lease or tenant of another."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from hal.api.local import Status
from hal.api.server.callers import Caller
from hal.api.surface import Broker
from hal.broker.allocation.explain import Conflicting, Explanation
from hal.broker.command import Answer, Queued, Refused

_WORD = re.compile(r"[^\s,;:()'\"]+")
HELD = "held by somebody else"


class Veil:
    """Hides what ``caller`` must not know. Others' names are looked up when the first text is hidden, not before."""

    def __init__(self, broker: Broker, caller: Caller) -> None:
        self._broker = broker
        self._caller = caller
        self._foreign: frozenset[str] | None = None

    def text(self, said: str, instead: str = HELD) -> str:
        """Return a sentence, or ``instead`` if it names a lease, a claim or a tenant of somebody else."""
        if self._caller.operator or not said:
            return said
        if self._foreign is None:
            self._foreign = self._names()
        return instead if any(word in self._foreign for word in _WORD.findall(said)) else said

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
        )

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
