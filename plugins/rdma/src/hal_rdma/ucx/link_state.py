"""The state of one side of a connection, and how it breaks: what runs, what fails first, what is flushed."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any

from hal.errors import FlushedError, TransferError
from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_rdma.ucx.operations import Request
from hal_rdma.ucx.targets import Targets
from hal_rdma.ucx.worker import Worker

if TYPE_CHECKING:
    from hal_rdma.ucx.transport import UcxTransport

CREDIT, ARRIVED, ASK, ANSWER, REVOKE, REVOKED, BYE, BYE_TOO, BROKEN, CHANGE, CHANGED = range(1, 12)
"""Kinds of control messages: a kind, a number, and what comes with it (a key)."""

CONTROL = struct.Struct("<BQ")
CONTROL_TAG, DATA_TAG = 1 << 56, 2 << 56
TOKEN_BITS = 56

Ended = list[tuple[Request, Any, BaseException | None]]


class LinkState:
    """What a link has under way; ``lock`` orders the user's thread and the one that makes progress."""

    def __init__(self, transport: UcxTransport, token: int, rnr_timeout_seconds: float) -> None:
        self.transport = transport
        self.device = transport.device
        self.token = token
        self.rnr_timeout_seconds = rnr_timeout_seconds
        self.lock = Lock()
        self.worker = Worker(transport.context)
        self.state = ConnectionState.INIT
        self.error: BaseException | None = None
        self.targets = Targets()
        self.pending: list[Request] = []
        self.sends: deque[tuple[memoryview, Request, float]] = deque()
        self.sent: deque[Request] = deque()
        self.receives: deque[tuple[memoryview, Request]] = deque()
        self.credits: deque[int] = deque()
        self.watchers = 0
        self.posted = 0
        self.quiet = False
        """True while all that was asked for was copied: then there is nothing to flush."""
        self.out_bytes = 0
        self.in_bytes = 0
        self.changes: dict[int, Request] = {}
        self._ended: Ended = []
        self._outgoing: list[tuple[int, Any]] = []
        self._answers: dict[int, bool] = {}
        self._asking = self._asked = 0
        self._revoked: set[int] = set()
        self._peer_gone = False
        self._failed: int | None = None
        self._destroyed = False
        self._control_tag = CONTROL_TAG | token
        self._out_control = self._out_data = 0
        self.data_tag = DATA_TAG | token

    def order(self) -> None:
        """Let no copy made from now on be seen before those made so far."""
        barrier = self.transport.barrier
        if barrier is not None:
            barrier()

    def tell(self, kind: int, number: int = 0, more: bytes = b"") -> None:
        """Send a control message; the lock is held."""
        if self.worker.ep is None or self._peer_gone:
            return
        told = CONTROL.pack(kind, number) + more
        handle = self.worker.send(self.worker.library.address_of(told), len(told), self._out_control)
        if handle > 0:
            self._outgoing.append((handle, told))

    # Errors

    def break_(self, error: BaseException, first: Request | None = None, *, tell: bool = True) -> None:
        """Move into the error state: ``first`` fails with ``error``, everything else is flushed. The lock is held."""
        if first is not None:
            self._ended.append((first, None, error if self.error is None else self.flushed(first.step)))
        if self.state in (ConnectionState.ERROR, ConnectionState.RESET):
            return
        self.state = ConnectionState.ERROR
        self.quiet = False
        self.error = error
        self.targets.clear()
        if tell:
            self.tell(BROKEN, getattr(error, "code", None) or 0)
        self._flush_all(first)

    def _flush_all(self, first: Request | None = None) -> None:
        for _, request in self.receives:
            self.worker.cancel(request.handle)
        waiting: Iterable[Request] = [
            *self.pending,
            *self.changes.values(),
            *(request for _, request, _ in self.sends),
            *self.sent,
            *(request for _, request in self.receives),
        ]
        for request in waiting:
            if request is not first:
                self._ended.append((request, None, self.flushed(request.step)))
            if request.handle:
                self._outgoing.append((request.handle, request.keep))
        for queue in (self.pending, self.changes, self.sends, self.sent, self.receives):
            queue.clear()

    def lose(self, why: str) -> None:
        """The peer's process is gone. Any thread."""
        with self.lock:
            if self._destroyed:
                return
            self._peer_gone = True
            self.break_(self.transfer_error("use", why))
            ended, self._ended = self._ended, []
        settle(ended)

    def refuse(self, error: BaseException) -> None:
        """Break because of what the user's side found, such as a wrong key."""
        with self.lock:
            self.break_(error)
            ended, self._ended = self._ended, []
        settle(ended)

    def transfer_error(self, step: str, why: str, code: int = CompletionCode.RETRY_EXCEEDED) -> TransferError:
        """Return the error for what came of a transfer."""
        return TransferError(
            why,
            device=self.device,
            during=step,
            hint="connect again with fresh addresses, once both sides run",
            code=code,
        )

    def failure(self, step: str, status: int) -> TransferError:
        """Return the error for a status of UCX's."""
        return self.transfer_error(step, f"UCX: {self.worker.library.describe(status)}", CompletionCode.RETRY_EXCEEDED)

    def flushed(self, step: str) -> FlushedError:
        """Return the error of what was posted on a broken connection."""
        why = f" ({self.error})" if self.error is not None else ""
        return FlushedError(
            f"the connection was already in error{why}",
            device=self.device,
            during=step,
            hint="connect again with a new endpoint",
            code=CompletionCode.FLUSHED,
        )


def settle(ended: Ended) -> None:
    """Complete operations, with no lock held: whoever waits may call back at once."""
    for request, value, error in ended:
        if error is None:
            request.succeed(value)
        else:
            request.fail(error)
