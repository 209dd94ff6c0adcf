"""Bytes of PCI functions: the PCI Express capability in configuration space, and vital product data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

_EXPRESS = 0x10
_MOST_CAPABILITIES = 48
_MOST_KNOWN = 256
_SPEEDS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
_ROLES = {
    0: "endpoint",
    1: "endpoint",
    4: "root-port",
    5: "switch-upstream",
    6: "switch-downstream",
    7: "pci-bridge",
    8: "pci-bridge",
    9: "endpoint",
    10: "root-event-collector",
}


class Express(msgspec.Struct, frozen=True):
    """What the PCI Express capability says: the role, and the link's speed (GT/s) and width (lanes), 0 if unknown."""

    role: str
    speed_gts: float = 0.0
    width: int = 0
    max_speed_gts: float = 0.0
    max_width: int = 0


CONVENTIONAL = Express("")
"""All capabilities were there to be read and none is PCI Express."""


def read_express(read: Callable[[int, int], bytes]) -> Express | None:
    """Return what a function is on PCI Express, or None if it cannot be told.

    ``read(length, offset)`` gives bytes of configuration space, fewer than asked for where they may not be read: an
    ordinary user sees the first 64, and the capability lies behind them (PCI Express Base Specification, 7.5.3: Device/
    Port Type, Link Capabilities, Link Status). Only what is needed is read: the hardware is asked for every word.
    """
    status = read(2, 6)
    if len(status) < 2:
        return None
    if not status[0] & 0x10:
        return CONVENTIONAL
    pointer = read(1, 0x34)
    seen = 0
    while pointer and pointer[0] & 0xFC and seen < _MOST_CAPABILITIES:
        at = pointer[0] & 0xFC
        header = read(4, at)
        if len(header) < 4:
            return None
        if header[0] == _EXPRESS:
            return _express(header[2], read(4, at + 0x0C), read(2, at + 0x12))
        pointer = header[1:2]
        seen += 1
    return CONVENTIONAL if pointer else None


@lru_cache(_MOST_KNOWN)
def _express(flags: int, capabilities: bytes, status: bytes) -> Express | None:
    role = _ROLES.get(flags >> 4)
    if role is None:
        return None
    if len(capabilities) < 4 or len(status) < 2:
        return Express(role)
    most, now = int.from_bytes(capabilities, "little"), int.from_bytes(status, "little")
    return Express(
        role,
        _SPEEDS.get(now & 0xF, 0.0),
        now >> 4 & 0x3F,
        _SPEEDS.get(most & 0xF, 0.0),
        most >> 4 & 0x3F,
    )


def vpd_field(data: bytes, wanted: str) -> str | None:
    """Return one field (``SN``, ``PN``) of vital product data, or None (PCI 2.2, appendix I)."""
    at = 0
    while at < len(data):
        tag = data[at]
        if tag & 0x80:
            if at + 3 > len(data):
                return None
            length = int.from_bytes(data[at + 1 : at + 3], "little")
            body = data[at + 3 : at + 3 + length]
            at += 3 + length
            if tag == 0x90:
                found = _field(body, wanted.encode())
                if found is not None:
                    return found
        else:
            if tag >> 3 == 0x0F:  # the end tag
                return None
            at += 1 + (tag & 7)
    return None


def _field(body: bytes, wanted: bytes) -> str | None:
    at = 0
    while at + 3 <= len(body):
        length = body[at + 2]
        if body[at : at + 2] == wanted:
            text = body[at + 3 : at + 3 + length].decode("ascii", "replace").strip(" \0")
            return text if text.isprintable() and "\ufffd" not in text and text else None
        at += 3 + length
    return None
