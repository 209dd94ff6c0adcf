"""CEL's macros: expressions evaluated for each element of a list, or each key of a map, every round paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hal.model.cel_functions import no_overload
from hal.model.cel_values import NONE, Fault, Optional, TooCostly

Frame = list[Any]
Run = Callable[[Frame], Any]


@dataclass(frozen=True, slots=True)
class Body:
    """An expression in which ``slot`` is bound; one round costs ``size`` steps."""

    slot: int
    run: Run
    size: int


@dataclass(frozen=True, slots=True)
class Macro:
    """``build`` makes the closure; ``counts`` are how many arguments there may be, the bound name among them."""

    build: Callable[[Run, Sequence[Body]], Run]
    result: str
    counts: tuple[int, ...] = (2,)
    subjects: tuple[str, ...] = ("list", "map")
    logical: bool = False


def _items(frame: Frame, subject: Run, bodies: Sequence[Body]) -> Iterator[Any]:
    found = subject(frame)
    if not isinstance(found, tuple | Mapping):
        raise no_overload("a macro over", found)
    cost = sum(body.size for body in bodies)
    for item in tuple(found):
        frame[1].spend(cost)
        for body in bodies:
            frame[body.slot] = item
        yield item


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise no_overload("a predicate", value)
    return value


def _quantifier(decisive: bool) -> Callable[[Run, Sequence[Body]], Run]:
    def build(subject: Run, bodies: Sequence[Body]) -> Run:
        (body,) = bodies

        def run(frame: Frame) -> bool:
            fault: Fault | None = None
            for _ in _items(frame, subject, bodies):
                try:
                    if _truth(body.run(frame)) is decisive:
                        return decisive
                except TooCostly:
                    raise
                except Fault as error:
                    fault = fault or error
            if fault is not None:
                raise fault
            return not decisive

        return run

    return build


def _exactly_one(subject: Run, bodies: Sequence[Body]) -> Run:
    (body,) = bodies
    return lambda frame: sum([_truth(body.run(frame)) for _ in _items(frame, subject, bodies)]) == 1


def _filter(subject: Run, bodies: Sequence[Body]) -> Run:
    (body,) = bodies
    return lambda frame: tuple([item for item in _items(frame, subject, bodies) if _truth(body.run(frame))])


def _map(subject: Run, bodies: Sequence[Body]) -> Run:
    *tests, body = bodies

    def run(frame: Frame) -> tuple[Any, ...]:
        found = []
        for _ in _items(frame, subject, bodies):
            if all(_truth(test.run(frame)) for test in tests):
                found.append(body.run(frame))
        return tuple(found)

    return run


def _optional(flat: bool) -> Callable[[Run, Sequence[Body]], Run]:
    def build(subject: Run, bodies: Sequence[Body]) -> Run:
        (body,) = bodies

        def run(frame: Frame) -> Optional:
            found = subject(frame)
            if not isinstance(found, Optional):
                raise no_overload("optMap", found)
            if not found.has:
                return NONE
            frame[body.slot] = found.value
            value = body.run(frame)
            if not flat:
                return Optional(True, value)
            if not isinstance(value, Optional):
                raise no_overload("optFlatMap", value)
            return value

        return run

    return build


MACROS: dict[str, Macro] = {
    "all": Macro(_quantifier(False), "bool", logical=True),
    "exists": Macro(_quantifier(True), "bool", logical=True),
    "exists_one": Macro(_exactly_one, "bool", logical=True),
    "existsOne": Macro(_exactly_one, "bool", logical=True),
    "filter": Macro(_filter, "list", logical=True),
    "map": Macro(_map, "list", counts=(2, 3)),
    "optMap": Macro(_optional(False), "optional", subjects=("optional",)),
    "optFlatMap": Macro(_optional(True), "optional", subjects=("optional",)),
}
