"""The process above a service: what process 1 is to a container. Run as a script, with the standard library alone.

::

    python -I -S dpu_supervisor.py FOLDER MEMORY_BYTES CORES COMMAND [ARGUMENT...]

It starts the command within its limits, with its output in ``FOLDER/log``, and leaves its own number in
``FOLDER/pid``. All descendants that lose their parent become its children (PR_SET_CHILD_SUBREAPER), also those that
left the session and cleared their environment. When the command ends it writes how into ``FOLDER/exit`` (a signal as a
negative number), kills and reaps what is left, and ends.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_START = 127
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(folder: str, memory_bytes: int, cores: int, command: list[str]) -> int:
    """Start a supervisor and return once its service runs: 0, or 1 with the reason in ``FOLDER/error``."""
    os.chdir(folder)
    # Both ends close on exec: the reader sees the end as soon as the command itself runs, or why it does not.
    told, tell = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        os.close(told)
        _supervise(memory_bytes, cores, command, tell)
        os._exit(0)
    os.close(tell)
    with open(told, "rb") as words:
        error = words.read()
    if error:
        _write("error", error.decode(errors="replace"))
        return 1
    _write("pid", str(supervisor))
    return 0


def _supervise(memory_bytes: int, cores: int, command: list[str], tell: int) -> None:
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    # Blocked until the command's process has its default handlers back: none is swallowed on the way.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    service = os.fork()
    if not service:
        _become(memory_bytes, cores, command, tell)
    for number in _STOPPING:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    os.close(tell)
    while True:
        ended, status = os.wait()
        if ended == service:
            break
    _write("exit", str(os.waitstatus_to_exitcode(status)))
    _end_children()


def _become(memory_bytes: int, cores: int, command: list[str], tell: int) -> None:
    try:
        if cores:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        os.execvp(command[0], command)
    except (OSError, ValueError) as error:
        os.write(tell, f"{command[0]}: {error}".encode())
    os._exit(_CANNOT_START)


def _end_children() -> None:
    # Whoever loses its parent here becomes a child of this process, so that the rounds end with nobody left.
    while True:
        for child in _children():
            os.kill(child, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid():
                found.append(int(entry))
    return found


def _write(name: str, text: str) -> None:
    with open(f"{name}.new", "w") as file:
        file.write(text)
    os.rename(f"{name}.new", name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
