"""Whether a claim makes sense by itself, whatever there is to give."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from hal.errors import ClaimError
from hal.model.claim import FRACTION, Claim, Constraint, Gather, Locality, Request, Share, request_names
from hal.model.kind import Kind

MOST_REQUESTS = 64
MOST_DEVICES = 100_000
MOST_REPLICAS = 100_000
MOST_ALTERNATIVES = 16
MOST_WISHES = 8
MOST_PRIORITY = 1_000_000_000
LONGEST_ID = 128
LONGEST_TTL_SECONDS = 10 * 365.25 * 86400
"""Ten years. Who needs a device for longer renews."""
_GANG_PLACES = (Locality.NODE, Locality.RACK, Locality.LINK_DOMAIN)


def check_claim(claim: Claim) -> Claim:
    """Return the claim, or raise :class:`~hal.errors.ClaimError` for one that makes no sense by itself."""
    check_holder(claim)
    _check_types(claim)
    if not claim.requests:
        raise _refuse(claim, "it asks for nothing", "name a kind, as in: hal claim gpu")
    if len(claim.requests) > MOST_REQUESTS:
        raise _refuse(claim, f"{len(claim.requests)} requests, at most {MOST_REQUESTS} are allowed")
    names = [request.name for request in claim.requests if request.name]
    if len(set(names)) < len(names):
        raise _refuse(claim, "two requests have the same name")
    for request in claim.requests:
        _check_request(claim, request)
    named = request_names(claim.requests)
    for constraint in claim.constraints:
        _check_constraint(claim, constraint, named)
    if sum(constraint.weight is not None for constraint in claim.constraints) > MOST_WISHES:
        raise _refuse(claim, f"more than {MOST_WISHES} constraints with a weight")
    _check_gang(claim)
    return claim


def check_holder(claim: Claim) -> None:
    """Check what a claim says about its holder alone: id, tenant, times and priority."""
    word = claim.id
    if not _is_word(word) or " " in word:
        raise _refuse(claim, f"the id {claim.id!r} is not 1 to {LONGEST_ID} printable characters without spaces")
    if not _is_word(claim.tenant) or "" in claim.tenant.split("/"):
        raise _refuse(claim, f"the tenant {claim.tenant!r} is not 1 to {LONGEST_ID} printable characters, as org/team")
    if not (type(claim.ttl_seconds) is float and 0 < claim.ttl_seconds <= LONGEST_TTL_SECONDS):
        check_ttl(claim.ttl_seconds, word, "claim")
    if claim.priority.__class__ is not int or abs(claim.priority) > MOST_PRIORITY:
        raise _refuse(claim, f"priority is {claim.priority!r}, it must be a whole number up to {MOST_PRIORITY}")
    grace, lasts, waits, start = claim.grace_seconds, claim.duration_seconds, claim.wait_seconds, claim.start_at
    if lasts is waits is start is None and type(grace) is float and 0 <= grace <= LONGEST_TTL_SECONDS:
        return  # nearly always
    for name, value in (
        ("grace_seconds", grace),
        ("duration_seconds", lasts),
        ("wait_seconds", waits),
        ("start_at", start),
    ):
        if value is None or (type(value) is float and 0 < value <= LONGEST_TTL_SECONDS):
            continue
        if name == "start_at" and _is_number(value) and 0 <= value < 1e12:
            continue
        least = 1e-9 if name == "duration_seconds" else 0
        if not _is_number(value) or not least <= value <= LONGEST_TTL_SECONDS:
            raise _refuse(claim, f"{name} is {value!r}, it must be a number of seconds up to ten years")


def check_ttl(seconds: float, lease_id: str, during: str) -> None:
    """Raise :class:`~hal.errors.ClaimError` for a time to live that is no number of seconds up to ten years."""
    if not _is_number(seconds) or not 0 < seconds <= LONGEST_TTL_SECONDS:
        raise ClaimError(
            f"ttl_seconds is {seconds!r}, it must be above 0 and at most {LONGEST_TTL_SECONDS:.0f} (ten years)",
            device=lease_id,
            during=during,
            hint="a shorter time, and renew",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_word(text: str) -> bool:
    return isinstance(text, str) and 0 < len(text) <= LONGEST_ID and text.isprintable()


def _check_request(claim: Claim, request: Request) -> None:
    choices = (request, *request.or_else)
    if len(request.or_else) > MOST_ALTERNATIVES:
        raise _refuse(claim, f"{len(request.or_else)} alternatives, at most {MOST_ALTERNATIVES} are allowed")
    for choice in choices:
        if choice.count != "all" and not 1 <= choice.count <= MOST_DEVICES:
            raise _refuse(claim, f"count is {choice.count}, it must be between 1 and {MOST_DEVICES}")
        for name, amount in choice.capacity.items():
            if not _is_word(name) or not 0 < amount < 1 << 63:
                raise _refuse(claim, f"capacity {name!r} is {amount!r}, it must be a whole number above 0")
        if choice.capacity.get(FRACTION, 0) > 1000:
            raise _refuse(claim, f"{FRACTION} is {choice.capacity[FRACTION]}, a whole device is 1000")
        if choice.share is Share.SHARED and not choice.capacity:
            raise _refuse(claim, "a shared request says no capacity", f"capacity of {FRACTION}: 500 is half a device")
        if choice.profile and choice.share is Share.SHARED:
            raise _refuse(claim, "a partition is not shared", "leave out share, or profile")
        if not 0 <= choice.cost < 1e12:
            raise _refuse(claim, f"cost is {choice.cost}, it must be 0 or more")
    for choice in request.or_else:
        if choice.or_else or choice.name:
            raise _refuse(claim, "an alternative has a name or alternatives of its own", "list them all in or_else")


def _check_constraint(claim: Claim, constraint: Constraint, names: tuple[str, ...]) -> None:
    if bool(constraint.same) == bool(constraint.distinct):
        raise _refuse(claim, "a constraint says either same or distinct", f"same = one of {', '.join(Locality)}")
    for name in constraint.requests:
        if name not in names:
            raise _refuse(claim, f"a constraint speaks of the request {name!r}, which the claim does not have")
    if constraint.weight is not None and not 0 < constraint.weight < 1e12:
        raise _refuse(claim, f"weight is {constraint.weight}, it must be above 0")
    if not constraint.pairwise:
        return
    concerned = [r for r, name in zip(claim.requests, names, strict=True) if name in (constraint.requests or names)]
    if not constraint.same or len(concerned) < 2:
        raise _refuse(claim, "pairwise needs same, and two requests or more")
    counts = {choice.count for request in concerned for choice in (request, *request.or_else)}
    if len(counts) > 1 or "all" in counts:
        raise _refuse(claim, "pairwise needs the same count in each of its requests")


def _check_gang(claim: Claim) -> None:
    if not 1 <= claim.replicas <= MOST_REPLICAS:
        raise _refuse(claim, f"replicas is {claim.replicas}, it must be between 1 and {MOST_REPLICAS}")
    most = claim.max_replicas
    if most is not None and not claim.replicas <= most <= MOST_REPLICAS:
        raise _refuse(claim, f"max_replicas is {most}, it must be between replicas and {MOST_REPLICAS}")
    if claim.gang is not None:
        if claim.gang.over not in _GANG_PLACES:
            raise _refuse(claim, f"a gang lies over {claim.gang.over.value}", "node, rack or link-domain")
        if claim.gang.most is not None and claim.gang.most < 1:
            raise _refuse(claim, f"most is {claim.gang.most}, it must be 1 or more")
        if claim.gang.how is Gather.ONE and claim.gang.most is not None and claim.gang.most < claim.replicas:
            raise _refuse(claim, "all in one place, and fewer than all in any one place")


def _check_types(claim: Claim) -> None:
    """Structs are not checked when they are made; what the journal could not read again must not get there."""
    try:
        same = msgspec.convert(msgspec.to_builtins(claim), Claim) == claim
    except (msgspec.ValidationError, TypeError, UnicodeError) as error:
        raise _refuse(claim, str(error), "see hal.model.claim for the type of each field") from error
    if not same:
        raise _refuse(claim, "a field has another type than it must have", "requests and constraints are tuples")
    for request in _all_requests(claim):
        if not isinstance(request.kind, Kind):
            raise _refuse(claim, f"kind is {request.kind!r}, not a Kind", f"Kind({request.kind!r})")
        if isinstance(request.count, bool) or not isinstance(request.count, int | str):
            raise _refuse(claim, f"count is {request.count!r}, it must be a whole number")
        if request.name and not _is_word(request.name):
            raise _refuse(claim, f"the request's name {request.name!r} is not up to {LONGEST_ID} printable characters")
        for text in (request.where, *request.cel):
            if not text.isascii() and not _encodes(text):
                raise _refuse(claim, f"the selector {text!r} is not text")


def _all_requests(claim: Claim) -> Iterable[Request]:
    return (choice for request in claim.requests for choice in (request, *request.or_else))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _refuse(claim: Claim, what: str, hint: str | None = None) -> ClaimError:
    return ClaimError(what, device=claim.id if _is_word(claim.id) else None, during="claim", hint=hint)
