"""The functions of CEL that Kubernetes offers to a device's selector: texts, lists, quantities, versions, optionals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hal.model.cel_text import TEXT_METHODS, text_of
from hal.model.cel_values import NONE, Fault, Meter, Optional, Quantity, Semver, equal, kind_of
from hal.model.cel_values import parse_quantity as _quantity
from hal.model.cel_values import parse_semver as _semver

Call = Callable[..., Any]
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Function:
    """What an expression can call: ``call(meter, *arguments)``, a method's receiver first.

    ``least`` and ``most`` count the arguments without the receiver; ``result`` is the type, or ``dyn``.
    """

    call: Call
    result: str
    least: int
    most: int
    receivers: frozenset[str] = frozenset()


def whole(value: int) -> int:
    """Return the number if it is one of 64 bits, as CEL's are."""
    if not -LARGEST - 1 <= value <= LARGEST:
        raise Fault("a whole number overflows 64 bits")
    return value


def no_overload(name: str, *values: object) -> Fault:
    """Return the fault of a function or an operator that has nothing for these types."""
    return Fault(f"no such overload: {name}({', '.join(kind_of(value) for value in values)})")


def _size(meter: Meter, value: Any) -> int:
    if isinstance(value, str | bytes | tuple | Mapping):
        return len(value)
    raise no_overload("size", value)


def _int(meter: Meter, value: Any) -> int:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Fault("the number is not finite")
        return whole(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value[1:] if value[:1] in ("-", "+") else value
        if text.isascii() and text.isdigit() and len(text) < 20:
            return whole(int(value))
        raise Fault(f"{value[:32]!r} is no whole number")
    raise no_overload("int", value)


def _double(meter: Meter, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise no_overload("double", value)
    if isinstance(value, str) and (len(value) > 64 or "_" in value):
        raise Fault(f"{value[:32]!r} is no number")
    try:
        return float(value)
    except ValueError:
        raise Fault(f"{str(value)[:32]!r} is no number") from None


def _string(meter: Meter, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, Semver):
        return value.text
    raise no_overload("string", value)


def _bool(meter: Meter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "True", "TRUE", "t", "1"):
        return True
    if value in ("false", "False", "FALSE", "f", "0"):
        return False
    raise no_overload("bool", value)


def _type(meter: Meter, value: Any) -> str:
    # Types are compared with each other and with nothing else; their names do as well.
    return kind_of(value)


def _make_quantity(meter: Meter, text: Any) -> Quantity:
    found = _quantity(text_of("quantity", text))
    if found is None:
        raise Fault(f"{text[:64]!r} is no quantity")
    return found


def _is_quantity(meter: Meter, text: Any) -> bool:
    return isinstance(text, str) and _quantity(text) is not None


def _make_semver(meter: Meter, text: Any, normalize: Any = False) -> Semver:
    found = _semver(text_of("semver", text), normalize is True)
    if found is None:
        raise Fault(f"{text[:64]!r} is no semantic version")
    return found


def _is_semver(meter: Meter, text: Any, normalize: Any = False) -> bool:
    return isinstance(text, str) and _semver(text, normalize is True) is not None


def _compare(meter: Meter, one: Any, other: Any) -> int:
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return (one.amount > other.amount) - (one.amount < other.amount)
    if isinstance(one, Semver) and isinstance(other, Semver):
        return (one.order > other.order) - (one.order < other.order)
    raise no_overload("compareTo", one, other)


def _amount(name: str, value: Any) -> Fraction | int:
    if not isinstance(value, Quantity):
        raise no_overload(name, value)
    return value.amount


def _as_integer(meter: Meter, value: Any) -> int:
    amount = _amount("asInteger", value)
    if amount.denominator != 1:
        raise Fault("the quantity is not a whole number")
    return whole(amount.numerator)


def _plus(sign: int, name: str) -> Call:
    def add(meter: Meter, one: Any, other: Any) -> Quantity:
        more = other if isinstance(other, int) and not isinstance(other, bool) else _amount(name, other)
        return Quantity(_amount(name, one) + sign * more)

    return add


def _number(position: int, name: str) -> Call:
    def read(meter: Meter, value: Any) -> int:
        if not isinstance(value, Semver):
            raise no_overload(name, value)
        return value.numbers[position]

    return read


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise no_overload(name, value)
    return value


def _extreme(pick: Callable[[Any], Any], name: str) -> Call:
    def find(meter: Meter, value: Any) -> Any:
        items = _ordered(meter, name, value)
        if not items:
            raise Fault(f"{name} of an empty list")
        return pick(items)

    return find


def _ordered(meter: Meter, name: str, value: Any) -> tuple[Any, ...]:
    items = _listed(name, value)
    meter.spend(len(items))
    if len({"number" if kind_of(item) in ("int", "double") else kind_of(item) for item in items}) > 1 or any(
        kind_of(item) not in ("int", "double", "string", "bool") for item in items
    ):
        raise no_overload(name, *items[:3])
    return items


def _sum(meter: Meter, value: Any) -> Any:
    items = _ordered(meter, "sum", value)
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        raise no_overload("sum", value)
    total = sum(items)
    return whole(total) if isinstance(total, int) else total


def _is_sorted(meter: Meter, value: Any) -> bool:
    items = _ordered(meter, "isSorted", value)
    return all(one <= other for one, other in pairwise(items))


def _includes(meter: Meter, value: Any, item: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    meter.spend(len(items))
    return any(equal(item, other, meter) for other in items)


def _set(test: Callable[[list[bool], list[bool]], bool], name: str) -> Call:
    def compare(meter: Meter, one: Any, other: Any) -> bool:
        first, second = _listed(name, one), _listed(name, other)
        meter.spend(len(first) * len(second))
        inward = [any(equal(a, b, meter) for b in first) for a in second]
        outward = [any(equal(a, b, meter) for b in second) for a in first]
        return test(inward, outward)

    return compare


def _optional(name: str, value: Any) -> Optional:
    if not isinstance(value, Optional):
        raise no_overload(name, value)
    return value


def _value(meter: Meter, value: Any) -> Any:
    found = _optional("value", value)
    if not found.has:
        raise Fault("optional.none() has no value")
    return found.value


def _or_value(meter: Meter, value: Any, other: Any) -> Any:
    found = _optional("orValue", value)
    return found.value if found.has else other


def _or(meter: Meter, value: Any, other: Any) -> Optional:
    found = _optional("or", value)
    return found if found.has else _optional("or", other)


def _of_non_zero(meter: Meter, value: Any) -> Optional:
    empty = value is None or value is False or value == 0 or (isinstance(value, str | bytes | tuple) and not value)
    return NONE if empty or (isinstance(value, Mapping) and not value) else Optional(True, value)


def _f(call: Call, result: str, least: int = 0, most: int | None = None, *receivers: str) -> Function:
    return Function(call, result, least, least if most is None else most, frozenset(receivers))


GLOBALS: dict[str, Function] = {
    "size": _f(_size, "int", 1),
    "int": _f(_int, "int", 1),
    "uint": _f(_int, "int", 1),
    "double": _f(_double, "double", 1),
    "string": _f(_string, "string", 1),
    "bool": _f(_bool, "bool", 1),
    "type": _f(_type, "type", 1),
    "quantity": _f(_make_quantity, "quantity", 1),
    "isQuantity": _f(_is_quantity, "bool", 1),
    "semver": _f(_make_semver, "semver", 1, 2),
    "isSemver": _f(_is_semver, "bool", 1, 2),
    "sets.contains": _f(_set(lambda inward, outward: all(inward), "sets.contains"), "bool", 2),
    "sets.equivalent": _f(_set(lambda inward, outward: all(inward) and all(outward), "sets.equivalent"), "bool", 2),
    "sets.intersects": _f(_set(lambda inward, outward: any(inward), "sets.intersects"), "bool", 2),
    "optional.of": _f(lambda meter, value: Optional(True, value), "optional", 1),
    "optional.none": _f(lambda meter: NONE, "optional", 0),
    "optional.ofNonZeroValue": _f(_of_non_zero, "optional", 1),
}
METHODS: dict[str, Function] = {
    **{
        name: Function(call, result, least, most, frozenset(on)) for name, call, result, least, most, on in TEXT_METHODS
    },
    "size": _f(_size, "int", 0, None, "string", "bytes", "list", "map"),
    "compareTo": _f(_compare, "int", 1, None, "quantity", "semver"),
    "isGreaterThan": _f(lambda m, one, other: _compare(m, one, other) > 0, "bool", 1, None, "quantity", "semver"),
    "isLessThan": _f(lambda m, one, other: _compare(m, one, other) < 0, "bool", 1, None, "quantity", "semver"),
    "isInteger": _f(lambda m, one: _amount("isInteger", one).denominator == 1, "bool", 0, None, "quantity"),
    "asInteger": _f(_as_integer, "int", 0, None, "quantity"),
    "asApproximateFloat": _f(lambda m, one: float(_amount("asApproximateFloat", one)), "double", 0, None, "quantity"),
    "sign": _f(lambda m, one: (_amount("sign", one) > 0) - (_amount("sign", one) < 0), "int", 0, None, "quantity"),
    "add": _f(_plus(1, "add"), "quantity", 1, None, "quantity"),
    "sub": _f(_plus(-1, "sub"), "quantity", 1, None, "quantity"),
    "major": _f(_number(0, "major"), "int", 0, None, "semver"),
    "minor": _f(_number(1, "minor"), "int", 0, None, "semver"),
    "patch": _f(_number(2, "patch"), "int", 0, None, "semver"),
    "min": _f(_extreme(min, "min"), "dyn", 0, None, "list"),
    "max": _f(_extreme(max, "max"), "dyn", 0, None, "list"),
    "sum": _f(_sum, "dyn", 0, None, "list"),
    "isSorted": _f(_is_sorted, "bool", 0, None, "list"),
    "includes": _f(_includes, "bool", 1),
    "hasValue": _f(lambda m, one: _optional("hasValue", one).has, "bool", 0, None, "optional"),
    "value": _f(_value, "dyn", 0, None, "optional"),
    "orValue": _f(_or_value, "dyn", 1, None, "optional"),
    "or": _f(_or, "optional", 1, None, "optional"),
}
