"""``hal claim --queue``: wait for a place, and say on standard error how it stands."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from hal.cli.asking import now_of, open_any, when
from hal.errors import BrokerError, ClaimRefused, HalError, LeaseNotFound
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal.broker.command import Answer, Queued
    from hal.cli.asking import AnyBroker
    from hal.model.claim import Claim

_ASK_SECONDS = 2.0
_LOCAL_PAUSE_SECONDS = 0.3


def wait_in_queue(options: argparse.Namespace, wanted: Claim) -> str:
    """Claim, and return the lease's id once it is there; Ctrl-C takes the claim out of the queue.

    Without a server nobody else could give anything back while this process held the journal, so it looks in now and
    then, and lets go of it between.
    """
    from hal.api.client import Client
    from hal.broker.command import Granted

    line = Progress()
    with _Interrupts() as interrupts:
        try:
            with open_any(options) as broker:
                answer = broker.submit([wanted])[0]
                if _pending(wanted, answer):
                    line.show(answer, now_of(broker))
                while isinstance(broker, Client) and _pending(wanted, answer):
                    with interrupts.welcome():
                        answer = _asked(broker, wanted, Deadline.after(_ASK_SECONDS))
                    if _pending(wanted, answer):
                        line.show(answer, now_of(broker))
            while _pending(wanted, answer):
                with interrupts.welcome():
                    time.sleep(_LOCAL_PAUSE_SECONDS)
                with open_any(options) as broker:
                    answer = _asked(broker, wanted, Deadline.after(0.0))
                    if _pending(wanted, answer):
                        line.show(answer, now_of(broker))
        except KeyboardInterrupt:
            line.clear()
            with open_any(options) as broker:
                _leave(broker, wanted)
            raise
    line.clear()
    assert isinstance(answer, Granted)
    return answer.lease.id


class _Interrupts:
    """Ctrl-C is heard at once, and obeyed where nothing is half done: not while the journal is open here."""

    def __init__(self) -> None:
        self._asked = False
        self._welcome = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread may
            self._before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _heard(self, number: int, frame: object) -> None:
        self._asked = True
        if self._welcome:
            raise KeyboardInterrupt

    @contextmanager
    def welcome(self) -> Iterator[None]:
        """Let Ctrl-C break off what is done here."""
        self._welcome = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._welcome = False


def _asked(broker: AnyBroker, wanted: Claim, deadline: Deadline) -> Answer:
    try:
        return broker.wait_for(wanted.id, deadline)
    except LeaseNotFound as error:
        raise ClaimRefused(error.message, device=wanted.id, during="claim", hint="hal queue, hal events") from error


def _pending(wanted: Claim, answer: Answer) -> bool:
    """Whether it is worth asking again; raises for a no."""
    from hal.broker.command import Granted, Queued, Refused
    from hal.model.lease import LeaseState

    if isinstance(answer, Refused):
        raise ClaimRefused(answer.reason, device=wanted.id, during="claim", hint="hal explain, with the same words")
    if isinstance(answer, Queued):
        return True
    if isinstance(answer, Granted):
        return answer.lease.state is LeaseState.BOUND
    raise BrokerError("undecided: the search was given up", device=wanted.id, during="claim", hint="ask for less")


def _leave(broker: AnyBroker, wanted: Claim) -> None:
    try:
        broker.release(wanted.id)
        print(f"hal: stopped; {wanted.id} has left the queue", file=sys.stderr)
    except HalError as error:
        print(f"hal: {wanted.id} may still be in the queue: {error}", file=sys.stderr)


class Progress:
    """One line on standard error: over itself on a terminal, else a new one when something has changed."""

    def __init__(self) -> None:
        self._said = ""
        self._why = ""
        self._terminal = sys.stderr.isatty()

    def show(self, answer: Answer, now: float) -> None:
        """Say how it stands."""
        text = self._text(answer, now)
        if text == self._said:
            return
        self._said = text
        if self._terminal:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _text(self, answer: Answer, now: float) -> str:
        from hal.broker.command import Queued as Waits

        if not isinstance(answer, Waits) or answer.position == 0:
            return "hal: granted; the devices are being prepared"
        queued: Queued = answer
        self._why = queued.why or self._why  # who asks again is not always told again
        starts = "" if queued.starts_at is None else f", expected {when(queued.starts_at, now)}"
        return f"hal: position {queued.position} of the queue{starts}{f': {self._why}' if self._why else ''}"

    def clear(self) -> None:
        """Take the line away."""
        if self._terminal and self._said:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
