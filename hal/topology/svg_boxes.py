"""Boxes that know how large they are and how to draw themselves: all the layout that the picture needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
INK = "#1f2328"
CHIP_WIDTH, CHIP_HEIGHT, PART_HEIGHT = 184, 62, 22
GAP = 10

Paint = Callable[[float, float, float, float], list[str]]


class Box:
    """Something of a natural size; ``paint(x, y, width, height)`` draws it at least that large."""

    __slots__ = ("height", "paint", "width")

    def __init__(self, width: float, height: float, paint: Paint) -> None:
        self.width = width
        self.height = height
        self.paint = paint


def escape(text: str) -> str:
    """Return text for XML: what XML cannot hold at all (control characters, half surrogates) as an escape."""
    shown = "".join(
        char if char.isprintable() else f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
        for char in text
    )
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def measure(text: str, size: float, bold: bool = False) -> float:
    """Return a width in pixels that the text does not exceed in DejaVu Sans, the widest of the usual fonts."""
    units = 0.0
    for char in text:
        if char in "ilI.,:;|' ()[]!-/":
            units += 0.42
        elif char in "mwMW@%":
            units += 1.0
        elif char.isupper() or char == "…":
            units += 0.76 if char != "…" else 1.0
        else:
            units += 0.64 if ord(char) < 0x1100 else 1.05
    return units * size * (1.1 if bold else 1.0)


def shorten(text: str, size: float, room: float, bold: bool = False) -> str:
    """Cut a text in its middle until it fits."""
    if measure(text, size, bold) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        head, tail = (kept + 1) // 2, kept // 2
        cut = text[:head] + "…" + (text[-tail:] if tail else "")
        if measure(cut, size, bold) <= room:
            return cut
    return "…"


def write(
    text: str, x: float, y: float, size: float, bold: bool = False, color: str = INK, anchor: str = "start"
) -> str:
    """Return a text element; ``y`` is the base line."""
    weight = ' font-weight="bold"' if bold else ""
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}"{weight}{place} fill="{color}">{escape(text)}</text>'


def rectangle(x: float, y: float, w: float, h: float, fill: str, stroke: str, radius: float = 6, more: str = "") -> str:
    """Return a rounded rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius:g}" '
        f'fill="{fill}" stroke="{stroke}"{more}/>'
    )


def text_line(text: str, size: float, bold: bool = False) -> Box:
    """Return one line of text."""
    return Box(
        measure(text, size, bold),
        size * 1.35,
        lambda x, y, w, h: [write(shorten(text, size, w, bold), x, y + size, size, bold)],
    )


def stack(boxes: Sequence[Box], gap: float = GAP) -> Box:
    """Put boxes one below the other, all as wide as the widest."""
    width = max((box.width for box in boxes), default=0)
    height = sum(box.height for box in boxes) + gap * max(0, len(boxes) - 1)

    def paint(x: float, y: float, w: float, h: float) -> list[str]:
        drawn: list[str] = []
        for box in boxes:
            drawn += box.paint(x, y, w, box.height)
            y += box.height + gap
        return drawn

    return Box(width, height, paint)


def row(boxes: Sequence[Box], gap: float = GAP) -> Box:
    """Put boxes side by side, all as high as the highest; the last one takes the room that is left."""
    width = sum(box.width for box in boxes) + gap * max(0, len(boxes) - 1)
    height = max((box.height for box in boxes), default=0)

    def paint(x: float, y: float, w: float, h: float) -> list[str]:
        drawn: list[str] = []
        for box in boxes:
            drawn += box.paint(x, y, box.width, h)
            x += box.width + gap
        return drawn

    return Box(width, height, paint)


def flow(boxes: Sequence[Box], room: float) -> Box:
    """Put boxes side by side as long as there is room, then in the next row."""
    rows: list[list[Box]] = []
    used = 0.0
    for box in boxes:
        if rows and used + GAP + box.width <= room:
            rows[-1].append(box)
            used += GAP + box.width
        else:
            rows.append([box])
            used = box.width
    return stack([row(some) for some in rows])


def grid(boxes: Sequence[Box], columns: int) -> Box:
    """Put boxes in so many columns."""
    return stack([row(boxes[start : start + columns]) for start in range(0, len(boxes), columns)])


def frame(title: str, inner: Box, fill: str, stroke: str, size: float = 12) -> Box:
    """Draw a border with a title around a box."""
    head = size * 1.5 if title else 0.0
    width = max(inner.width, measure(title, size, bold=True)) + 2 * GAP
    height = inner.height + head + 2 * GAP - (4 if title else 0)

    def paint(x: float, y: float, w: float, h: float) -> list[str]:
        drawn = [rectangle(x, y, w, h, fill, stroke)]
        if title:
            drawn.append(write(shorten(title, size, w - 2 * GAP, True), x + GAP, y + size + 6, size, bold=True))
        top = y + head + GAP - (4 if title else 0)
        return drawn + inner.paint(x + GAP, top, w - 2 * GAP, h - (top - y) - GAP)

    return Box(width, height, paint)


def painted_chip(
    *,
    name: str,
    badge: str,
    lines: Sequence[str],
    fill: str,
    stroke: str,
    strip: str,
    dashed: bool,
    parts: Sequence[tuple[str, str, str, str]],
) -> Box:
    """Draw a device: its name, a badge, two lines, and its parts (name, fill, stroke, strip) as small boxes within."""
    part_rows = (len(parts) + 1) // 2
    height = CHIP_HEIGHT + part_rows * (PART_HEIGHT + 4) + (4 if parts else 0)

    def paint(x: float, y: float, w: float, h: float) -> list[str]:
        dash = ' stroke-dasharray="5 3"' if dashed else ""
        drawn = [
            rectangle(x, y, CHIP_WIDTH, h, fill, stroke, more=f' stroke-width="1.5"{dash}'),
            rectangle(x + 4, y + 6, 5, h - 12, strip, "none", radius=2),
        ]
        room, left = CHIP_WIDTH - 24, x + 16
        taken = measure(badge, 10, True) + 14 if badge else 0
        drawn.append(write(shorten(name, 14, room - taken, True), left, y + 20, 14, bold=True))
        if badge:
            drawn.append(rectangle(x + CHIP_WIDTH - taken - 4, y + 7, taken - 2, 16, "#673ab7", "none", radius=8))
            drawn.append(write(badge, x + CHIP_WIDTH - 5 - taken / 2, y + 19, 10, True, "#ffffff", "middle"))
        for number, line in enumerate(lines):
            drawn.append(write(shorten(line, 11, room), left, y + 37 + 15 * number, 11))
        each = (room - 4) / 2
        for place, (part, part_fill, part_stroke, part_strip) in enumerate(parts):
            px, py = left + (place % 2) * (each + 4), y + CHIP_HEIGHT + (place // 2) * (PART_HEIGHT + 4)
            drawn.append(rectangle(px, py, each, PART_HEIGHT, part_fill, part_stroke, radius=4))
            drawn.append(rectangle(px + 2.5, py + 4, 3, PART_HEIGHT - 8, part_strip, "none", radius=1))
            drawn.append(write(shorten(part, 10, each - 11), px + 8, py + 15, 10))
        return drawn

    return Box(CHIP_WIDTH, height, paint)


def legend_row(title: str, entries: Sequence[tuple[str, str, str]]) -> Box:
    """Explain colours: (word, fill, stroke) each."""
    widths = [measure(word, 12) + 34 for word, _, _ in entries]

    def paint(x: float, y: float, w: float, h: float) -> list[str]:
        drawn = [write(title, x, y + 14, 12, bold=True)]
        x += 64
        for (word, fill, stroke), width in zip(entries, widths, strict=True):
            drawn.append(rectangle(x, y + 3, 16, 14, fill, stroke, radius=3))
            drawn.append(write(word, x + 22, y + 14, 12))
            x += width
        return drawn

    return Box(64 + sum(widths), 20, paint)


def page(box: Box, title: str) -> str:
    """Return the document: a white page with a margin around the box."""
    margin = 20
    width, height = box.width + 2 * margin, box.height + 2 * margin
    body = "\n".join(box.paint(margin, margin, box.width, box.height))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )
