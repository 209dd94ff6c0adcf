"""Every path of the server, with what goes in, what comes out, and what can go wrong."""

from __future__ import annotations

from hal.agent.repair import Repair
from hal.api import wire as w
from hal.api.calls import LONGEST_STREAM_SECONDS
from hal.api.held import Ticket
from hal.api.local import Status
from hal.api.server.routes import Handler, Param, Route
from hal.api.server.verbs import Verbs
from hal.api.surface import TenantReport
from hal.broker.allocation.explain import Explanation
from hal.broker.journal.audit import AuditReport
from hal.model.claim import Claim, Request
from hal.model.kind import Kind
from hal.model.tenant import Tenant

_TENANT = Param("tenant", "string", "only what belongs to this tenant and those below")
_LEASE = Param("id", "string", "the lease's id, which is its claim's", "path", required=True)
_SECONDS = Param("seconds", "number", "how long the stream goes on", minimum=0, maximum=LONGEST_STREAM_SECONDS)
_ASKED = (400, 408, 413, 415)
_ABOUT_ONE = (404, 409, 410, 503, 504)
_EXAMPLE = Claim(id="job-17", requests=(Request(kind=Kind.GPU, count=2),))


def table(verbs: Verbs, healthz: Handler, readyz: Handler, document: Handler, metrics: Handler) -> tuple[Route, ...]:
    """Return all routes."""
    wait = Param(
        "wait_seconds", "number", "how long to wait for a change", minimum=0, maximum=verbs.limits.longest_wait_seconds
    )
    since = Param("since", "integer", "a revision: what happened after it", minimum=0, maximum=(1 << 63) - 1)
    return (
        Route(
            "POST",
            "/v1/claims",
            "claim",
            "Claim devices. 201: granted; 202: it waits in the queue. The same id asked again is granted once.",
            verbs.claim,
            {201: w.OneAnswer, 202: w.OneAnswer},
            (*_ASKED, *_ABOUT_ONE),
            (wait,),
            Claim,
            example=_EXAMPLE,
        ),
        Route(
            "POST",
            "/v1/claims:batch",
            "submit",
            "Decide many claims in one commit; the answers stand in their order.",
            verbs.submit,
            {200: w.Answers},
            (*_ASKED, *_ABOUT_ONE),
            body=w.ClaimsBody,
            example=w.ClaimsBody(claims=(_EXAMPLE,)),
        ),
        Route(
            "POST",
            "/v1/dry-run",
            "dry_run",
            "Say what would become of claims, and change nothing.",
            verbs.dry_run,
            {200: w.Answers},
            (*_ASKED, *_ABOUT_ONE),
            body=w.ClaimsBody,
            example=w.ClaimsBody(claims=(_EXAMPLE,)),
        ),
        Route(
            "GET",
            "/v1/claims",
            "queue",
            "List the waiting claims, who is next first.",
            verbs.queue,
            {200: w.Queue},
            (400, 409, 503),
            (_TENANT,),
        ),
        Route(
            "GET",
            "/v1/claims/{id}",
            "wait_for",
            "Say what became of a claim, as soon as it is granted or over.",
            verbs.wait,
            {200: w.OneAnswer},
            (400, *_ABOUT_ONE),
            (_LEASE, wait),
        ),
        Route(
            "POST",
            "/v1/explain",
            "explain",
            "Say whether a claim would be granted now, and if not, what stands in the way.",
            verbs.explain,
            {200: Explanation},
            (*_ASKED, *_ABOUT_ONE),
            body=Claim,
            example=_EXAMPLE,
        ),
        Route(
            "GET",
            "/v1/leases",
            "list",
            "List the leases that are not over.",
            verbs.list,
            {200: w.Leases},
            (400, 409, 503),
            (_TENANT,),
        ),
        Route(
            "GET",
            "/v1/leases/{id}",
            "get",
            "Return a lease with all that its holder needs to open the devices.",
            verbs.ticket,
            {200: Ticket},
            (400, *_ABOUT_ONE),
            (_LEASE, _TENANT),
        ),
        Route(
            "POST",
            "/v1/leases/{id}/renew",
            "renew",
            "Let a lease last for another time to live.",
            verbs.renew,
            {200: w.LeaseReply},
            (*_ASKED, *_ABOUT_ONE),
            (_LEASE, _TENANT),
            w.RenewBody,
            example=w.RenewBody(ttl_seconds=60.0),
        ),
        Route(
            "POST",
            "/v1/leases/{id}/resize",
            "resize",
            "Let an elastic lease have so many replicas.",
            verbs.resize,
            {200: w.LeaseReply},
            (*_ASKED, *_ABOUT_ONE),
            (_LEASE, _TENANT),
            w.ResizeBody,
            example=w.ResizeBody(replicas=2),
        ),
        Route(
            "POST",
            "/v1/leases/{id}/release",
            "release",
            "End a lease, or take a waiting claim out of the queue.",
            verbs.release,
            {200: w.LeaseReply},
            (400, *_ABOUT_ONE),
            (_LEASE, _TENANT),
        ),
        Route("GET", "/v1/status", "status", "The broker at a glance.", verbs.status, {200: Status}, (400, 409, 503)),
        Route(
            "GET",
            "/v1/devices",
            "devices",
            "List all devices as they were last seen; who holds them is not said.",
            verbs.devices,
            {200: w.Devices},
            (400, 409, 503),
        ),
        Route(
            "GET",
            "/v1/cordons",
            "cordons",
            "List what is kept from new leases, by whom and why.",
            verbs.cordons,
            {200: w.Cordons},
            (400, 409, 503),
        ),
        Route(
            "GET",
            "/v1/events",
            "events",
            "One page of what happened after a revision.",
            verbs.events,
            {200: w.Events},
            (400, 409, 410, 503),
            (since, Param("limit", "integer", "how many at most", minimum=1, maximum=10_000), _TENANT),
        ),
        Route(
            "GET",
            "/v1/events/stream",
            "watch",
            "What happens after a revision, as it happens (server-sent events; the id is the revision). "
            "Last-Event-ID wins over since. 410: that is not kept any more; oldest says what is.",
            verbs.events,
            {200: str},
            (400, 409, 410, 503),
            (
                since,
                _SECONDS,
                _TENANT,
                Param("last-event-id", "integer", "where the stream broke off", "header", minimum=0),
            ),
            stream=True,
        ),
        *_for_operators(verbs),
        Route("GET", "/v1/whoami", "whoami", "Whom the server takes you for.", verbs.whoami, {200: w.WhoAmI}, (400,)),
        Route(
            "GET", "/healthz", "healthz", "Whether the process lives.", healthz, {200: w.Health}, (400,), public=True
        ),
        Route(
            "GET",
            "/readyz",
            "readyz",
            "Whether it can serve claims; 503 with the reason if not.",
            readyz,
            {200: w.Health, 503: w.Health},
            (400,),
            public=True,
        ),
        Route("GET", "/openapi.json", "openapi", "This document.", document, {200: dict}, (400,), public=True),
        Route("GET", "/metrics", "metrics", "Counters for Prometheus.", metrics, {200: str}, (400,), operator=True),
    )


def _for_operators(verbs: Verbs) -> tuple[Route, ...]:
    target = Param("target", "string", "a device's id, name or alias, or a node", "path", required=True)
    path = Param("path", "string", "the tenant, as physics/lattice", required=True)
    return (
        Route(
            "POST",
            "/v1/cordons",
            "cordon",
            "Keep a device or a machine from new leases.",
            verbs.cordon,
            {200: w.Cordons},
            (*_ASKED, *_ABOUT_ONE),
            body=w.CordonBody,
            operator=True,
            example=w.CordonBody(target="gpu0", why="it is noisy"),
        ),
        Route(
            "DELETE",
            "/v1/cordons/{target}",
            "uncordon",
            "Take a cordon back.",
            verbs.uncordon,
            {200: w.Cordons},
            (400, *_ABOUT_ONE),
            (target,),
            operator=True,
        ),
        Route(
            "POST",
            "/v1/drains",
            "drain",
            "Cordon, and tell every holder to leave within their grace.",
            verbs.drain,
            {200: w.Leases},
            (*_ASKED, *_ABOUT_ONE),
            body=w.DrainBody,
            operator=True,
            example=w.DrainBody(target="gpu0", why="new firmware", grace_seconds=60.0),
        ),
        Route(
            "GET",
            "/v1/tenants",
            "tenants",
            "List tenants with what they use.",
            verbs.tenants,
            {200: w.Tenants},
            (400, 409, 503),
            (_TENANT,),
        ),
        Route(
            "PUT",
            "/v1/tenants",
            "set_tenant",
            "Say what a tenant may have, from now on.",
            verbs.set_tenant,
            {200: TenantReport},
            (*_ASKED, *_ABOUT_ONE),
            body=Tenant,
            operator=True,
            example=Tenant(path="physics", weight=2, quota={"gpu": 8}),
        ),
        Route(
            "DELETE",
            "/v1/tenants",
            "remove_tenant",
            "Forget what was said about a tenant; its leases go on.",
            verbs.remove_tenant,
            {204: None},
            (400, *_ABOUT_ONE),
            (path,),
            operator=True,
        ),
        Route(
            "GET",
            "/v1/audit",
            "audit",
            "One page of the audit trail: who did what, each line sealed to the one before.",
            verbs.audit,
            {200: w.Trail},
            (400, 409, 503),
            (Param("since", "integer", "a line: what came after it", minimum=0, maximum=(1 << 63) - 1),),
            operator=True,
        ),
        Route(
            "GET",
            "/v1/audit/report",
            "verify_audit",
            "Check that no line of the audit trail was changed, dropped or put in.",
            verbs.verify_audit,
            {200: AuditReport},
            (400, 409, 503),
            (Param("anchor", "string", "a line that you remember, LINE:HASH"),),
            operator=True,
        ),
        Route(
            "POST",
            "/v1/repairs",
            "repair",
            "Repair a device that nobody holds.",
            verbs.repair,
            {200: Repair},
            (*_ASKED, *_ABOUT_ONE),
            body=w.RepairBody,
            operator=True,
            example=w.RepairBody(device="gpu0"),
        ),
    )
