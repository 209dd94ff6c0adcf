"""A claim from the words of a command line."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

import msgspec

from hal.api.ask import place_of
from hal.cli.claim_file import read_claim
from hal.cli.options import FromNow, amount
from hal.errors import ClaimError
from hal.model.claim import (
    FRACTION,
    Claim,
    Constraint,
    Count,
    Gang,
    Locality,
    Preempt,
    Request,
    Share,
)
from hal.model.kind import Kind

LONGEST_NUMBER = 18


_OF_HOLDER = {
    "tenant": "tenant",
    "id": "id",
    "ttl": "ttl_seconds",
    "priority": "priority",
    "preempt": "preempt",
    "grace": "grace_seconds",
    "duration": "duration_seconds",
    "start": "start_at",
    "queue": "wait",
    "wait_for": "wait_seconds",
    "replicas": "replicas",
    "max_replicas": "max_replicas",
}
"""What an option says about the claim as a whole; it wins over what a file says."""
_OF_REQUEST = ("what", "count", "where", "cel", "capacity", "share", "profile", "same", "distinct", "pairwise")


def claim_of(options: argparse.Namespace) -> Claim:
    """Return the claim that the options amount to; options win over what a file says about the holder."""
    said = {field: getattr(options, name) for name, field in _OF_HOLDER.items()}
    fields = {name: value for name, value in said.items() if value is not None}
    if "preempt" in fields:
        fields["preempt"] = Preempt.LOWER
    if options.wait_for is not None:
        fields["wait"] = True
    if options.gang is not None or options.over is not None:
        gang = {"how": options.gang, "over": options.over}
        fields["gang"] = msgspec.convert({name: word for name, word in gang.items() if word is not None}, Gang)
    if isinstance(options.start, FromNow):
        from hal.cli.asking import time_there

        fields["start_at"] = time_there(options) + options.start
    if options.file is not None:
        if any(getattr(options, name) not in (None, "", False, []) for name in _OF_REQUEST):
            raise ClaimError(
                "--file already says what is asked",
                during="claim",
                hint="leave out KIND, --count, --where, --same and the like",
            )
        return msgspec.structs.replace(read_claim(options.file), **fields)
    if not options.what:
        raise ClaimError("nothing is asked", during="claim", hint="hal claim gpu")
    alone = options.count is not None or options.where or options.cel or options.capacity or options.share
    if len(options.what) > 1 and (alone or options.profile):
        raise ClaimError(
            "--count, --where, --cel, --capacity, --share and --profile speak of one kind",
            during="claim",
            hint="hal claim gpu:4 rnic:4, or --file",
        )
    fields.setdefault("id", f"lease-{secrets.token_hex(6)}")
    requests = tuple(_request(word, options) for word in options.what)
    return Claim(requests=requests, constraints=_constraints(options), **fields)


def _constraints(options: argparse.Namespace) -> tuple[Constraint, ...]:
    same = [place_of(text, "--same") for text in options.same]
    if options.pairwise and not same:
        same = [Locality.PCI_SWITCH.value]
    found = [Constraint(same=place, pairwise=options.pairwise) for place in same]
    found += [Constraint(distinct=place_of(text, "--distinct")) for text in options.distinct]
    return tuple(found)


def _request(word: str, options: argparse.Namespace) -> Request:
    kind, colon, number = word.partition(":")
    if colon and options.count is not None:
        raise ClaimError(f"{word} and --count both say how many", during="claim", hint="leave out one of them")
    every = number == "all"
    if colon and not every and not (number.isascii() and number.isdecimal() and len(number) <= LONGEST_NUMBER):
        raise ClaimError(f"{word[:80]}: {number[:40]!r} is not a number of devices", during="claim", hint=f"{kind}:2")
    count: Count = "all" if every else int(number) if colon else 1 if options.count is None else options.count
    capacity = dict(options.capacity)
    for share in options.share:
        name, amount = _share(share)
        capacity[name] = amount
    return Request(
        kind=_choice(Kind, kind, "the kind"),
        count=count,
        where=options.where,
        cel=tuple(options.cel),
        capacity=capacity,
        share=Share.SHARED if options.share else Share.EXCLUSIVE,
        profile=options.profile,
    )


def _share(text: str) -> tuple[str, int]:
    """Return the capacity that a share uses up: a fraction of the device, or an amount of one capacity."""
    try:
        if "=" in text:
            return amount(text)
        fraction = float(text)
        if not 0 < fraction <= 1:
            raise ValueError(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise ClaimError(
            f"--share is {text[:40]!r}", during="claim", hint="a fraction such as 0.5, or memory_bytes=16Gi"
        ) from None
    return FRACTION, max(1, round(fraction * 1000))


def _choice(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None
