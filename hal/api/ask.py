"""A claim from its short form: ``("gpu", count=2, same="numa")``."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from hal.errors import ClaimError
from hal.model.claim import Claim, Constraint, Locality, Request
from hal.model.kind import Kind

Asked = Claim | Request | Kind | str | Sequence[Request]


def make_claim(
    asked: Asked,
    *,
    count: int = 1,
    where: str = "",
    same: Locality | str | None = None,
    ttl_seconds: float = 60.0,
    tenant: str = "default",
    id: str | None = None,
) -> Claim:
    """Return a claim from its short form; a whole claim is returned as it is."""
    if isinstance(asked, Claim):
        return _normal(asked)
    if isinstance(asked, str):
        requests: tuple[Request, ...] = (Request(kind=_one_of(Kind, asked, "kind"), count=count, where=where),)
    else:
        requests = (asked,) if isinstance(asked, Request) else tuple(asked)
        if not all(isinstance(request, Request) for request in requests):
            raise ClaimError("what is asked is no request", during="claim", hint="Request(kind=…, count=…, where=…)")
        if count != 1 or where:
            raise ClaimError("count and where belong to the requests", hint="Request(kind=…, count=…, where=…)")
    constraints = () if same is None else (Constraint(same=_one_of(Locality, same, "same")),)
    claim = Claim(
        id=id if id is not None else f"lease-{secrets.token_hex(6)}",
        requests=requests,
        constraints=constraints,
        tenant=tenant,
        ttl_seconds=ttl_seconds,
    )
    return _normal(claim)


def _normal(claim: Claim) -> Claim:
    """Return the claim with lists as tuples and words as what they stand for; no other type is taken for another."""
    try:
        return msgspec.convert(msgspec.to_builtins(claim), Claim)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ClaimError(str(error), device=str(claim.id), during="claim", hint="see hal.model.claim") from error


def _one_of(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None
