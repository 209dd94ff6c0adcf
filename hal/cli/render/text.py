"""The small things of a terminal: how wide a text is, how to shorten it, how to colour it, what never to print."""

from __future__ import annotations

import os
import sys

from hal.model.health import Health

ELLIPSIS = "…"
_COLOURS = {
    Health.HEALTHY: "32",
    Health.DEGRADED: "33",
    Health.SUSPECT: "35",
    Health.FAILED: "31",
    Health.UNKNOWN: "36",
}


def clean(text: str) -> str:
    """Return the text with everything that a terminal would obey, or cannot show, written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as Python smuggles it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Return how many columns a text takes: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    from unicodedata import category, east_asian_width

    if category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


def cut(text: str, columns: int) -> str:
    """Shorten a text at its end to so many columns."""
    if width(text) <= columns:
        return text
    if columns <= 0:
        return ""
    return _take(text, columns - 1) + ELLIPSIS


def fold(text: str, columns: int | None) -> list[str]:
    """Return a text as lines of so many columns, broken between words; a word that is longer has a line of its own."""
    if columns is None:
        return [text]
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and width(longer) > columns:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def cut_middle(text: str, columns: int) -> str:
    """Shorten a text in its middle: names differ at their ends."""
    if width(text) <= columns:
        return text
    if columns < 3:
        return cut(text, columns)
    tail = (columns - 1) // 2
    return _take(text, columns - 1 - tail) + ELLIPSIS + _take(text[::-1], tail)[::-1]


def _take(text: str, columns: int) -> str:
    if text.isascii():
        return text[:columns]
    used = 0
    for place, char in enumerate(text):
        used += _char_width(char)
        if used > columns:
            return text[:place]
    return text


def pad(text: str, columns: int, right: bool = False) -> str:
    """Fill a text with spaces up to so many columns."""
    space = " " * (columns - width(text))
    return space + text if right else text + space


def terminal_columns() -> int | None:
    """Return how wide lines may be: ``COLUMNS``, or the terminal's width, or None where there is no terminal."""
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


class Style:
    """Colour, or none. ``when`` is ``auto`` (a terminal, and ``NO_COLOR`` not set), ``always`` or ``never``."""

    def __init__(self, when: str = "never") -> None:
        if when == "auto":
            self.on = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()
        else:
            self.on = when == "always"

    def paint(self, text: str, code: str) -> str:
        """Return the text in a colour (an SGR code)."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text.strip() else text

    def bold(self, text: str) -> str:
        """Return a heading."""
        return self.paint(text, "1")

    def dim(self, text: str) -> str:
        """Return something that matters less."""
        return self.paint(text, "2")

    def health(self, text: str, health: Health) -> str:
        """Return a text in the colour of a health."""
        return self.paint(text, _COLOURS[health])
