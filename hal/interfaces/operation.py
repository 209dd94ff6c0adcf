"""A slow verb under way: awaited by asyncio, or waited for by a thread."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hal.errors import DeadlineExceeded
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
_PENDING: Any = object()


class Operation(Generic[T]):
    """What every slow verb returns at once.

    ``await operation`` in asyncio and ``operation.wait(deadline)`` in a thread both give the result or raise the
    verb's error. Waiting too long raises :class:`~hal.errors.DeadlineExceeded` and leaves the operation running: its
    outcome is unknown until it says. It is awaitable, not a coroutine: ``asyncio.gather`` and ``asyncio.ensure_future``
    take it, ``asyncio.create_task`` does not. The driver's side calls :meth:`succeed`, :meth:`fail` and :meth:`report`.
    """

    __slots__ = ("_callbacks", "_error", "_lock", "_result", "device", "progress", "step")

    def __init__(self, device: str, step: str) -> None:
        self.device = device
        self.step = step
        self.progress: float | None = None
        self._result: Any = _PENDING
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] | None = None
        self._lock = allocate_lock()  # threading.Lock itself, without the import on the way of hal-probe

    @classmethod
    def completed(cls, value: T, device: str = "", step: str = "") -> Operation[T]:
        """Return an operation that is already done."""
        operation = cls(device, step)
        operation._result = value
        return operation

    @classmethod
    def failed(cls, error: BaseException, device: str = "", step: str = "") -> Operation[T]:
        """Return an operation that has already failed."""
        operation = cls(device, step)
        operation._error = error
        return operation

    @classmethod
    def spawn(cls, device: str, step: str, work: Callable[[Operation[T]], T]) -> Operation[T]:
        """Run ``work(operation)`` in a daemon thread and complete with what it returns or raises."""
        import threading

        operation = cls(device, step)

        def run() -> None:
            try:
                operation.succeed(work(operation))
            except BaseException as error:  # carried to whoever waits; nothing is swallowed
                operation.fail(error)

        threading.Thread(target=run, name=f"hal-{step}-{device}", daemon=True).start()
        return operation

    @property
    def done(self) -> bool:
        """True once there is a result or an error."""
        return self._result is not _PENDING or self._error is not None

    def succeed(self, value: T) -> None:
        """Complete with a value (the driver's side). A second completion is ignored."""
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        """Complete with an error (the driver's side). A second completion is ignored."""
        self._settle(_PENDING, error)

    def report(self, progress: float) -> None:
        """Say how far the work has come, from 0 to 1 (the driver's side)."""
        self.progress = progress

    def _settle(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if self.done:
                return
            self._result, self._error = value, error
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call back once, from the completing thread; at once if it is already done."""
        with self._lock:
            if not self.done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback()

    def _outcome(self) -> T:
        if self._error is not None:
            raise self._error
        result: T = self._result
        return result

    def wait(self, deadline: Deadline | None = None) -> T:
        """Block until done and return the result; the synchronous face."""
        if not self.done:
            import threading

            finished = threading.Event()
            self.on_done(finished.set)
            if not finished.wait(None if deadline is None else deadline.timeout):
                raise DeadlineExceeded(
                    "not finished in time; the outcome is unknown",
                    device=self.device,
                    during=self.step,
                    hint="wait again, or look at the device's health",
                )
        return self._outcome()

    def error(self) -> BaseException | None:
        """Return the error of a failed operation, None if it succeeded or still runs."""
        return self._error

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done:
            import asyncio

            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()

            def settle() -> None:
                if not future.done():
                    future.set_result(None)

            def wake() -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(settle)

            self.on_done(wake)
            yield from future
        return self._outcome()

    def __repr__(self) -> str:
        state = "running" if not self.done else ("failed" if self._error is not None else "done")
        return f"<Operation {self.step} on {self.device}: {state}>"
