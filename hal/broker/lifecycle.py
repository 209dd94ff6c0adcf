"""The states of a lease and the steps between them: the one place that says which are allowed.

=============  ==========================================  =====================================================
state          means                                       next
=============  ==========================================  =====================================================
bound          committed; the agent prepares               prepared, draining, suspect, releasing
prepared       every device is ready for the holder        bound (it grew), draining, suspect, releasing
draining       told to leave, in use until ``leave_by``    suspect, releasing
suspect        expired; the holder may still be there      releasing, ended (with proof)
releasing      its end is decided; the agent takes back    ended (with proof)
ended          each device is free, or fenced              (none)
=============  ==========================================  =====================================================

A changed boot id, or an operator's recorded order, ends a lease from any state: both are proof. A device that is free
was never held, or its last holder is proven to have let go.
"""

from __future__ import annotations

from hal.errors import LeaseEnded
from hal.model.lease import Lease, LeaseState

_S = LeaseState
NEXT: dict[LeaseState, frozenset[LeaseState]] = {
    _S.BOUND: frozenset({_S.PREPARED, _S.DRAINING, _S.SUSPECT, _S.RELEASING}),
    _S.PREPARED: frozenset({_S.BOUND, _S.DRAINING, _S.SUSPECT, _S.RELEASING}),
    _S.DRAINING: frozenset({_S.SUSPECT, _S.RELEASING}),
    _S.SUSPECT: frozenset({_S.RELEASING, _S.ENDED}),
    _S.RELEASING: frozenset({_S.ENDED}),
    _S.ENDED: frozenset(),
}
"""What may follow each state."""

LIVE = frozenset({_S.BOUND, _S.PREPARED, _S.DRAINING})
"""The holder may use the devices, or soon will."""
STAYING = frozenset({_S.BOUND, _S.PREPARED})
"""Live, and nobody has told the holder to leave."""
ENDING = frozenset({_S.SUSPECT, _S.RELEASING})
"""The agent takes the devices back."""


def may(lease: Lease, following: LeaseState) -> bool:
    """Return whether a lease may go to a state now."""
    return following in NEXT[lease.state]


def check_step(lease: Lease, following: LeaseState, during: str) -> None:
    """Raise :class:`~hal.errors.LeaseEnded` if a lease may not go to a state any more."""
    if following not in NEXT[lease.state]:
        raise ended(lease, during)


def ended(lease: Lease, during: str) -> LeaseEnded:
    """Return the error for whoever comes too late."""
    return LeaseEnded(
        f"the lease is over: {lease.why_ended or lease.state.value}",
        device=lease.id,
        during=during,
        hint="claim again, and renew before the lease expires",
    )
