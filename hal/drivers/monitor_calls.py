"""Asking a driver in its own process: deadlines that hold, a new process for a lost one, none for a hopeless one."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_life import Stem
from hal.drivers.monitor_process import DIE_SECONDS, Kill, Nursery, Worker, how, kill
from hal.drivers.monitor_restarts import Restarts
from hal.drivers.monitor_wire import (
    ERROR,
    ITEM,
    VERBS,
    Broken,
    Failure,
    Hello,
    decoder,
    patient,
    question,
    raised,
    receive,
)
from hal.errors import DeadlineExceeded, DeviceError, DriverError, HalError
from hal.interfaces.deadline import Deadline

_LOG = logging.getLogger(__name__)
LONGEST_SECONDS = 600.0
"""No verb may take longer, whatever its caller says: a monitor that waits for ever watches nothing."""
_DOCTOR = "hal-probe doctor; report it to the plugin"


class Monitor:
    """The processes of one driver and the rules for them. Thread-safe; a driver is asked one verb at a time.

    What does not answer before its deadline is killed. What does not die is *abandoned*: it is never waited for, and
    no other process is started for this driver until it has gone after all. With a ``stem``, which has the same
    ``environ`` and ``user``, its nursery is forked from that. ``kill_worker`` and ``sleep`` are for tests.
    """

    def __init__(
        self,
        recipe: Recipe,
        restarts: Restarts,
        environ: Mapping[str, str],
        *,
        user: str | None = None,
        stem: Stem | None = None,
        kill_worker: Kill = kill,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.recipe = recipe
        self.name = recipe.name
        self.restarts = restarts
        self.environ = dict(environ)
        self.user = user
        self.stem = stem
        self.closed = False
        self._kill = kill_worker
        self._sleep = sleep
        self._lock = threading.Lock()
        self._nursery: Nursery | None = None
        self._worker: Worker | None = None
        self._hello = Hello(name=recipe.name, facets=())
        self._abandoned: tuple[Worker, str] | None = None

    # --- being there

    def start(self) -> None:
        """Let the nursery begin to import the plugin; does not wait for it."""
        with self._lock:
            if self._nursery is None and not self.closed:
                self._nursery = Nursery(self.recipe, self.environ, self.user, self.stem)

    def hello(self, deadline: Deadline) -> Hello:
        """Start the driver's process afresh and return what the driver says of itself."""
        deadline = _bounded(deadline)
        self._hold(None, "create", deadline)
        try:
            if self._worker is None:
                self._ready(None, "create", deadline)
            return self._hello
        finally:
            self._lock.release()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return None if self._worker is None else self._worker.pid

    def abandoned(self) -> str | None:
        """Say which process could not be killed and still lives, None if there is none."""
        found = self._abandoned
        if found is None or found[0].pidfd < 0:
            return None
        if found[0].ended():
            self._abandoned = None
            found[0].forget()
            return None
        return found[1]

    # --- asking

    def call(self, verb: str, arguments: tuple[Any, ...], deadline: Deadline, device: str | None = None) -> Any:
        """Return what the driver answers, or raise what it raised.

        Raises :class:`~hal.errors.DeadlineExceeded` if it did not answer and was killed, ``DeviceError`` (without a
        device ``DriverError``) if its process ended, with the signal.
        """
        deadline = _bounded(deadline)
        self._hold(device, verb, deadline)
        try:
            worker = self._worker or self._ready(device, verb, deadline)
            return self._ask(worker, verb, arguments, deadline, device)
        finally:
            self._lock.release()

    def _ask(
        self, worker: Worker, verb: str, arguments: tuple[Any, ...], deadline: Deadline, device: str | None
    ) -> Any:
        try:
            tag, body = worker.ask(question(verb, deadline.remaining_seconds, arguments), deadline)
        except TimeoutError:
            raise self._hung(worker, device, verb) from None
        except (Broken, OSError):
            raise self._crashed(worker, device, verb) from None
        self.restarts.good()
        if tag == ERROR:
            raise raised(decoder(Failure).decode(body))
        types = VERBS[verb]
        try:
            return decoder(types.answer if types.items is None else None).decode(body)
        except (msgspec.MsgspecError, ValueError) as error:
            raise _error(device, f"it gave what is no answer to {verb}: {error}", verb, _DOCTOR) from error

    def follow(
        self, verb: str, arguments: tuple[Any, ...], deadline: Deadline, device: str | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Begin a verb that takes long; yield ``(ITEM, item)`` and last ``(ANSWER, answer)``.

        It is begun when this returns. Others may ask the driver in the meantime.
        """
        deadline = _bounded(deadline)
        line, its_line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # items must not run together
        try:
            self._hold(device, verb, deadline)
            try:
                worker = self._worker or self._ready(device, verb, deadline)
                try:
                    socket.send_fds(worker.side, [b"s"], [its_line.fileno()])
                except OSError:
                    pass  # it has ended: the question finds that out
                self._ask(worker, verb, arguments, deadline, device)
            finally:
                self._lock.release()
        except BaseException:
            line.close()
            raise
        finally:
            its_line.close()
        return self._listen(patient(line), worker, verb, deadline, device)

    def _listen(
        self, line: socket.socket, worker: Worker, verb: str, deadline: Deadline, device: str | None
    ) -> Iterator[tuple[int, Any]]:
        with line:
            while True:
                try:
                    tag, body = receive(line, deadline)
                except TimeoutError:
                    if VERBS[verb].facet == "Reports":
                        return  # listening is over; nothing hangs because nothing happens
                    with self._lock:
                        error = self._hung(worker, device, verb)
                    raise error from None
                except (Broken, OSError):
                    with self._lock:
                        error = self._crashed(worker, device, verb)
                    raise error from None
                if tag == ERROR:
                    raise raised(decoder(Failure).decode(body))
                found = VERBS[verb].items if tag == ITEM else VERBS[verb].answer
                yield tag, decoder(found).decode(body)
                if tag != ITEM:
                    return

    def _hold(self, device: str | None, verb: str, deadline: Deadline) -> None:
        """Wait for the driver's turn; who called lets it go again."""
        if self._lock.acquire(blocking=False):
            return
        if not self._lock.acquire(timeout=deadline.remaining_seconds):
            raise DeadlineExceeded(
                f"driver {self.name} is busy with another verb; this one was not begun",
                device=device,
                during=verb,
                hint="ask again",
            )

    # --- coming and going; all under the lock

    def _ready(self, device: str | None, verb: str, deadline: Deadline) -> Worker:
        """Return a new worker, if there may be one."""
        self._refuse(device, verb, deadline)
        try:
            if self._nursery is None:
                self._nursery = Nursery(self.recipe, self.environ, self.user, self.stem)
            worker = self._nursery.fork(deadline)
        except TimeoutError:
            self._drop_nursery()
            self.restarts.failed()
            raise DeadlineExceeded(
                f"driver {self.name} was not loaded in time", device=device, during=verb, hint=_DOCTOR
            ) from None
        except (Broken, OSError):
            ended = self._nursery.how_it_ended() if self._nursery is not None else "it could not be started"
            self._drop_nursery()
            self.restarts.crashed(ended)
            raise _error(device, f"the process of driver {self.name} {ended}", verb, _DOCTOR) from None
        except HalError:
            self._drop_nursery()
            self.restarts.failed()
            raise
        self._worker = worker
        try:
            self._hello = worker.hello(deadline)
            self._nursery.teach(self._hello.modules)
        except TimeoutError:
            raise self._hung(worker, device, verb) from None
        except (Broken, OSError):
            raise self._crashed(worker, device, verb) from None
        except HalError:
            self._end(worker)
            self.restarts.failed()
            raise
        return worker

    def _refuse(self, device: str | None, verb: str, deadline: Deadline) -> None:
        """Raise if no process may be started now; wait if it soon may."""
        if self.closed:
            raise _error(device, f"the monitor of driver {self.name} is closed", verb, "open the broker again")
        hangs = self.abandoned()
        if hangs is not None:
            raise _error(device, hangs, verb, "reboot the machine, or mend what it waits for")
        found = self.restarts.quarantine
        if found is not None:
            what = f"driver {self.name} is quarantined after {found.crashes} crashes, the last: {found.why}"
            raise _error(device, what, verb, self.restarts.remedy)
        delay = self.restarts.delay_seconds
        if delay > deadline.remaining_seconds:
            what = f"driver {self.name} failed several times in a row; its next process starts in {delay:.1f} s"
            raise _error(device, what, verb, "ask again then; " + _DOCTOR)
        if delay:
            self._sleep(delay)

    def _hung(self, worker: Worker, device: str | None, verb: str) -> HalError:
        """Kill a worker that did not answer; return the error that says so."""
        what = f"driver {self.name} did not answer in time and its process {worker.pid} was killed"
        hint = "hal-probe doctor; the device's state is unknown"
        if worker is self._worker:
            self.restarts.failed()
            if not self._end(worker):
                what = f"driver {self.name} did not answer in time; its process {worker.pid} does not die: abandoned"
                hint = "reboot the machine, or mend what it waits for"
        return DeadlineExceeded(what, device=device, during=verb, hint=hint)

    def _crashed(self, worker: Worker, device: str | None, verb: str) -> HalError:
        """Find out how a worker ended that nobody ended; return the error that says so."""
        if worker is self._worker:
            ended = None if self._nursery is None else self._nursery.end_of(worker.pid, Deadline.after(DIE_SECONDS))
            worker.how_it_ended = how(ended.status, ended.said) if ended is not None else "ended, nobody knows how"
            if ended is None:
                self._drop_nursery()
            where = f"during {verb}" + (f" of {device}" if device else "")
            self.restarts.crashed(f"{worker.how_it_ended} ({where})")
            self._end(worker)
        what = f"the process of driver {self.name} {worker.how_it_ended or 'was ended'}"
        return _error(device, what, verb, _DOCTOR)

    def _end(self, worker: Worker) -> bool:
        """Kill a worker and forget it; one that does not die is abandoned, and False is returned."""
        if self._worker is worker:
            self._worker = None
        worker.close()
        if not worker.ended():
            self._kill(worker.pidfd)
        if worker.ended(DIE_SECONDS):
            worker.how_it_ended = worker.how_it_ended or "was killed"
            os.close(worker.pidfd)
            worker.pidfd = -1
            return True
        text = f"process {worker.pid} of driver {self.name} hangs in the kernel and cannot be killed; it was abandoned"
        _LOG.error("%s", text)
        self._abandoned = (worker, text)
        return False

    def _drop_nursery(self) -> None:
        nursery, self._nursery = self._nursery, None
        if nursery is not None and not nursery.end():
            _LOG.error("the nursery of driver %s does not die: abandoned", self.name)
            _ABANDONED.append(nursery)

    def close(self) -> None:
        """Let the driver close, then end its processes; the same again is no error."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            worker = self._worker
            if worker is not None:
                try:
                    worker.ask(question("close", DIE_SECONDS, ()), Deadline.after(DIE_SECONDS))
                except (Broken, OSError):
                    pass  # it is ended now, whatever it wanted to do still
                self._end(worker)
            self._drop_nursery()


_ABANDONED: list[Nursery] = []
"""Processes that did not die: kept, so that nobody waits for them at the interpreter's end."""


def _bounded(deadline: Deadline) -> Deadline:
    return deadline if deadline.remaining_seconds <= LONGEST_SECONDS else Deadline.after(LONGEST_SECONDS)


def _error(device: str | None, what: str, verb: str, hint: str) -> HalError:
    kind = DriverError if device is None else DeviceError
    return kind(what, device=device, during=verb, hint=hint)
