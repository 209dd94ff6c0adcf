"""Calling code that is not ours: whatever it raises and however long it takes, the caller goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from hal.interfaces.deadline import Deadline

T = TypeVar("T")


class Call(Generic[T]):
    """A call in a thread of its own. After the deadline it is abandoned: the thread is a daemon and holds nothing.

    A thread cannot be killed, so a plugin that hangs keeps one thread until the process ends; a daemon runs drivers in
    processes of their own instead.
    """

    __slots__ = ("_done", "error", "finished", "seconds", "value")

    def __init__(self, work: Callable[[], T], name: str) -> None:
        import threading
        import time

        self.value: T | None = None
        self.error: BaseException | None = None
        self.finished = False
        self.seconds = 0.0
        self._done = threading.Event()

        def run() -> None:
            start = time.monotonic()
            try:
                self.value = work()
            except BaseException as error:  # a guard: SystemExit from a plugin is the plugin's failure, too
                self.error = error
            self.seconds = time.monotonic() - start
            self.finished = True
            self._done.set()

        threading.Thread(target=run, name=f"hal-guard-{name}", daemon=True).start()

    def join(self, deadline: Deadline) -> bool:
        """Wait until it is finished or the deadline has passed; say which."""
        return self._done.wait(deadline.timeout)


def describe(error: BaseException) -> str:
    """Return an error as one line, with its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
