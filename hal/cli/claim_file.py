"""A claim from a file: TOML, JSON or YAML with the names of a claim's fields, or a document of Kubernetes."""

from __future__ import annotations

import secrets
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from hal.api.ask import place_of
from hal.errors import ClaimError
from hal.model.claim import Claim, Constraint, Locality, Request
from hal.model.kind import Kind
from hal.model.words import counted

MOST_BYTES = 4 << 20
STANDARD_INPUT = Path("-")


def read_claim(path: Path) -> Claim:
    """Read a claim from a file, ``-`` for standard input.

    ``*.toml``, ``*.json``, ``*.yaml`` and ``*.yml`` are what they are called; anything else is looked at. ``id`` may
    be left out, and ``same`` and ``distinct`` at the top stand for constraints. Documents with an ``apiVersion`` are
    read as :mod:`hal.api.dra` does: one ResourceClaim or ResourceClaimTemplate, with its DeviceClasses.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        documents = _documents(_text(path, name), path.suffix.lower())
        if any("apiVersion" in document for document in documents):
            return _of_kubernetes(documents)
        if len(documents) != 1:
            raise ValueError(f"{counted(len(documents), 'claim')} in it, and one is claimed at a time")
        return _own(documents[0])
    except ClaimError as error:
        text = " ".join(error.message.split())
        about = f"{error.device}: " if error.device else ""
        raise ClaimError(f"{name}: {about}{text}", during="claim", hint=error.hint) from error
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        text = " ".join(str(error).split())
        raise ClaimError(f"{name}: {text}", during="claim", hint=_allowed(text)) from error


def _text(path: Path, name: str) -> str:
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
    except (OSError, AttributeError) as error:  # no standard input at all: it is None then
        why = getattr(error, "strerror", None) or "it is closed"
        raise ClaimError(f"{why}: it cannot be read", during="claim", hint="--file claim.toml") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB: that is no claim")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text: byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise ValueError("there is nothing in it")
    return text


def _documents(text: str, suffix: str) -> list[dict[str, Any]]:
    from hal.api.dra import read_documents

    if suffix == ".json" or (suffix not in (".toml", ".yaml", ".yml") and text.lstrip()[:1] in "{["):
        found = msgspec.json.decode(text)
        documents = found["items"] if isinstance(found, dict) and isinstance(found.get("items"), list) else [found]
        if not all(isinstance(document, dict) for document in documents):
            raise ValueError("a claim is an object")
        return list(documents)
    if suffix != ".toml" and (suffix or not _is_toml(text)):
        return [dict(document) for document in read_documents(text)]
    return [tomllib.loads(text)]


def _is_toml(text: str) -> bool:
    try:
        return bool(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return False


def _of_kubernetes(documents: list[dict[str, Any]]) -> Claim:
    from hal.api import dra

    classes = [document for document in documents if document.get("kind") == "DeviceClass"]
    claims = [document for document in documents if document.get("kind") != "DeviceClass"]
    if len(claims) != 1:
        why = f"{counted(len(claims), 'claim')} in it, and one is claimed at a time"
        raise ClaimError(why, hint="one ResourceClaim or ResourceClaimTemplate, and the DeviceClasses that it names")
    return dra.read_claim(claims[0], classes)


def _own(document: dict[str, Any]) -> Claim:
    document.setdefault("id", f"lease-{secrets.token_hex(6)}")
    rules = [
        {rule: place_of(place, rule) if isinstance(place, str) else place}
        for rule in ("same", "distinct")
        if rule in document
        for place in _several(document.pop(rule))
    ]
    if rules:
        if "constraints" in document:
            raise ValueError("same (or distinct) and constraints both say what binds the devices; leave out one")
        document["constraints"] = rules
    start_at = document.get("start_at")
    if isinstance(start_at, datetime):
        document["start_at"] = start_at.timestamp()
    return msgspec.convert(document, Claim)


def _several(places: Any) -> list[Any]:
    return places if isinstance(places, list) else [places]


def _allowed(complaint: str) -> str:
    """Return what may stand where the complaint (msgspec's) says that something may not."""
    if "$.requests" in complaint:
        table: Any = Request
    else:
        table = Constraint if "$.constraints" in complaint else Claim
    if "unknown field" in complaint:
        more = ["same", "distinct"] if table is Claim else []
        return "allowed are " + ", ".join((*table.__struct_fields__, *more))
    if "enum value" in complaint:
        return "one of " + ", ".join(Kind if table is Request else Locality)
    return 'requests = [{kind = "gpu", count = 2}]'
