"""Real processes that stand for services: started so that they outlive their starter, found again, and ended.

Each carries a token in its environment, and so do all its children: the token tells them from processes that got
their numbers later, whoever looks, and finds those that left their process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hal.interfaces.deadline import Deadline

TOKEN = "HAL_DPU_SERVICE"

# The outer shell leaves at once, so that init inherits the service and nobody has to wait for it. The inner one stays
# to write down how the command ended; its handler keeps it alive for that, while the command sees SIGTERM as usual.
_SUPERVISOR = """
cd "$1" || exit 1
limit=$2
shift 2
{
  trap : TERM INT HUP
  ( [ "$limit" = 0 ] || ulimit -v "$limit"; exec "$@" )
  echo $? >exit.new && mv exit.new exit
} >log 2>&1 &
echo $! >pid.new && mv pid.new pid
"""


class Supervisor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a service runs: its supervisor's pid and start time, its session, the token of all its processes."""

    pid: int
    started: int
    session: int
    token: str

    @property
    def alive(self) -> bool:
        """True if the process that was started then still runs under this number."""
        return self.started != 0 and start_time(self.pid) == self.started


def start_process(
    folder: Path, command: tuple[str, ...], env: Mapping[str, str], token: str, cores: int | None, memory: int | None
) -> Supervisor:
    """Start a command in a session of its own.

    ``folder`` receives ``log``, ``pid`` and, at the end, ``exit``. The memory limit is RLIMIT_AS. The core limit is
    the affinity that the calling thread leaves behind: call from a thread that ends afterwards. Raises ``OSError``.
    """
    if cores is not None:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:cores])
    limit = 0 if memory is None else max(1, memory // 1024)
    # No descriptor but these: one that the starter happened to inherit would stay open as long as the service lives.
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _SUPERVISOR, "sh", str(folder), str(limit), *command],
        env={**env, TOKEN: token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if shell.wait() != 0:
        raise ChildProcessError(f"/bin/sh ended with {shell.returncode}")
    pid = int((folder / "pid").read_text())
    return Supervisor(pid=pid, started=start_time(pid), session=shell.pid, token=token)


def start_time(pid: int) -> int:
    """Return when a process started (clock ticks since boot), 0 if it is gone or a zombie (proc_pid_stat(5))."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] in "ZX" else fields


def exit_code(folder: Path) -> int | None:
    """Return how the command ended, a signal as a negative number, or None if nobody saw it."""
    try:
        code = int((folder / "exit").read_text())
    except (OSError, ValueError):
        return None
    return 128 - code if code > 128 else code


def members(supervisor: Supervisor) -> tuple[int, ...]:
    """Return all living processes of a service: those that carry its token, and while its supervisor lives, which
    keeps the session's number from being used again, those in its session.
    """
    wanted = f"{TOKEN}={supervisor.token}".encode()
    session = str(supervisor.session) if supervisor.alive else None
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat(int(entry))
        if fields and (fields[3] == session or wanted in _environment(entry)):
            found.append(int(entry))
    return tuple(found)


def _environment(entry: str) -> list[bytes]:
    try:
        return Path("/proc", entry, "environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or somebody else's
        return []


def end_processes(device: str, supervisor: Supervisor, grace_seconds: float, deadline: Deadline) -> None:
    """Send SIGTERM to all of a service, after the grace SIGKILL; return when none is left.

    Raises :class:`~hal.errors.DeadlineExceeded` if some are still there at the deadline.
    """
    if grace_seconds > 0:
        grace = Deadline.after(min(grace_seconds, deadline.remaining_seconds))
        _signal_and_wait(supervisor, signal.SIGTERM, grace, spare=0)
    # The supervisor is spared at first, so that it can write down how the command ended. Killing goes on until nobody
    # is left: one that was forking while being killed has children.
    spare = supervisor.pid
    while members(supervisor):
        _signal_and_wait(supervisor, signal.SIGKILL, Deadline.after(min(1.0, deadline.remaining_seconds)), spare)
        spare = 0
        if members(supervisor):
            deadline.check(device=device, during="stop service")


def _signal_and_wait(supervisor: Supervisor, number: signal.Signals, deadline: Deadline, spare: int) -> None:
    import select

    with contextlib.ExitStack() as stack:
        poll = select.poll()
        waiting: set[int] = set()
        for pid, descriptor in _open_members(supervisor, stack):
            if pid != spare:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            poll.register(descriptor, select.POLLIN)
            waiting.add(descriptor)
        while waiting and not deadline.expired:
            for descriptor, _ in poll.poll(deadline.remaining_seconds * 1000):
                poll.unregister(descriptor)
                waiting.discard(descriptor)


def _open_members(supervisor: Supervisor, stack: contextlib.ExitStack) -> Iterator[tuple[int, int]]:
    """Yield processes with descriptors: a signal through one cannot hit a process that got the number later."""
    for pid in members(supervisor):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        stack.callback(os.close, descriptor)
        yield pid, descriptor


def read_tail(path: Path, most_bytes: int) -> str:
    """Return the end of a log file, cut at a line where it is cut."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - most_bytes))
            data = log.read(most_bytes)
    except FileNotFoundError:
        return ""
    if size > most_bytes and b"\n" in data:
        data = data.split(b"\n", 1)[1]
    return data.decode(errors="replace")
