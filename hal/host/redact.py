"""Stable pseudonyms for what identifies a machine: equal stays equal, forms and relations stay, the values are gone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable

_MAC = r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"
_GID = r"(?:[0-9a-fA-F]{4}:){7}[0-9a-fA-F]{4}"
_GUID = r"(?:[0-9a-fA-F]{4}:){3}[0-9a-fA-F]{4}"
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_IPV4 = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"
_WWN = r"(?<=eui\.)[0-9a-fA-F]{16,32}|(?<=naa\.)[0-9a-fA-F]{16,32}|(?<=wwn-0x)[0-9a-fA-F]{16,32}"
_MAC_NAME = r"(?<=\b(?:en|wl|ww)x)[0-9a-fA-F]{12}\b"
_PATTERNS = re.compile(
    rf"(?P<uuid>\b{_UUID}\b)|(?P<gid>(?<![\w:]){_GID}(?![\w:]))|(?P<guid>(?<![\w:]){_GUID}(?![\w:]))"
    rf"|(?P<mac>(?<![\w:]){_MAC}(?:(?::[0-9a-fA-F]{{2}})*)(?![\w:]))"
    rf"|(?P<wwn>{_WWN})|(?P<name>{_MAC_NAME})|(?P<ipv4>{_IPV4})"
)
_ZERO = frozenset("0:-.fF")
_MAC_IN_GUID = ("fffe", "0300")
"""What stands between the halves of a MAC in a GUID made of it: EUI-64, and Mellanox's older way."""


class Pseudonyms:
    """Replaces identities by others of the same form, by a keyed hash.

    The key is forgotten with the object, so that nobody can find the original by trying all. A MAC keeps the vendor's
    half, a GUID or link-local GID made of a MAC is made of that MAC's pseudonym, all zeros and all ones stay. ``seen``
    maps what was replaced to its pseudonym.
    """

    def __init__(self, key: bytes | None = None, names: tuple[str, ...] = ()) -> None:
        self._key = key or os.urandom(32)
        self.seen: dict[str, str] = {}
        self._names = (
            re.compile(r"(?<![\w])(?:" + "|".join(re.escape(name) for name in names) + r")(?![\w])") if names else None
        )
        self._makers: dict[str, Callable[[str], str]] = {
            "uuid": self._shape,
            "gid": self._gid,
            "guid": self._guid,
            "mac": self._mac,
            "wwn": self._shape,
            "name": lambda text: self._mac(":".join(text[i : i + 2] for i in range(0, 12, 2))).replace(":", ""),
            "ipv4": self._ipv4,
        }

    def text(self, text: str) -> str:
        """Replace everything in a text that looks like an address or an identifier, and the machine's names."""
        if self._names is not None:
            text = self._names.sub(
                lambda found: self._remember(found[0], "host-" + self._digits(found[0].lower(), 8)), text
            )
        return _PATTERNS.sub(self._replace, text) if ":" in text or "." in text or "-" in text or "x" in text else text

    def identity(self, text: str) -> str:
        """Replace a whole value (a serial number): letters by letters, digits by digits, the rest stays.

        A prefix ``0x`` stays, and so does what tells nothing: only zeros, or empty.
        """
        known = self.seen.get(text)
        if known is not None:
            return known
        if _PATTERNS.fullmatch(text):
            return self.text(text)
        return self._shape(text)

    def _replace(self, found: re.Match[str]) -> str:
        kind = found.lastgroup or ""
        return self._makers[kind](found[0])

    def _shape(self, text: str) -> str:
        if not set(text.lower().removeprefix("0x")) - _ZERO:
            return text
        known = self.seen.get(text)
        if known is not None:
            return known
        prefix = text[:2] if text[:2] in ("0x", "0X") else ""
        body = text[len(prefix) :]
        hexadecimal = bool(prefix) or not set(body.lower()) - set("0123456789abcdef-:")
        stream = hashlib.shake_256(self._digest(body.lower())).digest(len(body) or 1)
        out: list[str] = []
        for char, byte in zip(body, stream, strict=False):
            if not char.isalnum():
                out.append(char)
            elif hexadecimal:
                digit = "123456789abcdef"[byte % 15]
                out.append(digit.upper() if char.isupper() else digit)
            elif char.isdigit():
                out.append("123456789"[byte % 9])
            else:
                letter = "abcdefghijklmnopqrstuvwxyz"[byte % 26]
                out.append(letter.upper() if char.isupper() else letter)
        return self._remember(text, prefix + "".join(out))

    def _mac(self, text: str) -> str:
        if not set(text) - _ZERO:
            return text
        digits = text.lower().replace(":", "")
        if len(digits) > 12:  # an InfiniBand interface's address: 4 octets of queue pair, then its GID
            return self._remember(
                text, _pairs(digits[:8] + self._gid_digits(digits[8:])) if len(digits) == 40 else self._shape(text)
            )
        new = self._mac_digits(digits)
        return self._remember(text, _pairs(new.upper() if text.isupper() else new))

    def _mac_digits(self, digits: str) -> str:
        # The vendor's half stays unless the address was made up (the bit says so) and the half may identify.
        keep = 6 if not int(digits[:2], 16) & 2 else 2
        return digits[:keep] + self._digits(digits, 12 - keep)

    def _guid(self, text: str) -> str:
        if not set(text) - _ZERO:
            return text
        return self._remember(text, _fours(self._guid_digits(text.lower().replace(":", ""))))

    def _guid_digits(self, digits: str) -> str:
        """Sixteen digits; one that is made of a MAC is made of that MAC's pseudonym."""
        if not digits.strip("0"):
            return digits
        middle = digits[6:10]
        if middle in _MAC_IN_GUID:
            flip = middle == "fffe"
            mac = (f"{int(digits[:2], 16) ^ 2:02x}" if flip else digits[:2]) + digits[2:6] + digits[10:]
            new = self._mac_digits(mac)
            return (f"{int(new[:2], 16) ^ 2:02x}" if flip else new[:2]) + new[2:6] + middle + new[6:]
        return digits[:6] + self._digits(digits, 10)

    def _gid(self, text: str) -> str:
        if not set(text) - _ZERO:
            return text
        return self._remember(text, _fours(self._gid_digits(text.lower().replace(":", ""))))

    def _gid_digits(self, digits: str) -> str:
        high, low = digits[:16], digits[16:]
        if high == "0" * 16 and low.startswith("0000ffff"):  # an IPv4 address within
            return high + "0000ffff" + self._digits("ipv4" + low[8:], 8)
        if high in ("fe80" + "0" * 12, "0" * 16):
            return high + self._guid_digits(low)
        return self._digits(high, 16) + self._guid_digits(low)

    def _ipv4(self, text: str) -> str:
        parts = [int(part) for part in text.split(".")]
        if any(part > 255 for part in parts) or parts[0] in (0, 127, 255):
            return text
        new = self._digits("ipv4" + "".join(f"{part:02x}" for part in parts), 8)
        return self._remember(text, ".".join(str(int(new[i : i + 2], 16)) for i in range(0, 8, 2)))

    def _digits(self, text: str, count: int) -> str:
        return self._digest(text).hex()[:count]

    def _digest(self, text: str) -> bytes:
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()

    def _remember(self, text: str, pseudonym: str) -> str:
        self.seen[text] = pseudonym
        return pseudonym


def _pairs(digits: str) -> str:
    return ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))


def _fours(digits: str) -> str:
    return ":".join(digits[i : i + 4] for i in range(0, len(digits), 4))
