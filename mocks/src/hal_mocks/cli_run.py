"""``hal-mock run``: its options, and how they become a namespace with a command in it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.errors import HalError, UsageError

if TYPE_CHECKING:
    from hal_mocks.namespace.room import Room
    from hal_mocks.namespace.staging import Stage

DESCRIPTION = """\
Run any program on a mock machine: in namespaces of its own it finds the profile's devices in /sys, /dev and /proc, and
hears of them come and go. The machine is broken and mended as usual: hal-mock fault gpu3 lost, in the namespace or
with HAL_MACHINE outside. There is no network but lo, unless --share-network.
"""
EPILOG = """\
exit status: that of COMMAND, or 128 and the number of the signal that ended it; 125 where namespaces are forbidden or
the machine cannot be made, 126 if COMMAND cannot be run, 127 if it is not found, 64 for a wrong usage.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.usage = "hal-mock run [OPTIONS] PROFILE [-- COMMAND ...]"
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "profile", metavar="PROFILE", help="a name, a TOML file, or a snapshot made by hal-probe snapshot (.tgz)"
    )
    parser.add_argument("--host", metavar="NAME", help="which host of a rack")
    parser.add_argument("--state", metavar="FOLDER", help="keep the machine there; without it the machine is forgotten")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another machine of the same profile")
    parser.add_argument("--clock", choices=("real", "virtual"), default="real", help="whether time moves by itself")
    parser.add_argument("--share-network", action="store_true", help="keep the network of outside; no hot-plug events")
    parser.add_argument("--as-root", action="store_true", help="appear as root in the namespace")


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of ours and those behind ``--``, which belong to a command."""
    if arguments and arguments[0] == "run" and "--" in arguments:
        at = list(arguments).index("--")
        return list(arguments[:at]), list(arguments[at + 1 :])
    return list(arguments), []


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run a command (or a shell) on a mock machine; returns its exit status."""
    from hal_mocks.namespace.command import FAILED, run_command
    from hal_mocks.namespace.room import Room
    from hal_mocks.namespace.staging import is_recording, machine_folder, stage_recording

    command = options.command or [environ.get("SHELL") or "/bin/sh"]
    room = Room(root="", own_network=not options.share_network, as_root=options.as_root)
    try:
        if is_recording(options.profile):
            _refuse_machine_options(options)
            return run_command(stage_recording(options.profile, room), command, environ)
        with machine_folder(options.state) as folder:
            return run_command(_stage(options, folder, room), command, environ)
    except UsageError:
        raise
    except HalError as error:
        sys.stderr.write(f"hal-mock: {error}\n")
        return FAILED
    except OSError as error:
        sys.stderr.write(f"hal-mock: {error.filename or 'run'}: {error.strerror or error}\n")
        return FAILED


def _stage(options: argparse.Namespace, folder: str, room: Room) -> Stage:
    from hal_mocks.machine import open_machine
    from hal_mocks.namespace.staging import machine_name, stage_machine

    name = machine_name(options.profile, folder, options.seed, options.clock)
    machine = open_machine({"HAL_MACHINE": name})
    assert machine is not None
    if options.state is not None and os.isatty(2):
        sys.stderr.write(f"hal-mock: from outside: HAL_MACHINE='{name}' hal-mock fault ...\n")
    stage = stage_machine(machine, name, options.host, room)
    for lack in stage.lacks:
        sys.stderr.write(f"hal-mock: {lack}\n")
    return stage


def _refuse_machine_options(options: argparse.Namespace) -> None:
    for name in ("host", "state"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} belongs to a profile; a recorded machine has none", hint="leave it out")
