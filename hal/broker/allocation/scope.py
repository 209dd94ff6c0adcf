"""Over which nodes a claim is decided, and as if what were free on them: everything as it is, or what if."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from hal.broker.allocation.look import Look, Solved
from hal.broker.allocation.places import Partial
from hal.broker.allocation.states import Situation, Table
from hal.model.lease import AllocatedDevice

if TYPE_CHECKING:
    from hal.broker.state import State


class Scope:
    """All nodes, or the numbers in ``only``; ``open_`` says what is otherwise on which of them."""

    def __init__(self, open_: dict[int, tuple[int, Partial]] | None = None, only: list[int] | None = None) -> None:
        self.open_ = open_ or {}
        self.only = only
        self._state: State | None = None
        self._changed: dict[int, tuple[Table, dict[int, Situation]]] = {}

    @classmethod
    def of(
        cls,
        state: State,
        freed: Iterable[AllocatedDevice],
        barred: Collection[str],
        unkept: Collection[str],
        nodes: Collection[str] | None,
    ) -> Scope:
        """Return the scope in which some things are otherwise (see :func:`~hal.broker.allocation.view.allocate_if`)."""
        state.settle()
        back: dict[int, list[AllocatedDevice]] = {}
        ids: dict[int, tuple[list[str], list[str]]] = {}
        for device in freed:
            known = state.devices.get(device.id)
            node = state.node(known.location.node if known is not None else device.node)
            if node is not None:
                back.setdefault(node.index, []).append(device)
        for which, devices in enumerate((barred, unkept)):
            for device_id in devices:
                known = state.devices.get(device_id)
                node = state.node(known.location.node) if known is not None else None
                if node is not None:
                    ids.setdefault(node.index, ([], []))[which].append(device_id)
        only = None
        if nodes is not None:
            found = (state.node(name) for name in nodes)
            only = sorted({node.index for node in found if node is not None})
        open_: dict[int, tuple[int, Partial]] = {}
        for index in sorted({*back, *ids}):
            closed, opened = ids.get(index, ((), ()))
            open_[index] = state.nodes[index].what_if(back.get(index, ()), closed, opened)
        scope = cls(open_, only)
        scope._state = state
        return scope

    def changed(self, look: Look) -> dict[int, Situation]:
        """Return the nodes that are otherwise, in the situations they would be in."""
        if not self.open_ or self._state is None:
            return {}
        table = look.table
        known = self._changed.get(id(table))
        if known is None:
            nodes = self._state.nodes
            allowed = None if self.only is None else set(self.only)
            found = {
                index: table.as_if(nodes[index], *what)
                for index, what in self.open_.items()
                if allowed is None or index in allowed
            }
            known = self._changed[id(table)] = (table, found)
        return known[1]

    def best(self, state: State, look: Look) -> tuple[int, Solved] | None:
        """Return the best single node and its devices."""
        changed = self.changed(look)
        if self.only is None:
            return look.best_but(changed) if changed else look.best()
        best: tuple[tuple[float, ...], int, Solved] | None = None
        for index in self.only:
            situation = changed.get(index) or look.table.where[index]
            solved = look.solve(situation) if situation is not None else None
            if solved is not None and (best is None or (solved.score, index) < best[:2]):
                best = (solved.score, index, solved)
        return None if best is None else (best[1], best[2])

    def members(self, state: State, look: Look) -> list[tuple[int, Situation]]:
        """Return all nodes in scope, each with its situation."""
        changed = self.changed(look)
        where = look.table.where
        return [
            (index, situation)
            for index in (range(len(where)) if self.only is None else self.only)
            if (situation := changed.get(index) or where[index]) is not None
        ]


EVERYTHING = Scope()
"""All nodes as they are."""


def populations(
    look: Look, changed: Mapping[int, Situation], only: list[int] | None
) -> Iterator[tuple[Situation, int]]:
    """Yield the situations there are and how many nodes are in each, as if some nodes were in others."""
    where = look.table.where
    if only is not None:
        for index in only:
            situation = changed.get(index) or where[index]
            if situation is not None:
                yield situation, 1
        return
    less: dict[int, int] = {}
    for index, situation in changed.items():
        before = where[index]
        if before is not None:
            less[before.number] = less.get(before.number, 0) + 1
        yield situation, 1
    for situation in look.table.alive():
        count = situation.live - less.get(situation.number, 0)
        if count:
            yield situation, count
