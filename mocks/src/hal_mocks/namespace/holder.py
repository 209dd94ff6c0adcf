"""A namespace that a process keeps, and enters as often as it likes: in forked children, which take milliseconds."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar

from hal.errors import DeadlineExceeded, DriverError
from hal.interfaces.deadline import Deadline
from hal_mocks.namespace.room import enter
from hal_mocks.namespace.staging import Stage
from hal_mocks.namespace.supervisor import Supervisor
from hal_mocks.namespace.system import CLONE_NEWUSER, die_with_parent, drop_capabilities, setns

Given = ParamSpec("Given")
Result = TypeVar("Result")

_SECONDS = 60.0


class Namespace:
    """A mock machine that programs take for the real one. Use it as a context manager, or :meth:`close` it.

    A child of this process makes the namespaces and stands by for events; :meth:`run` and :meth:`popen` enter them.
    Raises :class:`~hal.errors.NotReady` where namespaces are forbidden.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        mine, theirs = os.pipe()
        answer, answer_end = os.pipe()
        self._pid = _fork()
        if self._pid == 0:
            os.close(theirs)
            os.close(answer)
            _hold(stage, mine, answer_end)
        os.close(mine)
        os.close(answer_end)
        self._alive = theirs  # the child ends when this is closed, also by our death
        self._pidfd = os.pidfd_open(self._pid)
        with os.fdopen(answer, "rb") as file:
            told = file.read()
        result = pickle.loads(told) if told else DriverError("the namespace's keeper ended", during="enter")
        if isinstance(result, BaseException):
            self.close()
            raise result
        self._flags: int = result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the namespace; programs that still run in it keep it, without anybody to send events. Idempotent."""
        if self._pid:
            os.close(self._alive)
            os.waitpid(self._pid, 0)
            os.close(self._pidfd)
            self._pid = 0

    def run(self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
        """Call a function in the namespace, in a forked child; returns what it returns, raises what it raises.

        Function and arguments need not be picklable, the result must be. Raises ``DeadlineExceeded`` after a minute.
        """
        answer, answer_end = os.pipe()
        child = _fork()
        if child == 0:
            os.close(answer)
            self._answer(answer_end, lambda: function(*args, **kwargs))
        os.close(answer_end)
        try:
            told = _read_all(answer, Deadline.after(_SECONDS))
        except DeadlineExceeded:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(answer)
            _, status = os.waitpid(child, 0)
        if not told:
            raise DriverError(
                f"the function ended its process ({os.waitstatus_to_exitcode(status)})", during="run", hint="see stderr"
            )
        failed, value = pickle.loads(told)
        if failed:
            raise value
        return value  # type: ignore[no-any-return]

    def popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in the namespace; ``options`` are those of :class:`subprocess.Popen`."""
        environ = self.stage.environ(os.environ if options.get("env") is None else options["env"])
        return subprocess.Popen(command, **{**options, "env": environ, "preexec_fn": self._joiner()})

    def run_command(
        self, command: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace to its end and return what it wrote, as text."""
        environ = self.stage.environ(os.environ if options.get("env") is None else options["env"])
        given = {"capture_output": True, "text": True, "check": False, "timeout": _SECONDS, **options}
        return subprocess.run(command, **{**given, "env": environ, "preexec_fn": self._joiner()})

    def _joiner(self) -> Callable[[], None]:
        here = os.getcwd()

        def join() -> None:
            self._join(here)

        return join

    def _join(self, folder: str) -> None:
        """Enter, in a child. Entering a mount namespace leads to its top: go back to where we were."""
        setns(self._pidfd, self._flags)
        os.chdir(folder)
        if self._flags & CLONE_NEWUSER:
            drop_capabilities()

    def _answer(self, descriptor: int, work: Callable[[], object]) -> NoReturn:
        status = 1
        try:
            self._join(os.getcwd())
            inside = self.stage.environ(os.environ)
            os.environ.clear()
            os.environ.update(inside)
            for library in self.stage.libraries():  # LD_LIBRARY_PATH is read when a process begins
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            told = _packed(work)
            sys.stdout.flush()
            sys.stderr.flush()
            _write_all(descriptor, told)
            status = 0
        except BaseException:  # this process ends here, whatever it was; its parent reads stderr
            traceback.print_exc()
        finally:
            os._exit(status)


def _packed(work: Callable[[], object]) -> bytes:
    try:
        value: object = work()
        failed = False
    except BaseException as error:  # it is raised again in the parent
        error.add_note("in the namespace:\n" + traceback.format_exc())
        value, failed = error, True
    try:
        return pickle.dumps((failed, value))
    except Exception as error:  # anything may be unpicklable in its own way
        what = f"{value!r} cannot be brought back: {error}"
        if failed:
            what += "".join(getattr(value, "__notes__", ()))
        return pickle.dumps((True, DriverError(what, during="run", hint="return plain values")))


def _hold(stage: Stage, alive: int, answer: int) -> NoReturn:
    """Make the namespaces and stand by until the parent lets go."""
    status = 0
    try:
        die_with_parent(signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the parent decides
        try:
            flags: object = enter(stage.room)
            supervisor = Supervisor(stage.machine, stage.room, stage.host) if stage.machine is not None else None
        except Exception as error:  # raised in the parent
            flags, supervisor = error, None
        _write_all(answer, pickle.dumps(flags))
        os.close(answer)
        if not isinstance(flags, Exception):
            _stand_by(supervisor, alive)
    except BaseException:  # this process ends here, whatever it was
        traceback.print_exc()
        status = 1
    finally:
        os._exit(status)


def _stand_by(supervisor: Supervisor | None, alive: int) -> None:
    poll = select.poll()
    poll.register(alive, select.POLLIN | select.POLLHUP)
    if supervisor is not None:
        poll.register(supervisor.fileno(), select.POLLIN)
    while True:
        due = supervisor.timeout() if supervisor is not None else None
        ready = {number for number, _ in poll.poll(None if due is None else due * 1e3)}
        if alive in ready:
            return
        if supervisor is not None:
            supervisor.step()


def _fork() -> int:
    """Fork, also where threads run: the child calls nothing that could wait for one of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _read_all(descriptor: int, deadline: Deadline) -> bytes:
    parts: list[bytes] = []
    readable = select.poll()  # select() knows no descriptor above 1023
    readable.register(descriptor, select.POLLIN)
    while True:
        if not readable.poll(max(0.0, deadline.remaining_seconds) * 1e3):
            raise DeadlineExceeded("the function did not return in time", during="run", hint="it was killed")
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    with suppress(BrokenPipeError):
        while view:
            view = view[os.write(descriptor, view) :]
