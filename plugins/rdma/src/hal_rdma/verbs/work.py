"""Operations under way on a queue pair: whoever looks at one lets the queue progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast

from hal.errors import FlushedError, RemoteAccessError, TransferError
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import CompletionCode

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline
    from hal_rdma.verbs.queue import WorkQueue

_settled = cast("Callable[[object], bool]", Operation.__dict__["done"].fget)

_MEANING = {
    1: ("a message was longer than the buffer for it", "post larger receives"),
    2: ("the queue pair refused the request", "report a bug: the NIC says LOC_QP_OP_ERR"),
    4: ("a local buffer is not registered for this", "keep the buffer alive until the operation is done"),
    5: ("flushed: the connection was already in error", "connect again; the connection's error says what broke it"),
    8: ("the responder's answer makes no sense", "look at the NIC's firmware"),
    9: ("the target found the request invalid", "a message longer than its receive, or a verb it does not allow"),
    10: ("the target refused key, range or right", "exchange fresh keys; check bounds and rights"),
    11: ("the target failed at it", "look at the health of the target's NIC"),
    12: ("the other side does not answer", "its process or endpoint is gone, or the path is cut: connect again"),
    13: ("the other side posted no receive in time", "post receives earlier, or give a longer rnr_timeout_seconds"),
}
"""``ibv_wc_status`` in words, and what to try."""


def error_of(status: int, device: str, step: str) -> TransferError:
    """Return the error that a completion's status amounts to."""
    what, hint = _MEANING.get(status, (f"completed with status {status}", "connect again"))
    kind: type[TransferError] = TransferError
    if status == CompletionCode.REMOTE_ACCESS:
        kind = RemoteAccessError
    elif status == CompletionCode.FLUSHED:
        kind = FlushedError
    return kind(what, device=device, during=step, hint=hint, code=status)


class WorkRequest(Operation[Any]):
    """One posted request. ``finish`` makes the result out of a completion's byte count; ``keep`` holds what the NIC
    uses until then: the buffer, a registration of its own. A read or an atomic ``is_answered``: it brings bytes back.
    """

    __slots__ = (
        "_queue", "expires_at", "finish", "is_answered", "is_receive", "keep", "posted_at", "registration",
        "size_bytes",
    )  # fmt: skip

    def __init__(self, queue: WorkQueue, step: str, *, is_receive: bool = False) -> None:
        super().__init__(queue.device, step)
        self._queue = queue
        self.is_receive = is_receive
        self.is_answered = False
        self.finish: Callable[[int], Any] | None = None
        self.keep: object = None
        self.registration: Any = None
        self.size_bytes = 0
        self.posted_at = time.monotonic()
        self.expires_at = float("inf")

    @property
    def settled(self) -> bool:
        """True once there is a result or an error; does not look at the queue."""
        return _settled(self)

    @property
    def done(self) -> bool:
        """True once there is a result or an error; looking polls the completion queue."""
        # The base class looks while it holds its lock, and settling from here would take that lock again.
        if not self.settled and not self._lock.locked():
            self._queue.progress()
        return self.settled

    def wait(self, deadline: Deadline | None = None) -> Any:
        """Poll for a moment, because most answers come within microseconds; then sleep until the NIC has news."""
        self._queue.wait_for(self, deadline)
        return super().wait(deadline)

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have the transport's thread look after the queue, and be called from there."""
        self._queue.progress()
        super().on_done(callback)
        if not self.settled:
            self._queue.have_watched()

    def __await__(self) -> Generator[Any, None, Any]:
        self._queue.progress()
        return super().__await__()
