"""Three-valued logic over the facts of a device: True, False, and None for unknown. The engine of the selectors."""

from __future__ import annotations

import ast
from collections.abc import Callable

from hal.model.device import Device

Compiled = Callable[[Device], object]
Comparison = Callable[[object, object], bool | None]


def constant(value: object) -> Compiled:
    """Return what always has one value."""
    return lambda device: value


def conjunction_of(parts: list[Compiled]) -> Compiled:
    """``and``: False if any part is, else unknown if any part is."""

    def conjunction(device: Device) -> object:
        unknown = False
        for part in parts:
            value = part(device)
            if value is False:
                return False
            if value is not True:
                unknown = True
        return None if unknown else True

    return conjunction


def disjunction_of(parts: list[Compiled]) -> Compiled:
    """``or``: True if any part is, else unknown if any part is."""

    def disjunction(device: Device) -> object:
        unknown = False
        for part in parts:
            value = part(device)
            if value is True:
                return True
            if value is not False:
                unknown = True
        return None if unknown else False

    return disjunction


def negation_of(part: Compiled) -> Compiled:
    """``not``: unknown stays unknown."""

    def negation(device: Device) -> object:
        value = part(device)
        return not value if isinstance(value, bool) else None

    return negation


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _comparable(left: object, right: object) -> bool:
    if _is_number(left):
        return _is_number(right)
    return type(left) is type(right) and isinstance(left, str | bool | tuple)


def comparison(compare: Comparison, first: Compiled, second: Compiled) -> Compiled:
    """Compare two parts; unknown if either is."""

    def compared(device: Device) -> object:
        left, right = first(device), second(device)
        return None if left is None or right is None else compare(left, right)

    return compared


def _equal(left: object, right: object) -> bool | None:
    if isinstance(left, tuple) and isinstance(right, tuple):
        if len(left) != len(right):
            return False
        answers = [None if a is None or b is None else _equal(a, b) for a, b in zip(left, right, strict=True)]
        return False if False in answers else (None if None in answers else True)
    return left == right if _comparable(left, right) else None


def _different(left: object, right: object) -> bool | None:
    equal = _equal(left, right)
    return None if equal is None else not equal


def _ordered(operator: Callable[[object, object], object]) -> Comparison:
    def compare(left: object, right: object) -> bool | None:
        if (_is_number(left) and _is_number(right)) or (isinstance(left, str) and isinstance(right, str)):
            return bool(operator(left, right))
        return None

    return compare


def _member(left: object, right: object) -> bool | None:
    if isinstance(right, str):
        return left in right if isinstance(left, str) else None
    if not isinstance(right, tuple):
        return None
    answers = [None if item is None else _equal(left, item) for item in right]
    return True if True in answers else (None if None in answers else False)


def _no_member(left: object, right: object) -> bool | None:
    inside = _member(left, right)
    return None if inside is None else not inside


def _text(test: Callable[[str, str], bool]) -> Comparison:
    return lambda left, right: test(left, right) if isinstance(left, str) and isinstance(right, str) else None


def _contains(left: object, right: object) -> bool | None:
    return _member(right, left)


def arithmetic(operator: type[ast.operator], first: Compiled, second: Compiled) -> Compiled:
    """Add, subtract, multiply or divide numbers; anything else is unknown."""
    work = _OPERATORS[operator]

    def computed(device: Device) -> object:
        left, right = first(device), second(device)
        if not (_is_number(left) and _is_number(right)):
            return None
        try:
            return work(left, right)
        except ArithmeticError:  # division by zero, a number too large: no value, so unknown
            return None

    return computed


COMPARISONS: dict[type[ast.cmpop], Comparison] = {
    ast.Eq: _equal,
    ast.NotEq: _different,
    ast.Lt: _ordered(lambda a, b: a < b),  # type: ignore[operator]
    ast.LtE: _ordered(lambda a, b: a <= b),  # type: ignore[operator]
    ast.Gt: _ordered(lambda a, b: a > b),  # type: ignore[operator]
    ast.GtE: _ordered(lambda a, b: a >= b),  # type: ignore[operator]
    ast.In: _member,
    ast.NotIn: _no_member,
}
_OPERATORS: dict[type[ast.operator], Callable[[object, object], object]] = {
    ast.Add: lambda a, b: a + b,  # type: ignore[operator]
    ast.Sub: lambda a, b: a - b,  # type: ignore[operator]
    ast.Mult: lambda a, b: a * b,  # type: ignore[operator]
    ast.Div: lambda a, b: a / b,  # type: ignore[operator]
}
TEXT_TESTS: dict[str, Comparison] = {
    "startswith": _text(str.startswith),
    "endswith": _text(str.endswith),
    "contains": _contains,
}
