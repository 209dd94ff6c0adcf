"""The last steps before a program runs on a lease, in the process that becomes it.

``python -P -m hal.agent.launch ORDERS COMMAND...``: die with the parent, take the terminal, stay near the devices, join
the control group, and become the command. A small process of its own, because none of it may be done between a fork
and an exec in a program with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import msgspec

from hal.agent.bind import Binding, apply
from hal.errors import HalError

NOT_FOUND, NOT_RUN, REFUSED = 127, 126, 1
"""Exit codes as a shell's, and ours for a binding that was to be strict."""
_PR_SET_PDEATHSIG = 1


class Orders(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do: whose death is ours, where to run, which control group to join, and whether each of it must be."""

    parent: int
    binding: Binding = Binding()
    procs: str = ""
    strict: bool = False
    foreground: bool = False


def main(arguments: list[str]) -> int:
    """Do as ordered, and become the command; returns only if that fails."""
    orders = msgspec.json.decode(arguments[0], type=Orders)
    command = arguments[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != orders.parent:
        return NOT_RUN
    if orders.foreground:
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(0, os.getpgrp())
        except OSError:
            pass  # it has another terminal by now; then it runs in the background
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    try:
        apply(orders.binding)
    except HalError as error:
        _say(str(error))
        if orders.strict:
            return REFUSED
    if orders.procs:
        try:
            with open(orders.procs, "w", encoding="ascii") as procs:
                procs.write("0")
        except OSError as error:
            _say(f"the control group cannot be joined: {error.strerror}")
            return REFUSED  # without it the program would have everybody's devices
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored is inherited
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except (FileNotFoundError, NotADirectoryError):
        _say(f"{command[0]}: there is no such command")
        return NOT_FOUND
    except (OSError, ValueError) as error:
        _say(f"{command[0]} cannot be run: {error}")
        return NOT_RUN


def _say(text: str) -> None:
    sys.stderr.write(f"hal: run: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
