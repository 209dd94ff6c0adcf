"""A snapshot in parts small enough that writing one of them keeps nobody waiting, and what compaction leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any, get_origin, get_type_hints

import msgspec

from hal.broker.journal.audit import AuditEntry
from hal.broker.state import Snapshot
from hal.errors import JournalError

AT_ONCE = 500
"""How many devices, leases or records are dealt with between two chances for others: 1 to 5 ms."""
REST = ""
"""The field that stands for all that are not lists: the last part to be written."""
_ENCODER = msgspec.json.Encoder()


def split(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Yield a snapshot as parts, each a field's name and some of its members in JSON; the last is :data:`REST`."""
    rest: dict[str, Any] = {}
    for field in snapshot.__struct_fields__:
        value = getattr(snapshot, field)
        if isinstance(value, list | tuple):
            for start in range(0, len(value), AT_ONCE):
                yield field, _ENCODER.encode(value[start : start + AT_ONCE])
        elif isinstance(value, dict):
            members = iter(value.items())
            while some := dict(islice(members, AT_ONCE)):
                yield field, _ENCODER.encode(some)
        else:
            rest[field] = value
    yield REST, _ENCODER.encode(rest)


def join(parts: Iterable[tuple[str, str | bytes]]) -> Snapshot:
    """Return the snapshot that the parts make up, in the order in which they were split.

    Raises ``msgspec.MsgspecError`` or ``TypeError`` for parts that make none, or hold a field that nobody knows: to
    leave that out would be to forget something.
    """
    decoders, origins = _fields()
    found: dict[str, Any] = {field: origin() for field, origin in origins.items()}
    for field, body in parts:
        if field == REST:
            for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
                found[name] = _decoder(decoders, name).decode(raw)
            continue
        members = _decoder(decoders, field).decode(body)
        if isinstance(members, dict):
            found[field].update(members)
        elif isinstance(members, list):
            found[field] += members
        else:
            found[field] = (*found[field], *members)
    return Snapshot(**found)


def _decoder(decoders: dict[str, msgspec.json.Decoder[Any]], field: str) -> msgspec.json.Decoder[Any]:
    if field not in decoders:
        raise msgspec.ValidationError(f"the snapshot holds {field!r}, which this version of hal does not know")
    return decoders[field]


@cache
def _fields() -> tuple[dict[str, msgspec.json.Decoder[Any]], dict[str, type[Any]]]:
    hints = {field: hint for field, hint in get_type_hints(Snapshot).items() if field in Snapshot.__struct_fields__}
    origins = {field: get_origin(hint) for field, hint in hints.items()}
    decoders: dict[str, msgspec.json.Decoder[Any]] = {
        field: msgspec.json.Decoder(hint) for field, hint in hints.items()
    }
    return decoders, {field: origin for field, origin in origins.items() if origin in (list, tuple, dict)}


def refuse_compaction(revision: int, snapshot: int | None) -> None:
    """Raise :class:`~hal.errors.JournalError` if records up to this revision are still needed."""
    if revision > (snapshot or 0):
        raise JournalError(
            f"the newest snapshot is at revision {snapshot or 0}; the records up to {revision} are still needed",
            during="compact",
            hint="save a snapshot first",
        )


def compaction_entry(oldest: int, at: float, bodies: Iterable[bytes]) -> AuditEntry:
    """Return what the trail says of dropped records: which they were, and the SHA-256 over their lines."""
    digest = hashlib.sha256()
    many = 0
    for body in bodies:
        digest.update(body)
        digest.update(b"\n")
        many += 1
    return AuditEntry(
        at=at,
        actor="hal",
        tenant="",
        verb="compact",
        subject="journal",
        detail=f"records {oldest + 1} to {oldest + many} dropped, SHA-256 of their lines {digest.hexdigest()}",
    )
