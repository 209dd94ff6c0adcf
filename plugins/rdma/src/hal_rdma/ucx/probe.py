"""Asking libucp what it can do, in a process of its own: UCX may abort, and must not take a daemon with it.

The driver uses UCX in the user's process alone, when a NIC is opened. Whoever only wants to know whether that will work
(readiness, a health check) asks here: a child loads the library and makes a context and a worker, within a deadline. An
abort, a hang or an error is one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import msgspec

from hal.errors import HalError
from hal.interfaces.deadline import Deadline
from hal_rdma.ucx.library import choose_library

_TRANSPORTS = ("posix", "cma", "self")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: the library in words, or, if it does not work, why (one line)."""

    library: str = ""
    why_not: str = ""

    @property
    def works(self) -> bool:
        """True if a worker could be made."""
        return not self.why_not


def ask_ucx(
    environ: Mapping[str, str],
    deadline: Deadline,
    *,
    software: bool = True,
    settings: Mapping[str, str] | None = None,
) -> Answer:
    """Return whether UCX works here. Raises nothing; the child is killed at the deadline."""
    try:
        origin = choose_library(environ, software=software)
    except HalError as error:
        return Answer(why_not=error.message)
    told = settings if settings is not None else {"TLS": ",".join(_TRANSPORTS)}
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__, origin, json.dumps(dict(told))],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(why_not=f"UCX ({origin}) did not answer in time; its process was killed")
    except OSError as error:
        return Answer(why_not=f"no process to ask UCX in: {error.strerror}")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Answer(why_not=f"UCX ({origin}) died of {name}{_last_line(child.stderr)}")
    if child.returncode != 0:
        return Answer(why_not=f"UCX ({origin}) failed{_last_line(child.stderr)}")
    return Answer(library=child.stdout.strip().splitlines()[-1])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:200]}" if lines else ""


def main(arguments: Sequence[str]) -> int:
    """Load, make a context and a worker, and say which library it was: what the child does."""
    from hal_rdma.ucx.context import Context
    from hal_rdma.ucx.library import load_library
    from hal_rdma.ucx.worker import Worker

    origin, settings = arguments
    try:
        library = load_library(origin)
        context = Context(library, json.loads(settings), "probe")
        Worker(context).destroy(quietly=True)
        context.leave()
    except HalError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{library.words}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
