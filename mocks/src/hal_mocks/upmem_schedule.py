"""Tasklets of one unit, interleaved by a seed: exactly one runs at a time, and who is next is drawn, not raced for.

Each tasklet that has to wait somewhere keeps a thread of its own; one that runs through shares the thread of the one
before. A thread goes on only with the baton in its hand, so the same seed gives the same interleaving on every machine.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

INTERRUPT_EVERY = 256
"""At every so many scheduling points the schedule asks whether somebody wants it to stop."""


class Stopped(BaseException):
    """Unwinds a tasklet whose unit has stopped. Not an Exception, so that a kernel does not swallow it."""


class Crash(BaseException):
    """What a unit stopped for: the tasklet (None for a deadlock) and the words. A kernel does not swallow it either."""

    def __init__(self, tasklet: int | None, detail: str) -> None:
        super().__init__(detail)
        self.tasklet = tasklet
        self.detail = detail


class Schedule:
    """One run of one unit."""

    def __init__(
        self, tasklets: int, seed: str, body: Callable[[int], None], interrupt: Callable[[], None] | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.aborted = False
        self.error: BaseException | None = None
        # Rare switches find races over long stretches, frequent ones those within a few instructions.
        self._eagerness = self.random.choice((0.05, 0.3, 0.8))
        self._body = body
        self._interrupt = interrupt
        self._points = 0
        self._ready = list(range(tasklets))
        self._blocked: dict[int, str] = {}
        self._started: set[int] = set()
        self._parked: set[int] = set()
        self._batons = [threading.Lock() for _ in range(tasklets)]
        self._finished = threading.Lock()
        for lock in (*self._batons, self._finished):
            lock.acquire()

    def run(self) -> None:
        """Run all tasklets to their end; raises what stopped them: :class:`Crash`, or what ``interrupt`` raised."""
        self._work(self._start(self._draw()))
        self._finished.acquire()
        if self.error is not None:
            raise self.error

    def point(self, tasklet: int) -> None:
        """A place where another tasklet may go on instead."""
        if self.aborted:
            raise Stopped
        self._points += 1
        if self._interrupt is not None and self._points % INTERRUPT_EVERY == 0:
            try:
                self._interrupt()
            except Exception as error:  # whatever it is, it is what run() raises
                self._abort(error)
                raise Stopped from None
        if self.random.random() < self._eagerness:
            chosen = self._draw()
            if chosen != tasklet:
                self._switch(tasklet, chosen)

    def block(self, tasklet: int, why: str) -> None:
        """Let others run until somebody calls :meth:`unblock`; if nobody can, that is a deadlock."""
        self._ready.remove(tasklet)
        self._blocked[tasklet] = why
        if not self._ready:
            self._abort(self._deadlock())
            raise Stopped
        self._switch(tasklet, self._draw())

    def unblock(self, tasklet: int) -> None:
        """Let a blocked tasklet go on when it is drawn."""
        del self._blocked[tasklet]
        self._ready.append(tasklet)

    def _draw(self) -> int:
        return self._ready[int(self.random.random() * len(self._ready))]

    def _start(self, tasklet: int) -> int:
        self._started.add(tasklet)
        return tasklet

    def _switch(self, tasklet: int, chosen: int) -> None:
        self._parked.add(tasklet)
        if chosen in self._started:
            self._parked.discard(chosen)
            self._batons[chosen].release()
        else:
            self._start(chosen)
            threading.Thread(target=self._work, args=(chosen,), name=f"tasklet-{chosen}", daemon=True).start()
        self._batons[tasklet].acquire()
        if self.aborted:
            raise Stopped

    def _work(self, tasklet: int) -> None:
        following: int | None = tasklet
        while following is not None:
            try:
                self._body(following)
            except Stopped:
                pass
            except (Exception, Crash) as error:  # a kernel's mistake stops its unit and is reported by run()
                crash = error if isinstance(error, Crash) else Crash(following, f"{type(error).__name__}: {error}")
                crash.tasklet = following
                crash.__cause__ = None if crash is error else error
                self._abort(crash)
            following = self._after(following)

    def _after(self, ended: int) -> int | None:
        """Return the next tasklet if this thread is to run it, or hand the baton on and return None."""
        if ended in self._ready:
            self._ready.remove(ended)
        self._blocked.pop(ended, None)
        if not self.aborted and not self._ready and self._blocked:
            self._abort(self._deadlock())
        if self.aborted:
            if self._parked:
                self._batons[self._parked.pop()].release()
            else:
                self._finished.release()
            return None
        if not self._ready:
            self._finished.release()
            return None
        chosen = self._draw()
        if chosen not in self._started:
            return self._start(chosen)
        self._parked.discard(chosen)
        self._batons[chosen].release()
        return None

    def _abort(self, error: BaseException) -> None:
        if not self.aborted:
            self.aborted = True
            self.error = error

    def _deadlock(self) -> Crash:
        who = ", ".join(f"tasklet {tasklet} waits for {why}" for tasklet, why in sorted(self._blocked.items()))
        return Crash(None, f"deadlock: {who}")
