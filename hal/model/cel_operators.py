"""What the operators of CEL do when a selector is evaluated: each function here makes one closure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hal.model.cel_functions import no_overload, whole
from hal.model.cel_values import LONGEST_TEXT, NONE, Domains, Fault, Optional, TooCostly, equal, kind_of

Frame = list[Any]
Run = Callable[[Frame], Any]
TYPES = ("bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type")
SIGNS = {
    "relation_eq": "==",
    "relation_ne": "!=",
    "relation_lt": "<",
    "relation_le": "<=",
    "relation_gt": ">",
    "relation_ge": ">=",
    "relation_in": "in",
    "addition_add": "+",
    "addition_sub": "-",
    "multiplication_mul": "*",
    "multiplication_div": "/",
    "multiplication_mod": "%",
}
_NUMBERS = frozenset({"int", "double"})
ADDABLE: dict[str, frozenset[str]] = {
    "addition_add": _NUMBERS | {"string", "bytes", "list"},
    "addition_sub": _NUMBERS,
    "multiplication_mul": _NUMBERS,
    "multiplication_div": _NUMBERS,
    "multiplication_mod": frozenset({"int"}),
}
_EMPTY: Mapping[str, object] = {}


def constant(value: Any) -> Run:
    """Always this value."""
    return lambda frame: value


def variable(position: int, missing: str) -> Run:
    """A variable of the device; absent is a fault."""

    def run(frame: Frame) -> Any:
        value = frame[0][position]
        if value is None:
            raise Fault(missing)
        return value

    return run


def presence(position: int) -> Run:
    """Whether the device has a variable."""
    return lambda frame: frame[0][position] is not None and frame[0][position] != {}


def optional_variable(position: int) -> Run:
    """A variable of the device, or none."""

    def run(frame: Frame) -> Optional:
        value = frame[0][position]
        return NONE if value is None else Optional(True, value)

    return run


def choice(test: Run, yes: Run, no: Run) -> Run:
    """``test ? yes : no``."""

    def run(frame: Frame) -> Any:
        decided = test(frame)
        if decided is True:
            return yes(frame)
        if decided is False:
            return no(frame)
        raise no_overload("?:", decided)

    return run


def logic(parts: Sequence[Run], decisive: bool, sign: str) -> Run:
    """``&&`` (``decisive`` False) or ``||``: a decisive operand decides, even beside one that fails."""

    def run(frame: Frame) -> bool:
        fault: Fault | None = None
        for part in parts:
            try:
                value = part(frame)
            except TooCostly:
                raise
            except Fault as error:
                fault = fault or error
                continue
            if value is decisive:
                return bool(decisive)
            if not isinstance(value, bool):
                fault = fault or no_overload(sign, value)
        if fault is not None:
            raise fault
        return not decisive

    return run


def negation(inner: Run) -> Run:
    """``!``."""

    def run(frame: Frame) -> bool:
        value = inner(frame)
        if not isinstance(value, bool):
            raise no_overload("!", value)
        return not value

    return run


def negative(inner: Run) -> Run:
    """``-``."""

    def run(frame: Frame) -> Any:
        value = inner(frame)
        if kind_of(value) not in _NUMBERS:
            raise no_overload("-", value)
        return whole(-value) if isinstance(value, int) else -value

    return run


def _ordered(name: str, compare: Callable[[Any, Any], bool]) -> Callable[[Run, Run], Run]:
    def build(left: Run, right: Run) -> Run:
        def run(frame: Frame) -> bool:
            one, other = left(frame), right(frame)
            kinds = {kind_of(one), kind_of(other)}
            if kinds <= _NUMBERS or (len(kinds) == 1 and kinds <= {"string", "bytes", "bool"}):
                return compare(one, other)
            raise no_overload(SIGNS[name], one, other)

        return run

    return build


def _equal(left: Run, right: Run) -> Run:
    return lambda frame: equal(left(frame), right(frame), frame[1])


def _unequal(left: Run, right: Run) -> Run:
    return lambda frame: not equal(left(frame), right(frame), frame[1])


def _inside(left: Run, right: Run) -> Run:
    def run(frame: Frame) -> bool:
        item, container = left(frame), right(frame)
        if isinstance(container, Mapping):
            return kind_of(item) in ("string", "int", "bool") and item in container
        if not isinstance(container, tuple):
            raise no_overload("in", item, container)
        frame[1].spend(len(container))
        return any(equal(item, other, frame[1]) for other in container)

    return run


RELATIONS: dict[str, Callable[[Run, Run], Run]] = {
    "relation_eq": _equal,
    "relation_ne": _unequal,
    "relation_lt": _ordered("relation_lt", operator.lt),
    "relation_le": _ordered("relation_le", operator.le),
    "relation_gt": _ordered("relation_gt", operator.gt),
    "relation_ge": _ordered("relation_ge", operator.ge),
    "relation_in": _inside,
}


def _divide(one: Any, other: Any) -> Any:
    if isinstance(one, float):
        if other == 0:
            return math.nan if one == 0 or math.isnan(one) else math.copysign(math.inf, one)
        return one / other
    if other == 0:
        raise Fault("division by zero")
    quotient = abs(one) // abs(other)  # towards zero, as Go's
    return quotient if (one < 0) == (other < 0) else -quotient


def _modulo(one: int, other: int) -> int:
    if other == 0:
        raise Fault("modulus by zero")
    rest = abs(one) % abs(other)
    return -rest if one < 0 else rest


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "addition_add": operator.add,
    "addition_sub": operator.sub,
    "multiplication_mul": operator.mul,
    "multiplication_div": _divide,
    "multiplication_mod": _modulo,
}


def arithmetic(first: Run, steps: Sequence[tuple[str, Run]]) -> Run:
    """``a + b - c`` or ``a * b / c`` of one type, within 64 bits; texts and lists are joined, up to a limit."""

    def run(frame: Frame) -> Any:
        value = first(frame)
        for name, right in steps:
            value = _combined(name, value, right(frame), frame)
        return value

    return run


def _combined(name: str, one: Any, other: Any, frame: Frame) -> Any:
    kind = kind_of(one)
    if kind != kind_of(other) or kind not in ADDABLE[name]:
        raise no_overload(SIGNS[name], one, other)
    if kind == "int":
        return whole(_ARITHMETIC[name](one, other))
    if kind == "double":
        return _float(_ARITHMETIC[name], one, other)
    size = len(one) + len(other)
    frame[1].spend(1 + size // 16)
    if size > LONGEST_TEXT:
        raise Fault(f"a {kind} grows beyond {LONGEST_TEXT}")
    return one + other


def _float(work: Callable[[Any, Any], Any], one: float, other: float) -> Any:
    try:
        return work(one, other)
    except OverflowError:
        return math.inf


def _look(container: Any, key: Any) -> tuple[bool, Any]:
    """Return whether a map or list has something there, and what."""
    if isinstance(container, Domains):
        return True, container.get(key, _EMPTY) if isinstance(key, str) else _EMPTY
    if isinstance(container, Mapping):
        if kind_of(key) not in ("string", "int", "bool"):
            raise no_overload("_[_]", container, key)
        return (True, container[key]) if key in container else (False, None)
    if isinstance(container, tuple) and kind_of(key) == "int":
        return (True, container[key]) if 0 <= key < len(container) else (False, None)
    raise no_overload("_[_]", container, key)


def member(inner: Run, name: Run) -> Run:
    """``inner.name`` or ``inner[name]``; of an optional, the optional member."""

    def run(frame: Frame) -> Any:
        container, key = inner(frame), name(frame)
        if isinstance(container, Optional):
            return _optional_look(container, key)
        found, value = _look(container, key)
        if not found:
            raise Fault(f"no such key: {key}" if isinstance(container, Mapping) else f"no such index: {key}")
        return value

    return run


def optional_member(inner: Run, name: Run) -> Run:
    """``inner.?name`` or ``inner[?name]``."""

    def run(frame: Frame) -> Optional:
        container, key = inner(frame), name(frame)
        return _optional_look(container if isinstance(container, Optional) else Optional(True, container), key)

    return run


def _optional_look(container: Optional, key: Any) -> Optional:
    if not container.has:
        return NONE
    found, value = _look(container.value, key)
    return Optional(True, value) if found else NONE


def has_member(inner: Run, name: str) -> Run:
    """``has(inner.name)``."""

    def run(frame: Frame) -> bool:
        container = inner(frame)
        if isinstance(container, Optional):
            return _optional_look(container, name).has
        return _look(container, name)[0]

    return run


def call(function: Callable[..., Any], arguments: Sequence[Run]) -> Run:
    """A function of values, each of its steps paid for."""
    if len(arguments) == 1:
        (only,) = arguments
        return lambda frame: function(frame[1], only(frame))
    if len(arguments) == 2:
        first, second = arguments
        return lambda frame: function(frame[1], first(frame), second(frame))
    return lambda frame: function(frame[1], *(argument(frame) for argument in arguments))


def binding(slot: int, value: Run, body: Run) -> Run:
    """``cel.bind(name, value, body)``."""

    def run(frame: Frame) -> Any:
        frame[slot] = value(frame)
        return body(frame)

    return run


def listing(items: Sequence[Run]) -> Run:
    """``[a, b]``."""
    return lambda frame: tuple([item(frame) for item in items])


def mapping(keys: Sequence[Run], values: Sequence[Run]) -> Run:
    """``{a: b}``."""

    def run(frame: Frame) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in zip(keys, values, strict=True):
            name = key(frame)
            if kind_of(name) not in ("string", "int", "bool") or name in found:
                raise Fault(f"a map has the key {name!r}")
            found[name] = value(frame)
        return found

    return run
