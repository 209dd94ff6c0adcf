"""``hal-mock run``: a command in a namespace of its own, and beside it a parent that passes on signals and events."""

from __future__ import annotations

import errno
import os
import select
import signal
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from hal_mocks.namespace.room import enter
from hal_mocks.namespace.staging import Stage
from hal_mocks.namespace.supervisor import Supervisor
from hal_mocks.namespace.system import die_with_parent, signal_descriptor

FAILED, CANNOT_RUN, NOT_FOUND = 125, 126, 127
"""Exit statuses when there is no command to have one: as those of env(1), timeout(1) and chroot(1)."""

_SIGNALED = 128
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
_SIGINFO = struct.Struct("=Iii")
_SIGINFO_BYTES = 128
_SI_KERNEL = 0x80
"""A signal from the terminal: every process of the foreground has got it already."""


def run_command(stage: Stage, command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command in the stage's room; returns its exit status, or 128 and the number of the signal that ended it.

    This process goes into the namespace, too, and cannot come back. Raises ``NotReady`` where that is forbidden.
    """
    enter(stage.room)
    watched = (*_FORWARDED, signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    descriptor = signal_descriptor(watched)
    supervisor = Supervisor(stage.machine, stage.room, stage.host) if stage.machine is not None else None
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, stage.environ(environ), before, parent)
    try:
        return _stand_by(child, descriptor, supervisor)
    finally:
        if supervisor is not None:
            supervisor.close()
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(
    command: Sequence[str], environ: Mapping[str, str], mask: set[int | signal.Signals], parent: int
) -> NoReturn:
    """Become the command, in the child. Python ignores SIGPIPE, which the command should not inherit."""
    status = FAILED
    try:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(FAILED)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(command[0], list(command), dict(environ))
    except OSError as error:
        status = NOT_FOUND if error.errno in (errno.ENOENT, errno.ENOTDIR) else CANNOT_RUN
        os.write(2, f"hal-mock: {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(status)


def _stand_by(child: int, descriptor: int, supervisor: Supervisor | None) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if supervisor is not None:
        poll.register(supervisor.fileno(), select.POLLIN)
    while True:
        due = supervisor.timeout() if supervisor is not None else None
        ready = {number for number, _ in poll.poll(None if due is None else due * 1e3)}
        if descriptor in ready:
            status = _meet_signals(child, descriptor)
            if status is not None:
                return status
        if supervisor is not None and ready != {descriptor}:
            supervisor.step()


def _meet_signals(child: int, descriptor: int) -> int | None:
    """Pass signals on; returns the command's exit status once it has ended."""
    while True:
        try:
            info = os.read(descriptor, _SIGINFO_BYTES)
        except BlockingIOError:
            return _look_after(child)
        number, _, code = _SIGINFO.unpack_from(info)
        if number != signal.SIGCHLD and code != _SI_KERNEL:
            with suppress(ProcessLookupError):
                os.kill(child, number)


def _look_after(child: int) -> int | None:
    """Return the exit status of the command if it has ended; stop and go on with it."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if not found:
            return None
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell is to see that its job has stopped
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
            continue
        return _SIGNALED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
