"""Streams and events of a mock GPU.

Work given to a stream waits there until somebody synchronises, asks, or uses the default stream; then it runs in order,
and streams take turns in an order that the machine's seed gives. That is as late and as shuffled as hardware may be,
and the same every time: a program that forgot to synchronise is wrong here too, not only on Tuesdays.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hal.errors import DeviceError, InvalidArgument
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal_mocks.gpu_handle import MockGpuHandle

RUNNING = threading.RLock()
"""One for all devices of a process: a stream may wait for another device's event, and its work then runs from here."""


class MockStream:
    """A queue of work that runs in order."""

    def __init__(self, handle: MockGpuHandle) -> None:
        self._handle = handle
        self._work: deque[Callable[[], object]] = deque()

    @property
    def done(self) -> bool:
        """True if nothing is left to do. Asking runs one piece."""
        self._handle._enter_work("stream.done")
        self.step()
        return not self._work

    def record(self, *, deadline: Deadline | None = None) -> MockEvent:
        """Return an event at the end of the queue."""
        self._handle._enter_work("record", deadline)
        event = MockEvent(self)
        self.push(event.mark)
        return event

    def wait(self, event: Any, *, deadline: Deadline | None = None) -> None:
        """Let later work wait for an event."""
        self._handle._enter_work("wait", deadline)
        if not isinstance(event, MockEvent):
            raise InvalidArgument(
                f"{type(event).__name__} is no event of a mock GPU",
                device=self._handle._id,
                during="wait",
                hint="stream.record()",
            )
        if event.at is None:
            self.push(event.reach)

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Run what is left."""
        self._handle._enter_work("synchronize", deadline)
        self.run(deadline)

    def push(self, work: Callable[[], object]) -> None:
        """Add a piece of work."""
        with RUNNING:
            self._work.append(work)
            if self not in self._handle._pending:
                self._handle._pending.append(self)

    def step(self) -> None:
        """Run one piece of work, if there is one."""
        with RUNNING:
            if self._work:
                work = self._work.popleft()
                try:
                    work()
                except DeviceError as error:
                    self._handle._fail(error)
                    raise
            if not self._work and self in self._handle._pending:
                self._handle._pending.remove(self)

    def run(self, deadline: Deadline | None, until: MockEvent | None = None) -> None:
        """Run until nothing is left, or an event is reached; what is not run by the deadline stays."""
        with RUNNING:
            while self._work and (until is None or until.at is None):
                if deadline is not None:
                    deadline.check(device=self._handle._id, during="synchronize")
                self.step()

    def drop(self) -> None:
        """Give up what is left."""
        with RUNNING:
            self._work.clear()

    def __enter__(self) -> Self:
        # The array namespace computes at once, so what the stream has before must be done first.
        self.synchronize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing of the array namespace is left to do."""


class MockEvent:
    """A point in a stream; ``at`` is the machine's time at which it was reached."""

    __slots__ = ("_stream", "at")

    def __init__(self, stream: MockStream) -> None:
        self._stream = stream
        self.at: float | None = None

    @property
    def done(self) -> bool:
        """True once reached. Asking runs one piece of the stream's work."""
        self._stream._handle._enter_work("event.done")
        if self.at is None:
            self._stream.step()
        return self.at is not None

    def mark(self) -> None:
        """Note the time (the stream's side)."""
        self.at = self._stream._handle._machine.clock.now()

    def reach(self) -> None:
        """Run the stream up to here (the side of a stream that waits)."""
        self._stream.run(None, until=self)
        if self.at is None:
            handle = self._stream._handle
            raise handle._trouble or InvalidArgument(
                "the stream that was waited for was given up", device=handle._id, during="wait", hint="open it again"
            )

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Run the stream up to here."""
        self._stream._handle._enter_work("event.synchronize", deadline)
        self._stream.run(deadline, until=self)

    def elapsed_seconds(self, earlier: Any) -> float:
        """Return the machine's time between two events."""
        if self.at is None or not isinstance(earlier, MockEvent) or earlier.at is None:
            raise InvalidArgument(
                "both events must be done",
                device=self._stream._handle._id,
                during="elapsed_seconds",
                hint="event.synchronize()",
            )
        return self.at - earlier.at
