"""A claim from its short form: ``("gpu", count=2, model="NVIDIA H100*", memory_gb=80, same="numa")``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hal.api.ask_where import where_of
from hal.errors import ClaimError
from hal.model.claim import FRACTION, Claim, Constraint, Count, Gang, Gather, Locality, Preempt, Request, Share
from hal.model.kind import Kind


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """Requests and what binds them, to be claimed together: ``claim(pairs("gpu", "rnic", count=4), priority=5)``."""

    requests: tuple[Request, ...]
    constraints: tuple[Constraint, ...] = ()


Asked = Claim | Request | Kind | Pairs | str | Sequence[Request]
Places = Locality | str | Sequence[str]
_OF_REQUEST = ("cel", "capacity", "share", "profile", "tolerate", "or_else", "cost")
_OF_CLAIM = tuple(name for name in Claim.__struct_fields__ if name not in ("requests", "constraints"))


def make_claim(
    asked: Asked,
    *,
    count: Count = 1,
    where: str = "",
    same: Places | None = None,
    distinct: Places | None = None,
    near: str | Sequence[str] | None = None,
    fraction: float | None = None,
    constraints: Sequence[Constraint] = (),
    gang: Gang | str | None = None,
    preempt: Preempt | str | bool = Preempt.NEVER,
    ttl_seconds: float = 60.0,
    tenant: str = "default",
    id: str | None = None,
    **words: Any,
) -> Claim:
    """Return a claim from its short form; a whole claim is returned as it is.

    ``asked`` is a kind, a request, several requests, or :func:`pairs`. For a kind, ``count``, ``where``, ``cel``,
    ``capacity``, ``share``, ``profile``, ``tolerate``, ``or_else`` and ``cost`` are those of its request; ``fraction``
    (0.5) asks for that part of a shared device, and every other word is an attribute: see
    :func:`hal.api.ask_where.where_of`. ``same`` and ``distinct`` name places or attributes; ``near="rnic"`` asks for
    one NIC with each device, on its own PCI switch (``near=("rnic", "numa")``: on its NUMA node). ``gang`` is a
    :class:`~hal.model.claim.Gang`, or ``spread``, ``one`` or ``fewest``, over racks or as in ``spread:node``.

    All other fields of a claim go by their own names: ``priority``, ``preempt``, ``wait``, ``wait_seconds``,
    ``replicas``, ``max_replicas``, ``grace_seconds``, ``start_at``, ``duration_seconds``.
    """
    if isinstance(asked, Claim):
        return _normal(asked)
    fields = {name: words.pop(name) for name in _OF_CLAIM if name in words}
    bound: tuple[Constraint, ...] = tuple(constraints)
    if isinstance(asked, str):
        request = _request(asked, count, where, fraction, words)
        requests: tuple[Request, ...] = (request,)
        if near is not None:
            kind, level = (near, Locality.PCI_SWITCH) if isinstance(near, str) else tuple(near)
            requests = (request, Request(kind=_one_of(Kind, kind, "near"), count=count))
            bound += (Constraint(same=_one_of(Locality, level, "near"), pairwise=True),)
    else:
        requests = asked.requests if isinstance(asked, Pairs) else _several(asked)
        bound += asked.constraints if isinstance(asked, Pairs) else ()
        if count != 1 or where or near is not None or fraction is not None or words:
            said = ", ".join([*(["count"] if count != 1 else []), *(["where"] if where else []), *words])
            raise ClaimError(
                f"{said or 'near'} belong to the requests", during="claim", hint="Request(kind=…, count=…, where=…)"
            )
    bound += tuple(Constraint(same=place_of(text)) for text in _listed(same))
    bound += tuple(Constraint(distinct=place_of(text, "distinct")) for text in _listed(distinct))
    claim = Claim(
        id=id if id is not None else f"lease-{secrets.token_hex(6)}",
        requests=requests,
        constraints=bound,
        tenant=tenant,
        ttl_seconds=ttl_seconds,
        gang=_gang(gang),
        preempt=preempt if isinstance(preempt, Preempt) else _preempt(preempt),
        **fields,
    )
    return _normal(claim)


def pairs(
    *kinds: Kind | str | Request,
    count: int = 1,
    same: Locality | str = Locality.PCI_SWITCH,
    weight: float | None = None,
    where: str | Mapping[str, str] = "",
) -> Pairs:
    """Return requests whose n-th devices lie together: ``pairs("gpu", "rnic", count=4)``, each GPU with its own NIC.

    ``same`` is where each pair shares a place; with a ``weight`` it is a wish. ``where`` is a selector for the first
    kind, or one for each by its name. Requests may be given instead of kinds; all have the same count.
    """
    if len(kinds) < 2:
        raise ClaimError("pairs are of two kinds or more", during="claim", hint='pairs("gpu", "rnic", count=4)')
    found: list[Request] = []
    for position, kind in enumerate(kinds):
        if isinstance(kind, Request):
            found.append(kind)
            continue
        own = where.get(str(kind), "") if isinstance(where, Mapping) else ("" if position else where)
        found.append(Request(kind=_one_of(Kind, kind, "kind"), count=count, where=own))
    return Pairs(requests=tuple(found), constraints=(Constraint(same=place_of(same), pairwise=True, weight=weight),))


def _request(kind: str, count: Count, where: str, fraction: float | None, words: dict[str, Any]) -> Request:
    own = {name: words.pop(name) for name in _OF_REQUEST if name in words}
    for name in ("cel", "tolerate"):
        if isinstance(own.get(name), str):
            own[name] = (own[name],)
    if isinstance(own.get("share"), str):
        own["share"] = _one_of(Share, own["share"], "share")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise ClaimError(f"fraction is {fraction!r}, it must be above 0 and at most 1", during="claim")
        own["capacity"] = {**own.get("capacity", {}), FRACTION: max(1, round(fraction * 1000))}
        own.setdefault("share", Share.SHARED)
    found = _one_of(Kind, kind, "kind")
    if not isinstance(where, str):
        raise ClaimError(f"where is {where!r}, it must be a text", during="claim", hint='where="memory_bytes >= 80*GB"')
    conditions = where_of(words, found)
    parts = [f"({where})" if where and conditions else where, conditions]
    return Request(kind=found, count=count, where=" and ".join(part for part in parts if part), **own)


def _several(asked: Request | Sequence[Request]) -> tuple[Request, ...]:
    requests = (asked,) if isinstance(asked, Request) else tuple(asked)
    if not all(isinstance(request, Request) for request in requests):
        raise ClaimError("what is asked is no request", during="claim", hint="Request(kind=…, count=…, where=…)")
    return requests


def _listed(places: Places | None) -> tuple[str, ...]:
    if places is None:
        return ()
    return (places,) if isinstance(places, str) else tuple(places)


def place_of(text: str, what: str = "same") -> str:
    """Return a place, or the name of an attribute as in DRA's matchAttribute; what looks like neither is a slip."""
    if not isinstance(text, str) or not text or any(mark.isspace() for mark in text):
        raise ClaimError(
            f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(Locality) + ", or an attribute"
        )
    return _LOCALITIES.get(text.replace("_", "-"), text)


_LOCALITIES = {level.value: level.value for level in Locality}
_LOCALITIES |= {"numa-node": "numa", "switch": "pci-switch", "nvlink": "link-domain"}


def _gang(gang: Gang | str | None) -> Gang | None:
    if not isinstance(gang, str):
        return gang
    how, _, over = gang.partition(":")
    places = {"over": _one_of(Locality, over, "gang")} if over else {}
    return Gang(how=_one_of(Gather, how, "gang"), **places)


def _preempt(word: str | bool) -> Preempt:
    if isinstance(word, bool):
        return Preempt.LOWER if word else Preempt.NEVER
    found: Preempt = _one_of(Preempt, {"lower": "lower-priority"}.get(word, word), "preempt")
    return found


def _normal(claim: Claim) -> Claim:
    """Return the claim with lists as tuples and words as what they stand for; no other type is taken for another."""
    try:
        return msgspec.convert(msgspec.to_builtins(claim), Claim)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        raise ClaimError(str(error), device=str(claim.id), during="claim", hint="see hal.model.claim") from error


def _one_of(kind: Any, text: Any, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None
