"""A claim from the words of a command line, or from a file."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

import msgspec

from hal.errors import ClaimError
from hal.model.claim import Claim, Constraint, Locality, Request
from hal.model.kind import Kind

LONGEST_NUMBER = 18


def claim_of(options: argparse.Namespace) -> Claim:
    """Return the claim that the options amount to; options win over what a file says about the holder."""
    fields: dict[str, Any] = {"tenant": options.tenant, "id": options.id, "ttl_seconds": options.ttl}
    if options.file is not None:
        if options.what or options.count is not None or options.where or options.same:
            raise ClaimError(
                "--file already says what is asked", during="claim", hint="leave out KIND, --count, --where and --same"
            )
        claim = read_claim(options.file)
        return msgspec.structs.replace(claim, **{name: value for name, value in fields.items() if value is not None})
    if not options.what:
        raise ClaimError("nothing is asked", during="claim", hint="hal claim gpu")
    if len(options.what) > 1 and (options.count is not None or options.where):
        raise ClaimError(
            "--count and --where speak of one kind", during="claim", hint="hal claim gpu:4 rnic:4, or --file"
        )
    requests = tuple(_request(word, options) for word in options.what)
    constraints = () if options.same is None else (Constraint(same=_choice(Locality, options.same, "--same")),)
    return Claim(
        id=options.id if options.id is not None else f"lease-{secrets.token_hex(6)}",
        requests=requests,
        constraints=constraints,
        tenant="default" if options.tenant is None else options.tenant,
        ttl_seconds=60.0 if options.ttl is None else options.ttl,
    )


def _request(word: str, options: argparse.Namespace) -> Request:
    kind, colon, number = word.partition(":")
    if colon and options.count is not None:
        raise ClaimError(f"{word} and --count both say how many", during="claim", hint="leave out one of them")
    if colon and not (number.isascii() and number.isdecimal() and len(number) <= LONGEST_NUMBER):
        raise ClaimError(f"{word[:80]}: {number[:40]!r} is not a number of devices", during="claim", hint=f"{kind}:2")
    count = int(number) if colon else 1 if options.count is None else options.count
    return Request(kind=_choice(Kind, kind, "the kind"), count=count, where=options.where)


def _choice(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None


def read_claim(path: Path) -> Claim:
    """Read a claim from TOML (``*.toml``) or JSON; ``id`` may be left out, ``same`` stands for one constraint."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ClaimError(
            f"{path} cannot be read: {error.strerror}", during="claim", hint="--file claim.toml"
        ) from error
    try:
        if path.suffix == ".toml":
            import tomllib

            document: Any = tomllib.loads(text.decode())
        else:
            document = msgspec.json.decode(text)
        if isinstance(document, dict):
            document.setdefault("id", f"lease-{secrets.token_hex(6)}")
            if "same" in document:
                if "constraints" in document:
                    raise ValueError("same and constraints both say what is shared; leave out one of them")
                document["constraints"] = [{"same": document.pop("same")}]
        return msgspec.convert(document, Claim)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ClaimError(f"{path}: {error}", during="claim", hint=_allowed(str(error))) from error


def _allowed(complaint: str) -> str:
    """Return what may stand where the complaint (msgspec's) says that something may not."""
    if "$.requests" in complaint:
        table: Any = Request
    else:
        table = Constraint if "$.constraints" in complaint else Claim
    if "unknown field" in complaint:
        return "allowed are " + ", ".join((*table.__struct_fields__, *(["same"] if table is Claim else [])))
    if "enum value" in complaint:
        return "one of " + ", ".join(Kind if table is Request else Locality)
    return 'requests = [{kind = "gpu", count = 2}]'
