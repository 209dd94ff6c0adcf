"""Calling code that is not ours: whatever it raises and however long it takes, the caller goes on."""

from __future__ import annotations

import time
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Generic, TypeVar

from hal.interfaces.deadline import Deadline

T = TypeVar("T")


class Call(Generic[T]):
    """A call in a thread of its own. After the deadline it is abandoned: the thread holds nothing of ours.

    A thread cannot be killed, so a plugin that hangs keeps one thread until the process ends, and does not keep the
    process from ending; a daemon runs drivers in processes of their own instead. The thread is a bare one: every claim
    makes several, and :mod:`threading` would take three times as long to start it.
    """

    __slots__ = ("_done", "error", "finished", "name", "seconds", "value")

    def __init__(self, work: Callable[[], T], name: str) -> None:
        self.value: T | None = None
        self.error: BaseException | None = None
        self.finished = False
        self.seconds = 0.0
        self.name = name
        self._done = allocate_lock()
        self._done.acquire()

        def run() -> None:
            start = time.monotonic()
            try:
                self.value = work()
            except BaseException as error:  # a guard: SystemExit from a plugin is the plugin's failure, too
                self.error = error
            self.seconds = time.monotonic() - start
            self.finished = True
            self._done.release()

        start_new_thread(run, ())

    def join(self, deadline: Deadline) -> bool:
        """Wait until it is finished or the deadline has passed; say which."""
        timeout = deadline.timeout
        if not self._done.acquire(timeout=-1 if timeout is None else timeout):
            return False
        self._done.release()  # for whoever asks again
        return True


def describe(error: BaseException) -> str:
    """Return an error as one line, with its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
