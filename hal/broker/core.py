"""The decisions: ``decide(state, command, now)`` returns records and an answer, and changes nothing.

What a command asks is in :mod:`hal.broker.command`, what is written down in :mod:`hal.broker.record`, which states a
lease goes through in :mod:`hal.broker.lifecycle`, and how the queue moves in :mod:`hal.broker.decisions.queue`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.decisions import claims, devices, leases, queue, tenants
from hal.broker.decisions.devices import AGENT
from hal.broker.state import State

__all__ = ["AGENT", "Decision", "decide"]

Decision = tuple[Sequence[r.AnyRecord], c.Answer]


def decide(state: State, command: c.AnyCommand, now: float) -> Decision:
    """Return what to write down, and the answer that holds once it is written.

    Raises :class:`~hal.errors.ClaimError`, :class:`~hal.errors.LeaseNotFound`, :class:`~hal.errors.LeaseEnded` and
    :class:`~hal.errors.StaleFence` for commands that make no sense in this state.
    """
    with state.purse:
        return _DECIDE[type(command)](state, command, now)


_DECIDE: dict[type, Callable[[State, Any, float], Decision]] = {
    c.Begin: devices.begin,
    c.Observe: devices.observe,
    c.RepairDevice: devices.repair,
    c.SetCordon: devices.cordon,
    c.LiftCordon: devices.lift,
    c.ClaimDevices: claims.claim,
    c.Resize: claims.resize,
    c.MarkPrepared: leases.mark_prepared,
    c.Renew: leases.renew,
    c.Release: leases.release,
    c.ProveReleased: leases.prove_released,
    c.ProveShrunk: leases.prove_shrunk,
    c.ProveFreed: leases.prove_freed,
    c.Expire: leases.expire,
    c.Schedule: queue.schedule,
    c.SetTenant: tenants.set_tenant,
    c.RemoveTenant: tenants.remove_tenant,
}
