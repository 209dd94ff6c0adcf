"""``hal-mock``: look at profiles, and break and mend the mock machine that ``HAL_MACHINE`` names."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from hal.cli.streams import open_closed_streams
from hal.errors import HalError, UsageError
from hal_mocks.cli_run import add_options, split_command
from hal_mocks.cli_run import run as _run

if TYPE_CHECKING:
    from hal_mocks.graph import Graph
    from hal_mocks.machine import Machine

USAGE = 64
FAILED = 1
_NUMBERS = ("code", "offset", "length", "generation", "width", "dpu", "tasklet")
_TEXTS = ("attribute", "value")


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run ``hal-mock``; returns 0, 1 if something could not be done, 64 for a command that makes no sense."""
    open_closed_streams()
    try:
        own, command = split_command(sys.argv[1:] if arguments is None else arguments)
        options = _parser().parse_args(own)
        options.command = command
        run: Callable[[argparse.Namespace, Mapping[str, str]], int] = options.run
        code = run(options, os.environ if environ is None else environ)
        sys.stdout.flush()
        return code
    except HalError as error:
        sys.stderr.write(f"hal-mock: {error}\n")
        return USAGE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read has enough: the flush at exit goes nowhere
        return 0
    except OSError as error:
        place, hint = error.filename or "the output", "a place that can be written to and has room"
        sys.stderr.write(f"hal-mock: {place}: {error.strerror or error} (try: {hint})\n")
        return FAILED


class _Parser(argparse.ArgumentParser):
    """A parser whose refusal has the exit status of sysexits' EX_USAGE."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"hal-mock: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hal-mock", description="Mock machines for hal: describe, render, break, mend.")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    def verb(name: str, run: Callable[[argparse.Namespace, Mapping[str, str]], int], help: str) -> _Parser:
        made = verbs.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    verb("profiles", _profiles, "list the profiles that come with hal-mocks")
    show = verb("show", _show, "show what a profile describes")
    show.add_argument("profile", metavar="PROFILE", help="a name, or the path of a TOML file")
    check = verb("check", _check, "see whether a profile of your own is right")
    check.add_argument("profile", metavar="FILE.toml")
    render = verb("render", _render, "write the machine's sysfs trees into a folder, one folder a host")
    render.add_argument("folder", metavar="FOLDER")
    fault = verb("fault", _fault, "let something go wrong with a device")
    fault.add_argument("device", metavar="DEVICE", help="an id, a name (gpu0, rack-1-n2/gpu0) or an alias")
    fault.add_argument("type", metavar="TYPE", help="lost, xid, link-down, hang, ...; a wrong one lists them all")
    fault.add_argument("--for", dest="duration", type=float, metavar="SECONDS", help="heals by itself after so long")
    fault.add_argument("--after", type=float, default=0.0, metavar="SECONDS", help="begins only then")
    fault.add_argument("--seconds", type=float, help="delay of slow, period of flap")
    for name in _NUMBERS:
        fault.add_argument(f"--{name}", type=_whole_number, metavar="N")
    for name in _TEXTS:
        fault.add_argument(f"--{name}", metavar="TEXT")
    heal = verb("heal", _heal, "take faults away: all of them, or those of one device")
    heal.add_argument("device", nargs="?", metavar="DEVICE")
    heal.add_argument("--type", metavar="TYPE")
    verb("faults", _faults, "list what is set to go wrong, and what is wrong now")
    advance = verb("advance", _advance, "move virtual time on (HAL_MACHINE=...?clock=virtual)")
    advance.add_argument("seconds", type=float, metavar="SECONDS")
    power = verb("power-failure", _power_failure, "cut the power: persistent memory keeps only what may survive")
    power.add_argument("region", nargs="?", metavar="REGION", help="one region by id or name; without it all hosts")
    power.add_argument("--host", metavar="HOST", help="one host of a rack")
    power.add_argument("--seed", type=int, metavar="N", help="the same seed and state give the same outcome")
    add_options(verb("run", _run, "run any program on a mock machine, in namespaces of its own"))
    verb("reset", _reset, "forget everything the machine remembers: faults, device state, trees")
    return parser


def _machine(environ: Mapping[str, str]) -> Machine:
    from hal_mocks.machine import open_machine

    inside = environ.get("HAL_MOCK_MACHINE")  # in a namespace HAL_MACHINE is not set: the machine is the real one there
    if inside and not environ.get("HAL_MACHINE"):
        environ = {**environ, "HAL_MACHINE": inside}
    machine = open_machine(environ)
    if machine is None:
        raise UsageError("HAL_MACHINE is not set", hint="HAL_MACHINE=dgx-h100 hal-mock ...; hal-mock profiles")
    return machine


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _profiles(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.profile import profile_names, summary_of

    names = profile_names()
    width = max(len(name) for name in names)
    for name in names:
        _say(f"{name:<{width}}  {summary_of(name)}")
    return 0


def _show(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.profile import load_profile

    _describe(load_profile(options.profile), most=16)
    return 0


def _check(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.profile import load_profile

    graph = load_profile(options.profile)
    devices = sum(
        len(host.gpus) + len(host.rnics) + len(host.dpus) + len(host.pmem) + len(host.upmem_ranks)
        for host in graph.hosts
    )
    _say(f"{options.profile}: right; {len(graph.hosts)} hosts, {devices} accelerators")
    return 0


def _describe(graph: Graph, most: int) -> None:
    for host in graph.hosts[:most]:
        where = f" in {host.rack}" if host.rack else ""
        _say(
            f"{host.name}{where}: {host.cpu_model or 'CPU'}, {len(host.numa)} NUMA nodes, {len(host.pci)} PCI functions"
        )
        for kind, found in (
            ("gpu", [(gpu.name, gpu.model, gpu.pci or "integrated") for gpu in host.gpus]),
            ("rnic", [(nic.name, nic.model, nic.pci or "soft") for nic in host.rnics]),
            ("dpu", [(dpu.name, f"{dpu.generation}, {dpu.mode} mode", dpu.pci[0]) for dpu in host.dpus]),
            ("pmem", [(region.name, region.media, f"{region.size_bytes >> 30} GiB") for region in host.pmem]),
            ("upmem", [(dimm.name, dimm.part_number, ", ".join(dimm.ranks)) for dimm in host.upmem_dimms]),
            ("nvme", [(drive.name, drive.model, drive.pci) for drive in host.nvmes]),
            ("nic", [(nic.name, f"{nic.rate_gbps:g} Gbit/s", nic.pci or "-") for nic in host.nics]),
        ):
            for name, what, place in found:
                _say(f"  {kind:<6}{name:<14}{what:<34}{place}")
    if len(graph.hosts) > most:
        _say(f"... and {len(graph.hosts) - most} more hosts")


def _render(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from pathlib import Path

    from hal_mocks.sysfs import shown, tree_of
    from hal_mocks.sysfs_files import write_all

    machine = _machine(environ)
    at = shown(machine)
    folder = Path(options.folder)
    for host in machine.graph.hosts:
        where = folder / host.name
        if where.exists() and not (where / "sys").is_dir():
            raise UsageError(f"{where} is there and is no rendered host", hint="another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_all(str(where), tree_of(host, at.faults, at.made))
        _say(str(where))
    return 0


def _fault(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.faults import FaultType, fault_type

    machine = _machine(environ)
    sort = fault_type(options.type)
    if sort is FaultType.XID and options.code is None:
        raise UsageError("an XID has a number", device=options.device, hint="--code 79")
    details = {name: getattr(options, name) for name in (*_NUMBERS, *_TEXTS, "seconds")}
    fault = machine.inject(
        options.device,
        sort,
        after_seconds=options.after,
        duration_seconds=options.duration,
        **{name: value for name, value in details.items() if value is not None},
    )
    _say(f"fault {fault.id}: {fault.type} on {fault.device}")
    return 0


def _whole_number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, such as 79 or 0x1000") from None


def _heal(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.faults import fault_type

    machine = _machine(environ)
    count = machine.heal(options.device, fault_type(options.type) if options.type else None)
    _say(f"{count} {'fault' if count == 1 else 'faults'} healed")
    return 0


def _power_failure(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.pmem_crash import power_failure

    for loss in power_failure(_machine(environ), options.region, options.host, options.seed):
        _say(
            f"{loss.region}: {loss.dirty_words} words of 8 bytes in {loss.dirty_lines} cache lines were not durable, "
            f"{loss.dirty_words - loss.kept_words} are lost"
        )
    return 0


def _faults(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    machine = _machine(environ)
    now = machine.clock.now()
    for fault in machine.state.faults():
        if fault.active(now):
            left = (
                ""
                if fault.duration_seconds is None
                else f", {fault.onset_at + fault.duration_seconds - now:.1f} s left"
            )
            state = f"now{left}"
        else:
            state = f"in {fault.onset_at - now:.1f} s" if fault.onset_at > now else "over"
        code = "" if fault.code is None else f" {fault.code}"
        _say(f"{fault.id:>4}  {fault.device}  {fault.type}{code}  {state}")
    return 0


def _advance(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from hal_mocks.clock import SharedClock
    from hal_mocks.sysfs import sync

    machine = _machine(environ)
    if not isinstance(machine.clock, SharedClock):
        raise UsageError("the machine's time is real and moves by itself", hint="HAL_MACHINE=...?clock=virtual")
    if not 0 <= options.seconds < 1e9:
        raise UsageError(f"cannot advance by {options.seconds} s", hint="seconds, 0 or more")
    machine.clock.advance(options.seconds)
    sync(machine)
    _say(f"{machine.clock.now():.3f}")
    return 0


def _reset(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    _machine(environ).forget()
    return 0


if __name__ == "__main__":
    sys.exit(main())
