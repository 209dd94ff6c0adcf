"""Bytes of PCI functions: the PCI Express capability in configuration space, and vital product data."""

from __future__ import annotations

_EXPRESS = 0x10
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


def express_role(config: bytes) -> str | None:
    """Return what a function is on PCI Express, or None if the bytes do not say.

    ``config`` is the beginning of configuration space. An ordinary user may read 64 bytes of it, root all; the
    capability lies behind the first 64 (PCI Express Base Specification, 7.5.3.2, Device/Port Type). The empty string
    means that all capabilities are there to be read and that it is none of them: conventional PCI.
    """
    if len(config) < 64:
        return None
    if not config[6] & 0x10:
        return ""
    at = config[0x34] & 0xFC
    seen = 0
    while at and seen < 48:
        if at + 4 > len(config):
            return None
        if config[at] == _EXPRESS:
            return _ROLES.get(config[at + 2] >> 4)
        at = config[at + 1] & 0xFC
        seen += 1
    return ""


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
