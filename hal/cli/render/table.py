"""The table for people: never wider than the terminal, never wrapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hal.cli.render import describe
from hal.cli.render.text import Style, clean, cut, cut_middle, pad, width
from hal.model.device import Device

GAP = "  "


class Column:
    """A column: its cells, how narrow it may become (0: it may go), and how it is shortened."""

    __slots__ = ("cells", "least", "right", "shorten", "title", "width")

    def __init__(
        self,
        title: str,
        cells: Sequence[str],
        least: int,
        shorten: Callable[[str, int], str] = cut,
        right: bool = False,
    ) -> None:
        self.title = title
        self.cells = cells
        self.least = least
        self.shorten = shorten
        self.right = right
        self.width = max(width(title), max(map(width, cells), default=0))


def fit(
    columns: Sequence[Column], total: int | None, order: Sequence[str], steps: Sequence[tuple[str, int]] = ()
) -> list[Column]:
    """Shrink columns, then drop them, in the order of ``order`` (the least important first), until they fit.

    Before any is shrunk as far as it goes, ``steps`` (title, width) are tried one after another. Sets the columns'
    widths; returns those that stay. At least the last of ``order`` stays, cut as far as it must be.
    """
    kept = [column for column in columns if any(cell not in ("", describe.NOTHING) for cell in column.cells)]
    kept = kept or list(columns[:1])
    if total is None:
        return kept
    by_title = {column.title: column for column in kept}
    ranked = [by_title[title] for title in order if title in by_title]
    softly = [(by_title[title], least) for title, least in steps if title in by_title]
    for column, least in (*softly, *((column, column.least or column.width) for column in ranked)):
        over = _sum(kept) - total
        if over <= 0:
            return kept
        column.width = max(min(column.width, max(least, width(column.title))), column.width - over)
    for column in ranked[:-1]:
        if _sum(kept) <= total:
            break
        kept.remove(column)
    over = _sum(kept) - total
    if over > 0:
        kept[0].width = max(1, kept[0].width - over)
        return kept
    spare = -over
    for column in reversed(ranked):  # what dropping one has freed goes to those that were shortened
        if column in kept and spare > 0:
            full = max(width(column.title), max(map(width, column.cells), default=0))
            grow = min(spare, full - column.width)
            column.width += grow
            spare -= grow
    return kept


def _sum(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def draw(columns: Sequence[Column], paint: Callable[[str, int, str], str] | None = None) -> list[str]:
    """Return the heading and one line a row. ``paint`` gets the title, the row (-1: heading) and the padded cell."""
    lines: list[str] = []
    last = len(columns) - 1
    for row in range(-1, len(columns[0].cells)):
        parts = []
        for place, column in enumerate(columns):
            cell = column.shorten(column.title if row < 0 else column.cells[row], column.width)
            if place != last or column.right:
                cell = pad(cell, column.width, column.right)
            parts.append(paint(column.title, row, cell) if paint else cell)
        lines.append(GAP.join(parts).rstrip())
    return lines


_ORDER = ("DETAIL", "MODEL", "LINK", "NUMA", "PCI", "KIND", "HEALTH", "NAME")
_STEPS = (("DETAIL", 36), ("MODEL", 22), ("DETAIL", 20))


def device_table(devices: Sequence[Device], columns: int | None = None, style: Style | None = None) -> list[str]:
    """Return the lines for some devices, grouped by machine if there are several, in the order given."""
    style = style or Style()
    if not devices:
        return []
    drawn = fit(
        (
            Column("KIND", [device.kind.value for device in devices], 0),
            Column("NAME", [clean(device.name) for device in devices], 6, cut_middle),
            Column("MODEL", [describe.model(device) for device in devices], 12, cut_middle),
            Column("NUMA", [describe.numa(device) for device in devices], 0, right=True),
            Column("PCI", [clean(device.location.pci_address or describe.NOTHING) for device in devices], 0),
            Column("LINK", [describe.link(device) for device in devices], 0),
            Column("HEALTH", [device.health.value for device in devices], 0),
            Column("DETAIL", [describe.detail(device) for device in devices], 12),
        ),
        columns,
        _ORDER,
        _STEPS,
    )

    def paint(title: str, row: int, cell: str) -> str:
        if row < 0:
            return style.bold(cell)
        return style.health(cell, devices[row].health) if title == "HEALTH" else cell

    lines = draw(drawn, paint)
    if len({device.location.node for device in devices}) < 2:
        return lines
    grouped = [lines[0]]
    node: str | None = None
    for device, line in zip(devices, lines[1:], strict=True):
        if device.location.node != node:
            node = device.location.node
            rack = f" in rack {device.location.rack}" if device.location.rack else ""
            title = clean(f"{node}{rack}")
            grouped += ["", style.bold(title if columns is None else cut(title, columns))]
        grouped.append(line)
    return grouped
