"""The processes of one driver, seen from the daemon: the nursery that forks, and the worker that is asked."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Mapping

import msgspec

from hal.drivers.monitor_child import Ended, Recipe
from hal.drivers.monitor_life import Life, Stem, start_afresh
from hal.drivers.monitor_wire import ANSWER, ERROR, ITEM, Broken, Failure, Hello, decoder, patient, raised, receive
from hal.interfaces.deadline import Deadline

Kill = Callable[[int], None]
DIE_SECONDS = 1.0
"""How long after SIGKILL a process is still waited for; one in the kernel's hands may never die."""
_SAID_LINES = 12
_OWN_LINES = ("monitor_child.py", "monitor_stem.py", "<frozen runpy>", "Extension modules: ")
"""What says nothing about the driver in the traceback of a crash."""
_FITS_BYTES = 1 << 15


def kill(pidfd: int) -> None:
    """Send SIGKILL to the process behind a pidfd, if there still is one."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Worker:
    """One process that has the driver. It has ended when its pidfd says so."""

    def __init__(self, pid: int, pidfd: int, calls: socket.socket, side: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.calls = calls
        self.side = side
        self.how_it_ended = ""

    def ask(self, question: bytes, deadline: Deadline) -> tuple[int, memoryview]:
        """Send a frame and return the answer's tag and body. Raises ``TimeoutError``, ``Broken``, ``OSError``."""
        if len(question) > _FITS_BYTES:  # one that does not read does not fill the pipe with less
            self.calls.settimeout(deadline.timeout)
        self.calls.sendall(question)
        if len(question) > _FITS_BYTES:
            patient(self.calls).settimeout(None)
        return receive(self.calls, deadline)

    def hello(self, deadline: Deadline) -> Hello:
        """Return what it says once it has created the driver; raises what kept it from that, and as :meth:`ask`."""
        tag, body = receive(self.calls, deadline)
        if tag == ERROR:
            raise raised(decoder(Failure).decode(body))
        hello: Hello = decoder(Hello).decode(body)
        return hello

    def ended(self, seconds: float = 0.0) -> bool:
        """True if the process has ended, or does so within that time."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))

    def close(self) -> None:
        """Let go of the lines to it, not of its pidfd: one that lives on must still be told apart."""
        self.calls.close()
        self.side.close()

    def forget(self) -> None:
        """Let go of everything."""
        self.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Nursery:
    """The process that has imported the plugin and forks workers. Starting it does not wait for it.

    With a ``stem`` it is forked from that, which is quick; if the stem cannot, it is started afresh.
    """

    def __init__(
        self, recipe: Recipe, environ: Mapping[str, str], user: str | None = None, stem: Stem | None = None
    ) -> None:
        self.recipe = recipe
        self._environ = environ
        self._user = user
        self._ready = False
        self._taught = False
        self._ends: dict[int, Ended] = {}
        self._said = os.memfd_create("hal-nursery-stderr")
        try:
            self.control, self.life = self._begin(stem)
        except BaseException:
            os.close(self._said)
            raise

    def _begin(self, stem: Stem | None) -> tuple[socket.socket, Life]:
        """Start the process; return the line to it, and what is known of its life."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            life: Life | None = stem.fork(self.recipe, theirs.fileno(), self._said) if stem is not None else None
            if life is None:
                life = start_afresh(
                    "hal.drivers.monitor_child",
                    (msgspec.json.encode(self.recipe).decode(),),
                    theirs.fileno(),
                    self._said,
                    environ=self._environ,
                    user=self._user,
                    name=self.recipe.name,
                )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return patient(ours), life

    def wait(self, deadline: Deadline) -> None:
        """Return once the plugin is imported; raises what kept it from that, ``TimeoutError`` after the deadline."""
        if self._ready:
            return
        try:
            tag, body = receive(self.control, deadline)
        except Broken:
            if self.life.born(deadline):
                raise
            self.life.end(0.0)  # the stem ended before it could fork: that is no fault of the driver's
            self.control.close()
            self.control, self.life = self._begin(None)
            tag, body = receive(self.control, deadline)
        if tag == ERROR:
            raise raised(decoder(Failure).decode(body))
        self._ready = True

    def fork(self, deadline: Deadline) -> Worker:
        """Return a fresh worker, about to create the driver. Raises as :meth:`wait`, ``Broken``, ``OSError``."""
        self.wait(deadline)
        calls, its_calls = socket.socketpair()
        side, its_side = socket.socketpair()
        try:
            socket.send_fds(self.control, [b"f"], [its_calls.fileno(), its_side.fileno()])
            pid, pidfd = self._forked(deadline)
        except BaseException:
            calls.close()
            side.close()
            raise
        finally:
            its_calls.close()
            its_side.close()
        return Worker(pid, pidfd, patient(calls), side)

    def teach(self, modules: tuple[str, ...]) -> None:
        """Let it import, once, what a worker had to import; it does so when it has nothing else to do."""
        if modules and not self._taught:
            self._taught = True
            try:
                self.control.send(msgspec.msgpack.encode(modules))
            except OSError:
                return  # too many, or it has ended: the next worker imports them itself

    def _forked(self, deadline: Deadline) -> tuple[int, int]:
        while True:
            tag, body, descriptors = self._listen(deadline)
            if tag == ANSWER and descriptors:
                return decoder(int).decode(body), descriptors[0]

    def _listen(self, deadline: Deadline) -> tuple[int, bytes, list[int]]:
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if not poll.poll(deadline.remaining_seconds * 1000):
            raise TimeoutError
        data, descriptors, _, _ = socket.recv_fds(self.control, 1 << 16, 1)
        if not data:
            raise Broken("the nursery ended")
        tag, body = data[4], data[5:]
        if tag == ITEM:
            ended: Ended = decoder(Ended).decode(body)
            self._ends[ended.pid] = ended
        return tag, body, descriptors

    def end_of(self, pid: int, deadline: Deadline) -> Ended | None:
        """Return how a worker ended, None if the nursery does not say so in time."""
        try:
            while pid not in self._ends:
                self._listen(deadline)
        except (Broken, OSError):  # TimeoutError is one
            return None
        return self._ends.pop(pid)

    def how_it_ended(self) -> str:
        """Say how the nursery itself ended, with what it wrote last."""
        try:
            status = self.life.wait(DIE_SECONDS)
        except TimeoutError:
            return "it does not answer"
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, 4096, max(0, size - 4096)).decode("utf-8", "replace")
        return "ended, nobody knows how" if status is None else how(status, said)

    def end(self) -> bool:
        """Kill the nursery, and with it its workers; False if it does not die."""
        self.control.close()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1
        return self.life.end(DIE_SECONDS)


def how(status: int, said: str) -> str:
    """Put an exit status and the last lines of standard error into words."""
    if status < 0:
        try:
            text = f"ended by {signal.Signals(-status).name}"
        except ValueError:
            text = f"ended by signal {-status}"
    else:
        text = f"ended by itself with status {status}"
    lines = [line.strip() for line in said.splitlines() if line.strip() and not any(own in line for own in _OWN_LINES)]
    lines = lines[-_SAID_LINES:]
    return f"{text}; it said: {' | '.join(lines)}" if lines else text
