"""``hal run``: claim devices, run a program on them, and give them back.

Exit codes: the program's own, 128 and the signal's number if it was ended by one; 75 if its devices were taken back (it
may be run again; ``--requeue`` does that itself); 1 refused, 126 and 127 as a shell's.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hal.agent.bind import Binding, Memory, choose, root_of
from hal.agent.cgroup import USUAL, Filtered, confine, nodes_of, release
from hal.agent.launch import Orders
from hal.api.held import HeldLease
from hal.broker import command as c
from hal.cli.claims import claim_of
from hal.cli.run_lines import Line, line_of
from hal.cli.run_program import Outcome, Program
from hal.errors import AccessDenied, BrokerError, HalError, LeaseEnded, LeaseNotFound, UsageError
from hal.model.claim import Claim

REVOKED = 75


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command line at the first ``--``: what is ours, and the program with its arguments."""
    words = list(words)
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``hal run`` takes: the words of a claim, and how the command is run. What follows ``--`` becomes
    ``command``, untouched.
    """
    from hal.cli.options import _claim

    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        # argparse loses where "--" stood when positional words come before it.
        words, command = split(sys.argv[1:] if args is None else args)
        found, left = parse(words, namespace)
        found.command = command
        return found, left

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
    parser.usage = "hal run [options] KIND[:COUNT]... -- COMMAND..."
    _claim(parser)
    parser.add_argument("--claim", dest="file", type=Path, metavar="FILE", help="the same as --file")
    parser.add_argument("--requeue", action="store_true", help="if the devices are taken back, claim and start again")
    parser.add_argument(
        "--numa",
        type=Memory,
        choices=list(Memory),
        default=Memory.BIND,
        help="CPUs near the devices, and memory from there alone (bind), or first (prefer); or anywhere (no)",
    )
    parser.add_argument(
        "--devices", choices=("lease", "any"), default="lease", help="which device nodes can be opened (lease)"
    )
    parser.add_argument("--allow", action="append", type=Path, default=[], metavar="NODE", help="one more, /dev/fuse")
    parser.add_argument("--strict", action="store_true", help="refuse to run where binding or filter is not possible")
    parser.add_argument(
        "--revoke-signal", type=_signal, default=signal.SIGTERM, metavar="SIGNAL", help="the notice to leave (TERM)"
    )


def do_run(options: argparse.Namespace) -> int:
    """``hal run``."""
    if not options.command:
        raise UsageError("there is no command", during="run", hint="hal run gpu:4 -- python train.py")
    claim = claim_of(options)
    line = line_of(options)
    restarts = 0
    while True:
        held = _claim(line, claim)
        outcome = _run(options, line, held, restarts)
        if not outcome.revoked:
            return outcome.code
        if not options.requeue:
            _say(f"its devices were taken back: {outcome.revoked}")
            return REVOKED
        restarts += 1
        # The lease is over and its id with it. The claim waits under a new one, with everything else as it was.
        claim = msgspec.structs.replace(claim, id=f"lease-{secrets.token_hex(6)}", wait=True)
        _say(f"claims again as {claim.id}")


def _claim(line: Line, claim: Claim) -> HeldLease:
    told: list[int] = []

    def tell(answer: c.Queued) -> None:
        if told[-1:] != [answer.position]:
            told.append(answer.position)
            _say(f"{claim.id} waits at place {answer.position}" + (f": {answer.why}" if answer.why else ""))

    try:
        held = line.claim(claim, tell)
    except BaseException as error:
        if told and not isinstance(error, BrokerError):
            try:
                line.release(claim.id)  # Ctrl-C while it waits: nobody will want it any more
            except HalError as also:
                _say(str(also))
        raise
    if told:
        _say(f"{claim.id} is granted: {', '.join(device.name for device in held.devices)}")
    return held


def _run(options: argparse.Namespace, line: Line, held: HeldLease, restarts: int) -> Outcome:
    filtered: Filtered | None = None
    try:
        root = root_of(os.environ, held.devices[0].node)
        orders = Orders(parent=os.getpid(), binding=_binding(options, held, root), strict=options.strict)
        filtered = _filter(options, held, root)
        if filtered is not None:
            orders = msgspec.structs.replace(orders, procs=filtered.procs)
        environ = {**os.environ, **held.env(), "HAL_TICKET": held.ticket(), "HAL_RESTARTS": str(restarts)}
        return Program(options.command, environ, orders, options.revoke_signal, _say).run(line, held)
    finally:
        if filtered is not None:
            release(filtered)
        _give_back(line, held)


def _binding(options: argparse.Namespace, held: HeldLease, root: Path) -> Binding:
    if options.numa is Memory.ANY:
        return Binding(memory=Memory.ANY)
    binding = choose(held.devices, root, memory=options.numa)
    if binding.why:
        if options.strict:
            raise AccessDenied(f"not bound: {binding.why}", device=held.id, during="bind", hint="--numa no")
        _say(f"not bound: {binding.why}")
    return binding


def _filter(options: argparse.Namespace, held: HeldLease, root: Path) -> Filtered | None:
    if options.devices == "any":
        return None
    nodes = [*USUAL, *nodes_of(held.devices, root)]
    for path in options.allow:
        found = os.stat(path)
        kind = "b" if found.st_mode & 0o170000 == 0o060000 else "c"
        nodes.append(type(USUAL[0])(kind, os.major(found.st_rdev), os.minor(found.st_rdev)))
    try:
        return confine(f"hal-{os.getpid()}", nodes)
    except AccessDenied as error:
        if options.strict:
            raise
        _say(f"{error.message}: other devices can be opened, too")
        return None


def _give_back(line: Line, held: HeldLease) -> None:
    try:
        line.release(held.id)
    except (LeaseEnded, LeaseNotFound):
        pass  # it ended by itself: there is nothing left to give back
    except HalError as error:
        _say(f"{held.id} could not be given back and expires by itself: {error}")


def _say(text: str) -> None:
    print(f"hal: run: {text}", file=sys.stderr, flush=True)


def _signal(text: str) -> int:
    name = text.upper()
    try:
        return (
            signal.Signals(int(text))
            if text.isdecimal()
            else signal.Signals[name if name[:3] == "SIG" else f"SIG{name}"]
        )
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no signal") from None
