"""The elements of a table with ``count``: one value for all, a list with one for each, or a text with ``{i}``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hal_mocks.profile_schema import Mistake, Table

Path = tuple[str | int, ...]
_INDEX = re.compile(r"\{i((?:(?://|[%+*-])\d{1,9})*)\}")
_STEP = re.compile(r"(//|[%+*-])(\d+)")
_INHERENT = frozenset({"offloads", "nvme", "dpus"})
"""Keys whose value is a list by nature."""


class Element:
    """One of the ``count`` elements of a table: ``index`` counts within the table, ``number`` within its section."""

    def __init__(self, table: Table, path: Path, index: int, number: int, count: int, default_name: str) -> None:
        self.table = table
        self.path = path
        self.index = index
        self.number = number
        self.count = count
        given = self.text("name") if "name" in table.__struct_fields__ else ""
        self.name = given or text_for(default_name, number, path)

    def at(self, key: str) -> Path:
        """Return where a key of this element stands."""
        return (*self.path, key)

    def value(self, key: str) -> Any:
        """Return a key's value for this element."""
        found = getattr(self.table, key)
        if not isinstance(found, list) or key in _INHERENT:
            return found
        if len(found) != self.count:
            raise Mistake(
                self.at(key), f"{key} has {len(found)} values for {self.count} elements", "one value, or one for each"
            )
        return found[self.index]

    def text(self, key: str) -> str:
        """Return a text, with ``{i}`` put in."""
        return text_for(str(self.value(key)), self.index, self.at(key))

    def whole(self, key: str) -> int | None:
        """Return a whole number, or None if it is not given."""
        found = self.value(key)
        return None if found is None else int(found)


def elements(section: str, tables: Sequence[Table], default_name: str) -> list[Element]:
    """Count out the elements of all tables of a section."""
    found: list[Element] = []
    for index, table in enumerate(tables):
        count: int = getattr(table, "count", 1)
        for element in range(count):
            found.append(Element(table, (section, index), element, len(found), count, default_name))
    return found


def text_for(text: str, index: int, path: Path) -> str:
    """Return a text with ``{i}``, ``{i+1}``, ``{i//2}``, ``{i%2}`` computed, from left to right."""
    if "{" not in text:
        return text

    def compute(match: re.Match[str]) -> str:
        value = index
        for operator, digits in _STEP.findall(match.group(1)):
            number = int(digits)
            if operator in ("//", "%") and number == 0:
                raise Mistake(path, f"{match.group(0)!r} divides by zero")
            if operator == "//":
                value //= number
            elif operator == "%":
                value %= number
            elif operator == "+":
                value += number
            elif operator == "-":
                value -= number
            else:
                value *= number
        return str(value)

    done = _INDEX.sub(compute, text)
    if "{" in done.replace("{device}", ""):
        raise Mistake(path, f"{text!r} has braces that mean nothing here", "{i}, {i+1}, {i//2}, {i%2}")
    return done
