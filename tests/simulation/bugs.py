"""Eight mistakes that a broker could make, each planted in the production code for as long as a context lasts.

A checker that finds none of them checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from hal.agent.prepare import Agent
from hal.broker import record as r
from hal.broker.decisions import claims, queue
from hal.broker.index import DeviceIndex
from hal.broker.ledger import Ledger
from hal.broker.state import State


@contextmanager
def _patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def dropped_compare() -> AbstractContextManager[None]:
    """What is kept for a claim is given to it without a look whether the one before has let go."""
    return _patched(queue, "is_open", lambda is_open: lambda state, device: True)


@contextmanager
def free_on_expiry() -> Iterator[None]:
    """An expired lease is over at once: expiry is taken for proof."""

    def make(expire: Any) -> Any:
        def hasty(state: State, command: Any, now: float) -> Any:
            records, answer = expire(state, command, now)
            more: list[Any] = []
            for record in records:
                more.append(record)
                if isinstance(record, r.LeaseSuspected):
                    lease = state.leases[record.lease]
                    freed = tuple(lease.slot_of(device) for device in lease.devices)
                    more.append(r.LeaseEnded(at=now, lease=lease.id, freed=freed, proof="it expired"))
            return more, answer

        return hasty

    from hal.broker import command as c
    from hal.broker import core

    before = core._DECIDE[c.Expire]
    core._DECIDE[c.Expire] = make(before)
    try:
        yield
    finally:
        core._DECIDE[c.Expire] = before


@contextmanager
def reused_fence() -> Iterator[None]:
    """A new holder gets the fence of the one before."""

    def make(lease_of: Any) -> Any:
        def tired(*rest: Any) -> Any:
            lease = lease_of(*rest)
            return msgspec.structs.replace(lease, fence=lease.fence - 1)

        return tired

    with _patched(claims, "lease_of", make), _patched(queue, "lease_of", make):
        yield


def skipped_write() -> AbstractContextManager[None]:
    """A grant is made and told, and its record is forgotten."""

    def make(append: Any) -> Any:
        def forgetful(self: Ledger, records: Any, before: int, trail: Any) -> None:
            if any(isinstance(record, r.LeaseGranted) for record in records):
                self.state.revision -= len(records)
                return
            append(self, records, before, trail)

        return forgetful

    return _patched(Ledger, "_append", make)


def double_release() -> AbstractContextManager[None]:
    """A device whose holder is not proven to have let go is given back all the same."""

    def make(let_go: Any) -> Any:
        def generous(self: State, lease: Any, devices: Any, fenced: Any, *, leases: int) -> None:
            let_go(self, lease, devices, {}, leases=leases)

        return generous

    return _patched(State, "_let_go", make)


@contextmanager
def lost_wake_up() -> Iterator[None]:
    """Room that opened is told to nobody."""

    def deaf(give: Any) -> Any:
        def quiet(self: DeviceIndex, lease: str, devices: Any) -> None:
            before = self.openings
            give(self, lease, devices)
            self.openings = before

        return quiet

    def idle(serve: Any) -> Any:
        return lambda self: None

    with _patched(DeviceIndex, "_give", deaf), _patched(Ledger, "serve_queue", idle):
        yield


def quota_read_too_early() -> AbstractContextManager[None]:
    """What a quota said to the claim before is taken for what it says now."""

    def make(over_quota: Any) -> Any:
        told: dict[str, Any] = {}

        def stale(state: State, tenant: str, devices: Any) -> Any:
            before = told.get(tenant)
            told[tenant] = over_quota(state, tenant, devices)
            return before

        return stale

    return _patched(claims, "over_quota", make)


def unprepared_handed_on() -> AbstractContextManager[None]:
    """The agent gives its word for a device that it never shut."""

    def make(shut: Any) -> Any:
        calls = [0]

        def careless(self: Agent, *rest: Any) -> Any:
            calls[0] += 1
            return None if calls[0] % 3 == 0 else shut(self, *rest)

        return careless

    return _patched(Agent, "_shut", make)


BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "dropped-compare": dropped_compare,
    "free-on-expiry": free_on_expiry,
    "reused-fence": reused_fence,
    "skipped-write": skipped_write,
    "double-release": double_release,
    "lost-wake-up": lost_wake_up,
    "quota-read-too-early": quota_read_too_early,
    "unprepared-handed-on": unprepared_handed_on,
}
