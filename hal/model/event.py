"""Something that happened, in the order in which it was decided or seen."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class EventType(StrEnum):
    """What happened to the subject."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    CONDITION = "condition"
    GRANTED = "granted"
    PREPARED = "prepared"
    RENEWED = "renewed"
    SUSPECTED = "suspected"
    RELEASING = "releasing"
    RELEASED = "released"
    REFUSED = "refused"
    LOST = "lost"
    FENCED = "fenced"
    FREED = "freed"
    REPAIRED = "repaired"
    BOOTED = "booted"
    QUEUED = "queued"
    KEPT = "kept"
    LEFT = "left"
    NOTICED = "noticed"
    GROWN = "grown"
    SHRUNK = "shrunk"
    RESIZED = "resized"
    CORDONED = "cordoned"
    UNCORDONED = "uncordoned"
    TENANT = "tenant"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of history. ``subject`` is a device or a lease id; ``revision`` is 0 outside a journal."""

    type: EventType
    subject: str
    at: float
    revision: int = 0
    detail: str = ""
