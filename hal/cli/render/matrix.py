"""The distance matrix as text, in blocks that fit the terminal, with a legend of the words that occur."""

from __future__ import annotations

from collections.abc import Sequence

from hal.cli.render.text import Style, clean, cut, pad, width
from hal.topology.distance import LEGEND, Matrix

_COLOURS = {"PIX": "32", "PXB": "32", "PHB": "36", "SYS": "33", "?": "31"}


def matrix(matrix: Matrix, columns: int | None = None, style: Style | None = None) -> list[str]:
    """Return the lines of one machine's matrix; columns that do not fit follow in further blocks."""
    style = style or Style()
    names = [clean(name) for name in matrix.names]
    head = min(max(map(width, names), default=0), 24)
    cell = max([width(name) for name in names] + [len(word) for row in matrix.cells for word in row] + [1])
    each = len(names) if columns is None else max(1, (columns - head) // (cell + 2))
    lines: list[str] = []
    for start in range(0, len(names), each):
        shown = range(start, min(start + each, len(names)))
        if start:
            lines.append("")
        lines.append(_cut(" " * head + "".join("  " + pad(names[at], cell) for at in shown), columns, style))
        for name, row in zip(names, matrix.cells, strict=True):
            cells = "".join("  " + _paint(style, row[at], cell) for at in shown)
            line = pad(cut(name, head), head) + cells
            plain = pad(cut(name, head), head) + "".join("  " + pad(row[at], cell) for at in shown)
            lines.append(line.rstrip() if columns is None or width(plain.rstrip()) <= columns else cut(plain, columns))
    return lines


def _cut(line: str, columns: int | None, style: Style) -> str:
    line = line.rstrip()
    return style.bold(line if columns is None else cut(line, columns))


def _paint(style: Style, word: str, cell: int) -> str:
    code = "1;32" if word.startswith("NV") or word == "C2C" else _COLOURS.get(word, "")
    return style.paint(pad(word, cell), code) if code else pad(word, cell)


def legend(matrices: Sequence[Matrix], columns: int | None = None) -> list[str]:
    """Return the meaning of every word that occurs."""
    words = {"NV#" if word.startswith("NV") else word for one in matrices for row in one.cells for word in row}
    lines = [f"  {word:<4}  {meaning}" for word, meaning in LEGEND.items() if word in words]
    return lines if columns is None else [cut(line, columns) for line in lines]
