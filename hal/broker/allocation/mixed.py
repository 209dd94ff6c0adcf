"""Gangs whose members differ: each replica may take another reading of the claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Place
from hal.broker.allocation.scope import Scope
from hal.model.claim import Claim

if TYPE_CHECKING:
    from hal.broker.allocation.view import View
    from hal.broker.state import State


def place_mixed(
    state: State, claim: Claim, view: View, scope: Scope, least: int, most: int, best: Place | None
) -> Place | None:
    """Return a better place than ``best`` with different readings, or None."""
    return None
