"""Real processes that stand for services: started so that they outlive their starter, found again, and ended.

Above each stands a supervisor (:mod:`hal_mocks.dpu_supervisor`), to which all its descendants fall. Should somebody
kill the supervisor, a token in the environment tells its orphans from processes that got their numbers later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from hal.interfaces.deadline import Deadline

TOKEN = "HAL_DPU_SERVICE"

_SUPERVISOR = Path(__file__).with_name("dpu_supervisor.py")


class Supervisor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a service runs: its supervisor's pid and start time, and the token of all its processes."""

    pid: int
    started: int
    token: str

    @property
    def alive(self) -> bool:
        """True if the process that was started then still runs under this number."""
        return self.started != 0 and start_time(self.pid) == self.started


def start_process(
    folder: Path, command: tuple[str, ...], env: Mapping[str, str], token: str, cores: int | None, memory: int | None
) -> Supervisor:
    """Start a command in a session of its own and return once it runs.

    ``folder`` receives ``log``, ``pid`` and, at the end, ``exit``. The memory limit is RLIMIT_AS, the core limit an
    affinity. Raises ``OSError``, and ``ValueError`` for arguments that no process can have.
    """
    # No descriptor is inherited: one that the starter happened to have would stay open as long as the service lives.
    starter = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SUPERVISOR), str(folder), str(memory or 0), str(cores or 0), *command],
        env={**env, TOKEN: token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if starter.wait() != 0:
        raise ChildProcessError(read_tail(folder / "error", 4096) or f"its supervisor ended with {starter.returncode}")
    pid = int((folder / "pid").read_text())
    return Supervisor(pid=pid, started=start_time(pid), token=token)


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
        return int((folder / "exit").read_text())
    except (OSError, ValueError):
        return None


def members(supervisor: Supervisor) -> tuple[int, ...]:
    """Return all living processes of a service: the supervisor, its descendants, and who else carries the token."""
    wanted = f"{TOKEN}={supervisor.token}".encode()
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else []
        if fields:
            parents[int(entry)] = int(fields[1])
    found = {supervisor.pid} if supervisor.alive else set()
    grown = True
    while found and grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return tuple(found | {pid for pid in parents if pid not in found and wanted in _environment(pid)})


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or somebody else's
        return []


def end_processes(device: str, supervisor: Supervisor, grace_seconds: float, deadline: Deadline) -> None:
    """Send SIGTERM to all of a service, after the grace SIGKILL; return when none is left.

    Raises :class:`~hal.errors.DeadlineExceeded` if some are still there at the deadline.
    """
    if grace_seconds > 0:
        grace = Deadline.after(min(grace_seconds, deadline.remaining_seconds))
        _signal_and_wait(supervisor, signal.SIGTERM, grace, spare=supervisor.pid)
    # The supervisor is spared at first: it writes down how the command ended, and reaps what others leave behind.
    spare = supervisor.pid
    while members(supervisor):
        _signal_and_wait(supervisor, signal.SIGKILL, Deadline.after(min(1.0, deadline.remaining_seconds)), spare)
        spare = 0
        if members(supervisor):
            deadline.check(device=device, during="stop_service")


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
