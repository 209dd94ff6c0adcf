"""Devices that were found for a claim that an explanation tried: as long as all are free, the answer is still yes.

What is claimed and given back elsewhere takes nothing from that proof, so between two explanations only those trials
are searched for again that were refused, or whose devices have been taken or have changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Place
from hal.broker.allocation.places import Node
from hal.model.claim import Claim

if TYPE_CHECKING:
    from hal.broker.state import State

WITNESSES = "witnesses"
"""Where they are in ``state.views``."""
MOST_WITNESSES = 256

Witness = tuple[tuple[Node, int, int], ...]
"""Nodes, the version of the devices that each had, and which of them were found."""


def is_witnessed(state: State, trial: Claim) -> bool:
    """Return whether devices are known that this claim could be granted now."""
    state.settle()
    known: dict[object, Witness] = state.views.get(WITNESSES, {})
    witness = known.get(_key(trial))
    return witness is not None and all(
        node.version == version and not mask & ~node.free for node, version, mask in witness
    )


def remember(state: State, trial: Claim, place: Place) -> None:
    """Keep what was found, if it is of whole devices: of those it is enough to know that they are free."""
    if any(choice.in_part or choice.partitions for choice in place.choices):
        return
    known: dict[object, Witness] = state.views.setdefault(WITNESSES, {})
    while len(known) >= MOST_WITNESSES:
        del known[next(iter(known))]
    found = []
    for choice in place.choices:
        mask = 0
        for one in choice.masks:
            mask |= one
        found.append((choice.node, choice.node.version, mask))
    known[_key(trial)] = tuple(found)


def _key(trial: Claim) -> tuple[object, ...]:
    """Return all of a claim that decides which devices it could be given."""
    return trial.requests, trial.constraints, trial.replicas, trial.gang, trial.max_replicas
