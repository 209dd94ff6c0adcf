"""From a claim to a lease that is ready: decided together, prepared one by one, tried again where a device failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from hal.agent.prepare import Agent
from hal.broker import command as c
from hal.broker.allocation.places import ancestors, why_unfit
from hal.broker.decisions.claims import lease_of_nothing, position_of
from hal.broker.decisions.leases import is_below
from hal.broker.ledger import Ledger
from hal.broker.lifecycle import LIVE
from hal.errors import BrokerError, ClaimRefused, HalError, LeaseNotFound
from hal.model.claim import Claim, request_names
from hal.model.device import Device
from hal.model.lease import Lease, LeaseState

MOST_ATTEMPTS = 64
"""How often other devices are chosen for a claim whose devices did not let themselves be prepared."""


class Granting:
    """Grants claims through the ledger and has the agent prepare what was granted.

    A lease is promised when it is prepared. One whose devices fail is taken back as if it had never been made, and its
    claim is decided again, with what was learned of them.
    """

    def __init__(self, ledger: Ledger, agent: Agent, look_again: Callable[[], bool], *, prepares: bool = True) -> None:
        self.ledger = ledger
        self.agent = agent
        self.look_again = look_again
        self.prepares = prepares
        self._mine = threading.Lock()
        self._preparing: set[str] = set()

    def submit(self, claims: Sequence[Claim], actors: Sequence[str]) -> list[c.Answer]:
        """Decide the claims in one commit, prepare what was granted, and return what became of each."""
        known = self.ledger.state.claims
        fresh = {claim.id for claim in claims if claim.id not in known}
        if len(claims) == 1:
            claim = claims[0]
            return [self._one(claim, actors[0], self.ledger.execute(c.ClaimDevices(claim=claim), actors[0]), fresh)]
        found = self.ledger.execute_many([c.ClaimDevices(claim=claim) for claim in claims], actors)
        answers: list[c.Answer] = []
        for claim, actor, answer in zip(claims, actors, found, strict=True):
            if isinstance(answer, HalError):
                answers.append(c.Refused(f"{answer.message}{f' (try: {answer.hint})' if answer.hint else ''}"))
            else:
                answers.append(self._ready(claim, actor, answer, claim.id in fresh))
        self.prepare_pending()
        return answers

    def _one(self, claim: Claim, actor: str, answer: c.Answer, fresh: set[str]) -> c.Answer:
        if isinstance(answer, c.Refused) and self.look_again():  # what was sick a while ago may be well again
            answer = self.ledger.execute(c.ClaimDevices(claim=claim), actor)
        answer = self._ready(claim, actor, answer, claim.id in fresh)
        self.prepare_pending()
        return answer

    def _ready(self, claim: Claim, actor: str, answer: c.Answer, fresh: bool) -> c.Answer:
        """Prepare what was granted; on trouble decide again, as often as something new was learned."""
        trouble = ""
        for _ in range(MOST_ATTEMPTS):
            if not isinstance(answer, c.Granted) or not self.prepares or not self._take(answer.lease):
                break
            lease = answer.lease
            try:
                sick = self._sick(claim, lease) if fresh else None
                if sick is not None:
                    self.agent.give_up(lease, sick, untouched=lease.devices)
                    trouble = trouble or sick
                else:
                    prepared = self.agent.prepare(lease, fresh=fresh)
                    if isinstance(prepared, Lease):
                        return c.Granted(prepared)
                    trouble = f"{prepared.device.name} could not be prepared ({prepared.error})"
            finally:
                self._preparing.discard(lease.id)
            answer = self.ledger.execute(c.ClaimDevices(claim=claim), actor)
        else:
            return c.Refused(f"the devices chosen could not be had: {trouble}")
        if trouble and isinstance(answer, c.Refused):
            return c.Refused(f"{trouble}, and then {answer.reason}")
        return answer

    def _sick(self, claim: Claim, lease: Lease) -> str | None:
        """Ask the devices, and those they depend on, how they are, before they are promised; return what is wrong."""
        known = self.ledger.state.devices
        devices = [known[device.id] for device in lease.devices if device.id in known]
        above = [found for device in devices for found in ancestors(device, known)]
        asked = {device.id: device for device in (*devices, *above) if isinstance(device, Device)}
        if not self.agent.sample(asked.values()):
            return None
        known = self.ledger.state.devices
        bears = {
            name: request.tolerate
            for name, request in zip(request_names(claim.requests), claim.requests, strict=True)
            if not request.or_else
        }
        for given in lease.devices:
            now = known.get(given.id)
            why = "it is gone" if now is None else why_unfit(now, ancestors(now, known), bears.get(given.request, ()))
            if why is not None:
                return f"{given.name} is not well: {why}"
        return None

    def _take(self, lease: Lease) -> bool:
        """Return whether a lease is bound and nobody else prepares it."""
        with self._mine:
            if lease.state is not LeaseState.BOUND or lease.id in self._preparing:
                return False
            self._preparing.add(lease.id)
            return True

    def prepare_pending(self) -> None:
        """Prepare the leases that were granted from the queue, or have grown."""
        if not self.prepares:
            return
        for lease_id in list(self.ledger.state.unprepared):
            state = self.ledger.state
            lease, claim = state.leases.get(lease_id), state.claims.get(lease_id)
            if lease is not None and claim is not None:
                self._ready(claim, claim.tenant, c.Granted(lease), fresh=False)

    def answer_of(self, claim_id: str, tenant: str | None) -> c.Answer:
        """Return what is known of a claim. One that is granted and not prepared yet is still ``Queued``, at 0."""
        with self.ledger.lock:
            state = self.ledger.state
            claim = state.claims.get(claim_id)
            if claim is None or not is_below(claim.tenant, tenant):
                raise LeaseNotFound("no such claim", device=claim_id, during="wait", hint="hal list, hal queue")
            entry = state.waiting.get(claim_id)
            if entry is not None:
                position = position_of(state, claim_id)
                return c.Queued(position=position, starts_at=entry.starts_at, why=entry.why)
            lease = state.leases.get(claim_id)
            if lease is not None and lease.state in LIVE:
                if lease.state is LeaseState.BOUND and self.prepares:
                    return c.Queued(position=0, why="its devices are being prepared")
                return c.Granted(lease)
            why = state.left.get(claim_id)
            if why is not None:
                return c.Refused(why)
            over = lease or state.ended[claim_id]
            return c.Refused(f"it was granted and is over: {over.why_ended}")

    def lease_of(self, claim: Claim, answer: c.Answer) -> Lease:
        """Return the lease of a claim that was granted; raise what stands in the way otherwise."""
        self.check(answer, claim.id, "claim")
        assert isinstance(answer, c.Granted)
        return answer.lease

    def check(self, answer: c.Answer, claim_id: str, during: str) -> None:
        """Raise ``ClaimRefused`` or ``BrokerError`` for an answer that is a no, or none."""
        if isinstance(answer, c.Refused):
            hint = "hal explain, with the same words"
            raise ClaimRefused(answer.reason, device=claim_id, during=during, hint=hint)
        if isinstance(answer, c.Undecided):
            raise BrokerError(
                f"undecided: the search was given up after {answer.steps} steps",
                device=claim_id,
                during=during,
                hint="ask for fewer requests or constraints at once",
            )

    def nothing_of(self, claim: Claim) -> Lease:
        """Return what stands for a claim that left the queue."""
        return lease_of_nothing(claim, self.ledger.state.left.get(claim.id, ""), self.ledger.clock.now())

    def seconds_until_due(self, most: float) -> float:
        """Return in how many seconds something is due, ``most`` at the most."""
        at = self.ledger.state.next_due()
        return most if at is None else min(most, max(0.0, at - self.ledger.clock.now()))
