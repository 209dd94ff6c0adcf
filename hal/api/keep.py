"""Keeping a lease: it is renewed in the background, and its holder is told when it is asked to leave."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from hal.api.held import HeldLease
from hal.api.surface import Broker
from hal.errors import HalError, LeaseEnded, LeaseNotFound
from hal.interfaces.deadline import Deadline
from hal.model.event import EventType
from hal.model.lease import Lease, LeaseState

_LOG = logging.getLogger(__name__)
_QUIET = frozenset((EventType.RENEWED, EventType.GRANTED, EventType.PREPARED))
_RETRY_SECONDS = 0.5
_LONGEST_SECONDS = 20.0


class Keeping:
    """Renews a lease at a third of its time to live, and calls ``on_revoke`` when its holder is to leave, or has to.

    ``on_revoke`` gets the lease as it is then (``notice``, ``leave_by``, ``leaving``; its state tells whether it is
    over already), in the thread of this keeper, once for each notice. As a context manager it ends at the end; the
    lease goes on.
    """

    def __init__(
        self,
        held: HeldLease,
        broker: Broker,
        on_revoke: Callable[[Lease], None] | None = None,
        *,
        renew: bool = True,
    ) -> None:
        self._held = held
        self._broker = broker
        self._on_revoke = on_revoke
        self._renew = renew
        self._stopped = threading.Event()
        self._told = ""
        self._since = broker.status().revision
        self._thread = threading.Thread(target=self._run, name=f"hal-keep-{held.id}", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the lease is over, as far as this keeper knows."""
        return self._held.lease.state is LeaseState.ENDED

    def stop(self, seconds: float = 5.0) -> None:
        """End; the lease goes on until it expires."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        self._guarded(self._look)
        while not self._stopped.is_set() and not self.over:
            self._guarded(self._watch)
            if self._renew and not self._stopped.is_set() and not self.over:
                self._guarded(self._again)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (LeaseEnded, LeaseNotFound) as error:
            self._ended(error.message)
        except HalError as error:  # nobody answers for the moment: what the lease still has of its time decides
            _LOG.warning("lease %s: %s", self._held.id, error)
            self._stopped.wait(_RETRY_SECONDS)

    def _watch(self) -> None:
        third = self._held.lease.ttl_seconds / 3
        deadline = Deadline.after(min(third, _LONGEST_SECONDS))
        for event in self._broker.watch(self._since, deadline):
            self._since = event.revision
            if self._stopped.is_set():
                return
            if event.subject == self._held.id and event.type not in _QUIET:
                self._look()
                if self.over:
                    return

    def _look(self) -> None:
        lease = self._broker.get(self._held.id).lease
        self._held.lease = lease
        if lease.state is LeaseState.DRAINING or lease.leaving:
            self._tell(lease, f"{lease.notice} {lease.leave_by} {lease.leaving}")

    def _again(self) -> None:
        self._held.renew()

    def _ended(self, why: str) -> None:
        from msgspec.structs import replace

        lease = self._held.lease
        if lease.state is not LeaseState.ENDED:
            self._held.lease = lease = replace(lease, state=LeaseState.ENDED, why_ended=lease.why_ended or why)
        self._tell(lease, "ended")

    def _tell(self, lease: Lease, what: str) -> None:
        if what == self._told or self._on_revoke is None or self._stopped.is_set():
            return
        self._told = what
        try:
            self._on_revoke(lease)
        except Exception:  # a guard: the holder's code must not end the renewals
            _LOG.exception("the callback of lease %s failed", lease.id)
