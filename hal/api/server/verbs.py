"""What the server does for each verb: who may, how often, on whose account; the broker does the rest, in a thread."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from hal.api import wire as w
from hal.api.held import Ticket
from hal.api.local import Status
from hal.api.server.bell import Bell
from hal.api.server.buckets import Buckets
from hal.api.server.config import Limits
from hal.api.server.gather import Gatherer
from hal.api.server.heart import Heart
from hal.api.server.routes import Ask
from hal.api.server.veil import Veil
from hal.api.surface import TenantReport
from hal.broker.allocation.explain import Explanation
from hal.broker.command import Answer, Granted, Queued, Refused, Undecided
from hal.broker.journal.audit import Anchor, AuditLine, AuditReport
from hal.errors import BrokerError, ClaimRefused, LeaseNotFound
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.lease import LeaseState

_T = TypeVar("_T")


class Trail(Protocol):
    """Who can read the audit trail: a store of the journal."""

    def audit(self, since: int = 0, limit: int = 1000) -> Sequence[AuditLine]:
        """Return lines after a sequence."""
        ...

    def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """Check the whole trail."""
        ...


_RATES_SECONDS = 2.0
_COUNT_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 1.0
PAGE = 1000


class Verbs:
    """The verbs over one broker. ``devices`` returns all devices as they were last seen."""

    def __init__(
        self,
        broker: Any,
        limits: Limits,
        bell: Bell,
        heart: Heart,
        devices: Callable[[], Sequence[Device]],
        trail: Trail | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.broker: Any = broker  # a Broker that also takes who asks, for the audit trail
        self.limits = limits
        self.bell = bell
        self.heart = heart
        self.buckets = Buckets(limits, clock)
        self._devices = devices
        self._trail = trail
        self._clock = clock
        self._threads = ThreadPoolExecutor(4, "hal-verb")
        self._slow = ThreadPoolExecutor(1, "hal-slow")
        self.gatherer = Gatherer(lambda claims, who: broker.submit(claims, actors=who))
        self._prepares = getattr(broker, "prepares", True)
        self._open_claims: Callable[[], Mapping[str, int]] | None = getattr(broker, "open_claims", None)
        self._rates_at = float("-inf")
        self._counted_at = float("-inf")
        self._open: Counter[str] = Counter()

    def close(self) -> None:
        """End the threads; what they have begun is finished first."""
        self.gatherer.close()
        for pool in (self._threads, self._slow):
            pool.shutdown(wait=True, cancel_futures=True)

    async def call(self, work: Callable[..., _T], *args: Any, **words: Any) -> _T:
        """Run a verb of the broker in a thread: it may block."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **words))

    # --- claims

    async def _admit(self, ask: Ask, claims: Sequence[Claim]) -> list[Claim]:
        """Return the claims on the right accounts; raise if there are too many of them."""
        if len(claims) > self.limits.most_claims_at_once:
            many = self.limits.most_claims_at_once
            raise w.BadRequest(f"{len(claims)} claims", during="claim", hint=f"at most {many} at once")
        caller = ask.caller
        found = []
        for claim in claims:
            if caller.claim is not None and claim.id != caller.claim:
                raise w.Forbidden(f"the token is good for another claim than {claim.id}", during="claim")
            account = caller.account(claim.tenant)
            found.append(claim if account == claim.tenant else msgspec.structs.replace(claim, tenant=account))
        if self._clock() - self._rates_at >= _RATES_SECONDS:
            await self._refresh_rates()
        for tenant, many in _by_tenant(found).items():
            self.buckets.spend_claims(tenant, many)
        return found

    async def _refresh_rates(self) -> None:
        self._rates_at = self._clock()
        said = await self.call(self.broker.tenants)
        rates = {one.tenant.path: one.tenant.claims_per_second for one in said}
        self.buckets.set_rates({path: rate for path, rate in rates.items() if rate is not None})

    async def _check_open(self, claims: Sequence[Claim]) -> None:
        """Refuse more open claims of one tenant than there may be; they are counted anew every second."""
        now = self._clock()
        if now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            self._open = await self.call(self._count)
        more = _by_tenant(claims)
        for tenant, many in more.items():
            if self._open[tenant] + many > self.limits.most_open_claims:
                error = w.Limited(
                    f"{tenant} has {self._open[tenant]} open claims, at most {self.limits.most_open_claims}",
                    during="claim",
                    hint="release some",
                )
                error.retry_after_seconds = _COUNT_SECONDS
                raise error
        self._open.update(more)

    def _count(self) -> Counter[str]:
        if self._open_claims is not None:
            return Counter(self._open_claims())
        found = Counter(lease.tenant for lease in self.broker.list())
        found.update(one.claim.tenant for one in self.broker.queue())
        return found

    async def _submit(self, ask: Ask, asked: Sequence[Claim]) -> list[Answer]:
        claims = await self._admit(ask, asked)
        await self._check_open(claims)
        answers = await self.gatherer.submit(claims, ask.caller.name)
        if self._prepares and any(map(_is_bound, answers)):
            self.heart.kick()
        return answers

    async def submit(self, ask: Ask) -> msgspec.Struct:
        """Many claims in one commit."""
        return await self._answers(ask, await self._submit(ask, ask.body.claims))

    async def dry_run(self, ask: Ask) -> msgspec.Struct:
        """Many claims, decided and forgotten."""
        claims = await self._admit(ask, ask.body.claims)
        return await self._answers(ask, await self.call(self.broker.submit, claims, dry_run=True))

    async def _answers(self, ask: Ask, answers: Sequence[Answer]) -> w.Answers:
        if not ask.caller.operator and any(isinstance(answer, Refused | Queued) for answer in answers):
            veil = Veil(self.broker, ask.caller)
            answers = await self.call(lambda: [veil.answer(answer) for answer in answers])
        return w.Answers(answers=tuple(answers))  # type: ignore[arg-type]

    async def claim(self, ask: Ask) -> msgspec.Struct:
        """One claim: 201 granted, 202 queued; a refusal is a problem."""
        answer = (await self._answers(ask, await self._submit(ask, [ask.body]))).answers[0]
        seconds = ask.get("wait_seconds") or 0.0
        if seconds and (isinstance(answer, Queued) or _is_bound(answer)):
            answer = await self._wait(ask, ask.body.id, seconds, answer)
        return _told(ask, ask.body.id, answer)

    async def wait(self, ask: Ask) -> msgspec.Struct:
        """What became of a claim, now or within ``wait_seconds``."""
        self._must_be_mine(ask)
        answer = await self._wait(ask, ask.get("id"), ask.get("wait_seconds") or 0.0, None)
        return w.OneAnswer(answer=answer)

    async def _wait(self, ask: Ask, id: str, seconds: float, known: w.AnyAnswer | None) -> w.AnyAnswer:
        scope, ends = ask.caller.scope, self._clock() + seconds
        with self.bell.listening(id) as ear:
            while True:
                found = await self.call(self.broker.wait_for, id, Deadline.after(0.0), scope)
                left = ends - self._clock()
                if not (isinstance(found, Queued) or _is_bound(found)) or left <= 0 or self.bell.stopping:
                    return (await self._answers(ask, [found])).answers[0]
                if _is_bound(found):
                    self.heart.kick()
                await ear.wait(min(left, _LOOK_AGAIN_SECONDS))

    async def explain(self, ask: Ask) -> msgspec.Struct:
        """Why not."""
        claim = (await self._admit(ask, [ask.body]))[0]
        veil = Veil(self.broker, ask.caller)
        told: Explanation = await self.call(lambda: veil.explanation(self.broker.explain(claim)))
        return told

    async def queue(self, ask: Ask) -> msgspec.Struct:
        """The waiting claims of this tenant and those below."""
        covers, only = ask.caller.covers, ask.caller.claim
        waiting = await self.call(self.broker.queue, ask.caller.narrowed(ask.get("tenant")))
        mine = [one for one in waiting if covers(one.claim.tenant) and only in (None, one.claim.id)]
        if not ask.caller.operator and mine:
            veil = Veil(self.broker, ask.caller)
            mine = await self.call(lambda: [msgspec.structs.replace(one, why=veil.text(one.why)) for one in mine])
        return w.Queue(waiting=tuple(mine))

    # --- leases

    async def list(self, ask: Ask) -> msgspec.Struct:
        """The leases of this tenant and those below."""
        covers, only = ask.caller.covers, ask.caller.claim
        leases = await self.call(self.broker.list, ask.caller.narrowed(ask.get("tenant")))
        return w.Leases(leases=tuple(one for one in leases if covers(one.tenant) and only in (None, one.id)))

    async def ticket(self, ask: Ask) -> msgspec.Struct:
        """One lease, with all that its holder needs to open the devices."""
        self._must_be_mine(ask)
        held = await self.call(self.broker.get, ask.get("id"), ask.caller.narrowed(ask.get("tenant")))
        if not ask.caller.covers(held.lease.tenant):
            raise _not_found(ask.get("id"))
        return msgspec.json.decode(held.ticket(), type=Ticket)

    async def renew(self, ask: Ask) -> msgspec.Struct:
        """Renew."""
        self._must_be_mine(ask)
        ttl, scope = ask.body.ttl_seconds, ask.caller.narrowed(ask.get("tenant"))
        return w.LeaseReply(lease=await self.call(self.broker.renew, ask.get("id"), ttl, scope))

    async def resize(self, ask: Ask) -> msgspec.Struct:
        """Resize."""
        self._must_be_mine(ask)
        scope = ask.caller.narrowed(ask.get("tenant"))
        lease = await self.call(self.broker.resize, ask.get("id"), ask.body.replicas, scope, ask.caller.name)
        self.heart.kick()
        return w.LeaseReply(lease=lease)

    async def release(self, ask: Ask) -> msgspec.Struct:
        """Release, or leave the queue."""
        self._must_be_mine(ask)
        scope = ask.caller.narrowed(ask.get("tenant"))
        lease = await self.call(self.broker.release, ask.get("id"), scope, ask.caller.name)
        self.heart.kick()
        return w.LeaseReply(lease=lease)

    def _must_be_mine(self, ask: Ask) -> None:
        if ask.caller.claim not in (None, ask.get("id")):
            raise _not_found(ask.get("id"))

    # --- what there is, and what happened

    async def status(self, ask: Ask) -> msgspec.Struct:
        """The broker at a glance."""
        veil = Veil(self.broker, ask.caller)
        mine = partial(self.broker.list, ask.caller.scope)
        found: Status = await self.call(lambda: veil.status(self.broker.status(), lambda: len(mine())))
        return found

    async def devices(self, ask: Ask) -> msgspec.Struct:
        """All devices, and nothing about who holds them."""
        return w.Devices(devices=tuple(await self.call(self._devices)))

    async def cordons(self, ask: Ask) -> msgspec.Struct:
        """What is kept from new leases; a refusal says as much."""
        return w.Cordons(cordons=await self.call(self.broker.cordons))

    async def events(self, ask: Ask) -> msgspec.Struct:
        """One page of what happened."""
        since, limit = ask.get("since") or 0, ask.get("limit") or PAGE
        return await self.page(ask, since, limit)

    async def page(self, ask: Ask, since: int, limit: int) -> w.Events:
        """Return at most ``limit`` events after a revision, as far as this caller may see them."""
        tenant = ask.caller.narrowed(ask.get("tenant"))

        def read() -> w.Events:
            found = list(itertools.islice(self.broker.events(since, tenant), limit + 1))
            kept = tuple(found[:limit])
            only = ask.caller.claim
            seen = kept if only is None else tuple(event for event in kept if event.subject == only)
            return w.Events(events=seen, next=kept[-1].revision if kept else since, more=len(found) > limit)

        return await self.call(read)

    async def whoami(self, ask: Ask) -> msgspec.Struct:
        """Whom the server takes the caller for."""
        caller = ask.caller
        now = await self.call(self.broker.now)
        return w.WhoAmI(tenant=caller.tenant, operator=caller.operator, name=caller.name, by=caller.by, now=now)

    # --- for operators

    async def cordon(self, ask: Ask) -> msgspec.Struct:
        """Keep something from new leases."""
        body = ask.body
        return w.Cordons(cordons=await self.call(self.broker.cordon, body.target, body.why, ask.caller.name))

    async def uncordon(self, ask: Ask) -> msgspec.Struct:
        """Take a cordon back."""
        cordons = await self.call(self.broker.uncordon, ask.get("target"), ask.caller.name)
        self.heart.kick()
        return w.Cordons(cordons=cordons)

    async def drain(self, ask: Ask) -> msgspec.Struct:
        """Tell every holder to leave."""
        body = ask.body
        leases = await self.call(self.broker.drain, body.target, body.why, ask.caller.name, body.grace_seconds)
        self.heart.kick()
        return w.Leases(leases=leases)

    async def tenants(self, ask: Ask) -> msgspec.Struct:
        """The tenants at or below the caller's."""
        covers = ask.caller.covers
        found = await self.call(self.broker.tenants, ask.caller.narrowed(ask.get("tenant")))
        return w.Tenants(tenants=tuple(one for one in found if covers(one.tenant.path)))

    async def set_tenant(self, ask: Ask) -> msgspec.Struct:
        """Say what a tenant may have."""
        self._rates_at = float("-inf")
        report: TenantReport = await self.call(self.broker.set_tenant, ask.body, ask.caller.name)
        self.heart.kick()
        return report

    async def remove_tenant(self, ask: Ask) -> None:
        """Forget what was said."""
        self._rates_at = float("-inf")
        await self.call(self.broker.remove_tenant, ask.get("path"), ask.caller.name)
        ask.status = 204

    async def audit(self, ask: Ask) -> msgspec.Struct:
        """One page of the audit trail."""
        since = ask.get("since") or 0
        lines = await self.call(self._the_trail.audit, since, PAGE + 1)
        kept = tuple(lines[:PAGE])
        return w.Trail(lines=kept, next=kept[-1].sequence if kept else since, more=len(lines) > PAGE)

    async def verify_audit(self, ask: Ask) -> msgspec.Struct:
        """Whether the audit trail is whole; reading all of it takes a while."""
        number, _, digest = (ask.get("anchor") or "").partition(":")
        anchor = None
        if number:
            if not (number.isascii() and number.isdecimal() and len(number) < 19 and len(digest) == 64):
                raise w.BadRequest("that is no anchor", during="audit", hint="anchor=LINE:HASH")
            anchor = Anchor(int(number), digest)
        work = partial(self._the_trail.verify_audit, anchor)
        found: msgspec.Struct = await asyncio.get_running_loop().run_in_executor(self._slow, work)
        return found

    @property
    def _the_trail(self) -> Trail:
        if self._trail is None:
            raise BrokerError("this server keeps no audit trail", during="audit", hint="hal serve keeps one")
        return self._trail

    async def repair(self, ask: Ask) -> msgspec.Struct:
        """Repair a device; it may take minutes, and one is repaired at a time."""
        body = ask.body
        words = {name: getattr(body, name) for name in ("scrub", "by_operator", "deadline_seconds")}
        work = partial(self.broker.repair, body.device, **words)
        found: msgspec.Struct = await asyncio.get_running_loop().run_in_executor(self._slow, work)
        return found


def _by_tenant(claims: Sequence[Claim]) -> Mapping[str, int]:
    if len(claims) == 1:
        return {claims[0].tenant: 1}
    return Counter([claim.tenant for claim in claims])


def _is_bound(answer: Answer) -> bool:
    return isinstance(answer, Granted) and answer.lease.state is LeaseState.BOUND


def _told(ask: Ask, id: str, answer: w.AnyAnswer) -> msgspec.Struct:
    match answer:
        case Refused(reason=reason):
            raise ClaimRefused(reason, device=id, during="claim", hint="hal explain, with the same words")
        case Undecided(steps=steps):
            raise BrokerError(
                f"undecided: the search was given up after {steps} steps",
                device=id,
                during="claim",
                hint="ask for fewer requests or constraints at once",
            )
    ask.status = 202 if isinstance(answer, Queued) else 201
    return w.OneAnswer(answer=answer)


def _not_found(id: str) -> LeaseNotFound:
    return LeaseNotFound("no such lease", device=id, during="ask", hint="hal list")
