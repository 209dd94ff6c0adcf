"""Two-sided messages and late work of one mock connection: what is posted, staged or under way."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal_mocks.rnic_files import (
    ARRIVED,
    INLINE_BYTES,
    POSTED,
    QUEUE_DEPTH,
    SLOT_BYTES,
    SLOT_HEAD_BYTES,
    SharedFile,
)
from hal_mocks.rnic_memory import Target

if TYPE_CHECKING:
    from collections.abc import Generator

SPIN_SECONDS = 20e-6


class WorkRequest(Operation[Any]):
    """An operation under way on a connection. Whoever looks at it or waits for it lets the connection progress."""

    __slots__ = ("_poll",)

    def __init__(self, device: str, step: str, poll: Callable[[], object]) -> None:
        super().__init__(device, step)
        self._poll = poll

    @property
    def done(self) -> bool:
        """True once there is a result or an error; looking polls the completion queue."""
        # The base class looks while it holds its lock, and settling from here would take that lock again.
        if not self._settled() and not self._lock.locked():
            self._poll()
        return self._settled()

    def _settled(self) -> bool:
        return Operation.done.__get__(self)  # type: ignore[no-any-return]

    def on_done(self, callback: Callable[[], None]) -> None:
        """Poll once, then as any operation."""
        self._poll()
        super().on_done(callback)

    def wait(self, deadline: Deadline | None = None) -> Any:
        """Poll for a moment, because most answers come within microseconds; then sleep."""
        until = time.perf_counter() + SPIN_SECONDS
        while not self.done and time.perf_counter() < until:
            pass
        return super().wait(deadline)

    def __await__(self) -> Generator[Any, None, Any]:
        self._poll()
        return super().__await__()


class Staged(NamedTuple):
    """A put that is not visible yet (``data``), or a get that has not landed yet (``into``)."""

    target: Target
    offset: int
    data: memoryview | None
    into: memoryview | None
    request: WorkRequest | None


class Receive(NamedTuple):
    """A posted buffer and who waits for it."""

    buffer: memoryview
    request: WorkRequest


class Send(NamedTuple):
    """A message that waits for the peer to post a receive, until ``expires_at`` on the monotonic clock."""

    message: memoryview
    request: WorkRequest
    expires_at: float


class Lateness:
    """Decides by seed which work is late, and in which order late work happens.

    Of a connection's first 128 requests one in eight is late, so that a short test meets late ones; of the others one
    in 128, so that a long run measures memory and not lateness. Half as many drive what is staged.
    """

    LATE, DRIVE = 1, 2
    LENGTH, EARLY = 4096, 128

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)
        often, seldom = (bytes([self.LATE] * n + [self.DRIVE] * (n // 2)).ljust(256, b"\0") for n in (32, 2))
        self.pattern = self._random.randbytes(self.EARLY).translate(often)
        self.pattern += self._random.randbytes(self.LENGTH - self.EARLY).translate(seldom)

    def turns(self) -> Callable[[], int]:
        """Return what says for one request after the other whether it is late."""
        return cycle(self.pattern).__next__

    def shuffle(self, work: list[Staged]) -> None:
        """Put late work into some order: nothing promised one."""
        self._random.shuffle(work)


class Mailbox:
    """The receive queue of one queue pair, in its page's body: slots of a head (capacity, length) and 4080 bytes.

    The owner posts, the peer delivers; each writes only its own count, so no lock is needed between processes.
    Longer messages travel in a file beside the page.
    """

    def __init__(self, page: SharedFile) -> None:
        self._page = page
        self._words = page.words
        self._heads = page.body.cast("Q")
        self._next = 0

    @property
    def full(self) -> bool:
        """True if no further receive can be posted."""
        return bool(self._words[POSTED] - self._next >= QUEUE_DEPTH)

    @property
    def has_mail(self) -> bool:
        """True if a message has arrived that was not taken."""
        return bool(self._words[ARRIVED] > self._next)

    @property
    def is_ready(self) -> bool:
        """True if a receive is posted that no message has used (the peer's question)."""
        return bool(self._words[POSTED] > self._words[ARRIVED])

    def post(self, capacity_bytes: int) -> None:
        """Offer a buffer."""
        posted = self._words[POSTED]
        self._heads[posted % QUEUE_DEPTH * (SLOT_BYTES // 8)] = capacity_bytes
        self._words[POSTED] = posted + 1

    def deliver(self, message: memoryview) -> bool:
        """Use the oldest posted receive (the peer's side); False if the message is too long for it, which breaks it."""
        number = self._words[ARRIVED]
        at = number % QUEUE_DEPTH * SLOT_BYTES
        fits = message.nbytes <= self._heads[at // 8]
        self._heads[at // 8 + 1] = message.nbytes
        if fits and message.nbytes <= INLINE_BYTES:
            self._page.body[at + SLOT_HEAD_BYTES : at + SLOT_HEAD_BYTES + message.nbytes] = message
        elif fits:
            self._page.path.with_suffix(f".{number}").write_bytes(message)
        self._words[ARRIVED] = number + 1
        return fits

    def take(self, buffer: memoryview) -> int | None:
        """Move the oldest message into its buffer; its length, or None if it was longer than the buffer."""
        number = self._next
        at = number % QUEUE_DEPTH * SLOT_BYTES
        length: int = self._heads[at // 8 + 1]
        self._next = number + 1
        if length > buffer.nbytes:
            return None
        if length <= INLINE_BYTES:
            buffer[:length] = self._page.body[at + SLOT_HEAD_BYTES : at + SLOT_HEAD_BYTES + length]
        else:
            path = self._page.path.with_suffix(f".{number}")
            with path.open("rb") as spilled:
                spilled.readinto(buffer[:length])
            path.unlink()
        return length


class Queues:
    """What a connection has under way; ``lock`` orders the user's thread and the engine's."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.staged: list[Staged] = []
        self.receives: deque[Receive] = deque()
        self.sends: deque[Send] = deque()

    def requests(self) -> list[WorkRequest]:
        """Take out everything that has not completed."""
        with self.lock:
            waiting = [work.request for work in self.staged if work.request is not None]
            waiting += [send.request for send in self.sends]
            waiting += [receive.request for receive in self.receives]
            self.staged.clear()
            self.sends.clear()
            self.receives.clear()
        return waiting
