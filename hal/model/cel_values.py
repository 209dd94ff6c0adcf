"""The values of CEL that Python has no type for: quantities, versions, optionals; and how an evaluation fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

LONGEST_TEXT = 65_536
"""No text or list that an expression makes grows beyond this."""
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,2}))?")
_SUFFIXES: dict[str, Fraction] = {
    **{suffix: Fraction(1024**power) for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{suffix: Fraction(1000**power) for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{suffix: Fraction(1, 1000**power) for power, suffix in enumerate(("m", "u", "n"), 1)},
}
_NUMBER = r"(0|[1-9][0-9]*)"
_PART = r"(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-({_PART}(?:\.{_PART})*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)
_LOOSE = re.compile(r"v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?((?:[-+].*)?)")


class Fault(Exception):
    """An evaluation came to no answer: a missing attribute, a wrong type, a limit. The device does not match."""


class TooCostly(Fault):
    """The evaluation took more steps than it may; nothing absorbs this one."""


class Meter:
    """How many steps an evaluation may still take."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, steps: int) -> None:
        """Take steps; raise :class:`TooCostly` when there are none left."""
        self.left -= steps
        if self.left < 0:
            raise TooCostly("it takes too many steps")


class Quantity:
    """An amount as Kubernetes writes it (``10Gi``, ``500m``, ``1e3``), exactly."""

    __slots__ = ("amount",)

    def __init__(self, amount: Fraction | int) -> None:
        # A whole number where it is one: hashing a fraction takes microseconds, and this is part of keys.
        self.amount: Final[Fraction | int] = amount.numerator if amount.denominator == 1 else amount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.amount == other.amount

    def __hash__(self) -> int:
        return hash((Quantity, self.amount))

    def __repr__(self) -> str:
        return f"quantity({self.amount})"


def parse_quantity(text: str) -> Quantity | None:
    """Return the quantity, or None for a text that is none."""
    found = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if found is None:
        return None
    number, suffix, exponent = found.groups()
    amount = Fraction(number if number[-1] != "." else number[:-1])
    if suffix:
        amount *= _SUFFIXES[suffix]
    elif exponent:
        amount *= Fraction(10) ** int(exponent)
    return Quantity(amount)


class Semver:
    """A semantic version, ordered as semver.org 2.0.0 says; what was built (after ``+``) does not count."""

    __slots__ = ("before", "numbers", "text")

    def __init__(self, numbers: tuple[int, int, int], before: tuple[str, ...], text: str) -> None:
        self.numbers: Final = numbers
        self.before: Final = before
        self.text: Final = text

    @property
    def order(self) -> tuple[object, ...]:
        """What versions are compared by."""
        parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.before)
        return (self.numbers, not self.before, parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Semver) and self.order == other.order

    def __hash__(self) -> int:
        return hash((Semver, self.order))

    def __repr__(self) -> str:
        return f"semver({self.text})"


def parse_semver(text: str, normalize: bool = False) -> Semver | None:
    """Return the version, or None. ``normalize`` forgives a leading ``v``, missing parts and leading zeros."""
    if len(text) > 256:
        return None
    if normalize:
        loose = _LOOSE.fullmatch(text)
        if loose is None:
            return None
        numbers = [str(int(loose[part] or "0")) for part in (1, 2, 3)]
        text = ".".join(numbers) + loose[4]
    found = _SEMVER.fullmatch(text)
    if found is None:
        return None
    before = tuple(found[4].split(".")) if found[4] else ()
    return Semver((int(found[1]), int(found[2]), int(found[3])), before, text)


class Optional:
    """A value that may be missing; :data:`NONE` is."""

    __slots__ = ("has", "value")

    def __init__(self, has: bool, value: object = None) -> None:
        self.has: Final = has
        self.value: Final = value


NONE = Optional(False)


class Domains(dict[str, Mapping[str, object]]):
    """Attributes or capacities by domain; a domain that nobody speaks of is empty, as in Kubernetes."""


def kind_of(value: object) -> str:
    """Return what CEL calls the type of a value."""
    if isinstance(value, bool):
        return "bool"
    for kind, name in _KINDS:
        if isinstance(value, kind):
            return name
    return "null_type"


_KINDS: tuple[tuple[type, str], ...] = (
    (int, "int"),
    (float, "double"),
    (str, "string"),
    (bytes, "bytes"),
    (tuple, "list"),
    (Mapping, "map"),
    (Quantity, "quantity"),
    (Semver, "semver"),
    (Optional, "optional"),
)


def equal(one: object, other: object, meter: Meter | None = None) -> bool:
    """Equality across types, as Kubernetes evaluates it: numbers by value, other types are different things.

    Lists and maps are walked at the meter's cost: what shares its parts can be larger than anything in memory.
    """
    first, second = kind_of(one), kind_of(other)
    if first != second:
        return {first, second} == {"int", "double"} and one == other
    if isinstance(one, tuple) and isinstance(other, tuple):
        if meter is not None:
            meter.spend(len(one))
        return len(one) == len(other) and all(equal(a, b, meter) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if meter is not None:
            meter.spend(len(one))
        return one.keys() == other.keys() and all(equal(value, other[key], meter) for key, value in one.items())
    if isinstance(one, Optional) and isinstance(other, Optional):
        return one.has == other.has and equal(one.value, other.value, meter)
    return one == other
