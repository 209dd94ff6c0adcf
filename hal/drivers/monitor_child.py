"""The process of one driver, seen from inside.

There are two of them. The *nursery* is started afresh (``python -m hal.drivers.monitor_child``) or forked from
:mod:`hal.drivers.monitor_stem`, imports the plugin, and from then on only waits: it forks a *worker* whenever the
daemon asks, keeps the last lines that the worker wrote to standard error, and tells how it ended. The worker creates
the driver and answers one verb after the other. Only the worker ever calls the driver, so only the worker can crash or
hang, and the next one is there in a millisecond or two, with everything imported.

Nobody outlives the daemon: the nursery watches it by a pidfd (its parent's *thread* may end long before), the worker
dies with the nursery (``PR_SET_PDEATHSIG``), and both are process groups of their own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec

from hal.drivers import contract
from hal.drivers.contract import Driver
from hal.drivers.monitor_wire import (
    ANSWER,
    ASK,
    ERROR,
    ITEM,
    VERBS,
    Ask,
    Broken,
    Hello,
    decoder,
    failure,
    frame,
    receive,
)
from hal.interfaces import gpu
from hal.interfaces.deadline import Deadline

KEPT_BYTES = 4096
"""How much of a worker's standard error is kept."""
_PR_SET_PDEATHSIG = 1
_FACETS = {
    "Resets": contract.Resets,
    "Scrubs": contract.Scrubs,
    "Reports": contract.Reports,
    "PartitionsDevices": gpu.PartitionsDevices,
}
_LEAVE_SECONDS = 0.1
"""How much earlier than the daemon's patience a driver's own deadline ends, so that it can still say what happened."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How to come by a driver: ``module:function`` is called with ``name`` in the nursery (and with ``given``, if there
    is any), imports what is needed, and returns the function that creates the driver, which is called in every worker.
    """

    function: str
    name: str
    given: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker ended: its exit status (negative: the signal), and what it wrote last to standard error."""

    pid: int
    status: int
    said: str


Create = Callable[[], Driver]


def main(control_fd: int, parent: int, recipe: bytes) -> int:
    """Be a nursery that was started afresh."""
    control = socket.socket(fileno=control_fd)
    watch = os.pidfd_open(parent)
    if os.getppid() != parent:
        return 0  # it had ended before it could be watched
    warm_up()
    return be_nursery(control, watch, msgspec.json.decode(recipe, type=Recipe))


def be_nursery(control: socket.socket, watch: int, wanted: Recipe) -> int:
    """Be the nursery: import, say so, fork when asked, until the daemon (``watch`` is its pidfd) is gone."""
    try:
        module, _, function = wanted.function.partition(":")
        given = (wanted.given,) if wanted.given else ()
        create: Create = getattr(importlib.import_module(module), function)(wanted.name, *given)
        control.sendall(frame(ANSWER, None))
    except Exception as error:  # a guard: a plugin's code; the daemon is told what it was
        control.sendall(frame(ERROR, failure(error, None, "load")))
        return 1
    # A plugin whose import left a thread behind is warned of by Python at every fork; the worker has that thread not.
    warnings.simplefilter("ignore", DeprecationWarning)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    gc.collect()
    gc.freeze()  # what is shared with the workers stays shared
    Nursery(control, watch, create, prctl).serve()
    return 0


def warm_up() -> None:
    """Do once, before the first fork, what every worker would have to do: a new one answers at once."""
    decoder(Ask)
    for verb in VERBS.values():
        decoder(verb.arguments)
    for facet in _FACETS.values():
        isinstance(None, facet)
    faulthandler.enable()  # a crash in C says by itself where in Python it was


class Nursery:
    """Forks workers and waits for their ends."""

    def __init__(self, control: socket.socket, watch: int, create: Create, prctl: Callable[..., int]) -> None:
        self.control = control
        self.watch = watch
        self.create = create
        self.prctl = prctl
        self.workers: dict[int, _Cradle] = {}
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.poll.register(watch, select.POLLIN)

    def serve(self) -> None:
        """Do what the daemon asks until it closes the line, or is no more."""
        while True:
            ready = {descriptor for descriptor, _ in self.poll.poll()}
            for cradle in list(self.workers.values()):
                if cradle.stderr in ready and not cradle.read():
                    self.poll.unregister(cradle.stderr)
                if cradle.pidfd in ready:
                    self._bury(cradle)
            if self.watch in ready or (self.control.fileno() in ready and not self._fork()):
                break
        for cradle in list(self.workers.values()):
            os.killpg(cradle.pid, signal.SIGKILL)  # not waited for: what does not die is not ours to mend

    def _fork(self) -> bool:
        """Do one thing that the daemon asks, as a rule fork a worker over two sockets; False at the end of the line."""
        data, sockets, _, _ = socket.recv_fds(self.control, 1 << 17, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        if not sockets:
            self._learn(decoder(tuple[str, ...]).decode(data))
            return True
        reading, writing = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_worker(sockets, writing, parent)
        for descriptor in (*sockets, writing):
            os.close(descriptor)
        try:
            os.setpgid(pid, pid)  # both sides do it: nobody may see the child in the nursery's group
        except OSError:
            pass  # it did, or has ended already
        cradle = self.workers[pid] = _Cradle(pid, os.pidfd_open(pid), reading)
        self.poll.register(cradle.pidfd, select.POLLIN)
        self.poll.register(cradle.stderr, select.POLLIN)
        socket.send_fds(self.control, [frame(ANSWER, pid)], [cradle.pidfd])
        return True

    def _learn(self, modules: tuple[str, ...]) -> None:
        """Import what the first worker had to import to create the driver, so that the next is quicker."""
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # a guard: a plugin's code, and a worker can still import it itself
                sys.stderr.write(f"{name} could not be imported beforehand: {type(error).__name__}: {error}\n")
        gc.freeze()

    def _be_worker(self, sockets: list[int], stderr: int, parent: int) -> NoReturn:
        code = 70
        try:
            self.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                os.setpgid(0, 0)
                os.dup2(stderr, 2)
                for cradle in self.workers.values():
                    os.close(cradle.pidfd)
                    os.close(cradle.stderr)
                os.close(stderr)
                os.close(self.watch)
                self.control.close()
                work(self.create, *(socket.socket(fileno=descriptor) for descriptor in sockets))
                code = 0
        except BaseException as error:  # the end of this process, not of the nursery whose copy it is
            sys.excepthook(type(error), error, error.__traceback__)
            code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 70
        finally:
            os._exit(code)

    def _bury(self, cradle: _Cradle) -> None:
        """Tell how a worker ended, and end what it left behind."""
        try:
            os.killpg(cradle.pid, signal.SIGKILL)  # before its number is given to somebody else
        except (ProcessLookupError, PermissionError):
            pass
        _, status = os.waitpid(cradle.pid, 0)
        silent = cradle.silent
        cradle.read()
        del self.workers[cradle.pid]
        for descriptor in (cradle.pidfd, cradle.stderr):
            if descriptor == cradle.pidfd or not silent:
                self.poll.unregister(descriptor)
            os.close(descriptor)
        ended = Ended(pid=cradle.pid, status=os.waitstatus_to_exitcode(status), said=cradle.said())
        try:
            self.control.sendall(frame(ITEM, ended))
        except OSError:
            pass  # nobody listens any more; the loop sees it


class _Cradle:
    """One worker, as its nursery knows it."""

    def __init__(self, pid: int, pidfd: int, stderr: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.stderr = stderr
        self.silent = False
        self._kept = bytearray()
        os.set_blocking(stderr, False)

    def read(self) -> bool:
        """Take what was written to standard error and keep the last of it; False once nothing can come any more."""
        for _ in range(64):  # a flood must not keep the nursery from its other work
            try:
                chunk = os.read(self.stderr, 1 << 16)
            except BlockingIOError:
                return True
            if not chunk:
                self.silent = True
                return False
            self._kept += chunk
            del self._kept[:-KEPT_BYTES]
        return True

    def said(self) -> str:
        """Return the last lines."""
        return self._kept.decode("utf-8", "replace").strip()


def work(create: Create, calls: socket.socket, side: socket.socket) -> None:
    """Be the worker: create the driver, say what it can, and answer until the line is closed."""
    known = frozenset(sys.modules)
    try:
        driver = create()
        name = str(driver.name)
        modules = tuple(name for name in sys.modules if name not in known)
        facets = tuple(name for name, facet in _FACETS.items() if isinstance(driver, facet))
    except Exception as error:  # a guard: a plugin's code
        calls.sendall(frame(ERROR, failure(error, None, "create")))
        return
    calls.sendall(frame(ANSWER, Hello(name=name, facets=facets, modules=modules)))
    while True:
        try:
            tag, body = receive(calls)
        except (Broken, ConnectionError):
            return
        if tag != ASK:
            return
        calls.sendall(_answer(driver, decoder(Ask).decode(body), side))


def _answer(driver: Driver, ask: Ask, side: socket.socket) -> bytes:
    verb = VERBS[ask.verb]
    line = socket.socket(fileno=socket.recv_fds(side, 1, 1)[1][0]) if verb.items is not None else None
    device: str | None = None
    try:
        arguments = decoder(verb.arguments).decode(ask.arguments)
        device = arguments[0] if arguments and isinstance(arguments[0], str) else None
        deadline = _earlier(ask.seconds)
        if line is not None:
            _follow(driver, ask.verb, arguments, deadline, line)
            return frame(ANSWER, None)
        return frame(ANSWER, _call(driver, ask.verb, arguments, deadline))
    except Exception as error:  # a guard: whatever a driver raises is told, and the next verb is answered
        if line is not None:
            line.close()
        return frame(ERROR, failure(error, device, ask.verb))


def _earlier(seconds: float) -> Deadline:
    return Deadline.after(seconds - min(_LEAVE_SECONDS, seconds * 0.1))


def _call(driver: Any, verb: str, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
    method = getattr(driver, verb)
    if verb in ("readiness", "close"):
        answer = method()
    elif VERBS[verb].facet:
        answer = method(*arguments, deadline=deadline)
    else:
        answer = method(*arguments, deadline)
    return tuple(answer) if verb in ("sample", "partitions", "partition_profiles") else answer


def _follow(driver: Any, verb: str, arguments: tuple[Any, ...], deadline: Deadline, line: socket.socket) -> None:
    """Begin what takes long, and tell of it on a line of its own."""
    if verb == "events":
        iterator = driver.events(deadline)

        def run() -> None:
            try:
                for event in iterator:
                    line.sendall(frame(ITEM, event))
                line.sendall(frame(ANSWER, None))
            except (BrokenPipeError, ConnectionResetError):
                pass  # nobody listens any more
            except Exception as error:  # a guard: a driver's code
                _tell(line, frame(ERROR, failure(error, None, verb)))
            finally:
                line.close()

        threading.Thread(target=run, name=f"hal-{verb}", daemon=True).start()
        return
    operation = getattr(driver, verb)(*arguments, deadline=deadline)

    def done() -> None:
        try:
            error = operation.error()
            _tell(line, frame(ERROR, failure(error, arguments[0], verb)) if error else frame(ANSWER, operation.wait()))
        finally:
            line.close()

    operation.on_done(done)


def _tell(line: socket.socket, data: bytes) -> None:
    try:
        line.sendall(data)
    except OSError:
        pass  # who waited has given up


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()))
