"""The command line of ``hal-probe``: what was asked, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.errors import UsageError
from hal.model.kind import Kind

VERBS = {
    "list": "the devices, as a table (this is the default)",
    "tree": "the machine as a tree: NUMA nodes, host bridges, switches, devices",
    "topology": "distances of GPUs, NICs, NVMe and persistent memory; a picture with --svg FILE",
    "watch": "a line for everything that appears, changes, fails or goes",
    "doctor": "why something is not found, per kind, and the command that mends it",
    "snapshot": "snapshot FILE.tgz: record this machine, to be looked at with --root",
    "diff": "diff OLD NEW: compare two JSON reports, snapshots or recorded trees (- is standard input)",
    "schema": "the JSON schema of all reports",
}
FORMATS = ("table", "json", "yaml", "prometheus")
_FORMATS_OF = {
    "list": FORMATS,
    "watch": ("table", "json"),
    "snapshot": ("table",),
    "schema": ("table", "json"),
}
_OPERANDS = {"snapshot": ("FILE.tgz",), "diff": ("OLD", "NEW")}
_ONLY = {"svg": "topology", "matrix": "topology", "seconds": "watch", "interval": "watch"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. ``seconds`` is how long ``watch`` goes on; None: until it is interrupted."""

    verb: str = "list"
    operands: tuple[str, ...] = ()
    format: str = "table"
    kinds: frozenset[Kind] | None = None
    where: str = ""
    root: str | None = None
    expect: tuple[tuple[Kind, int], ...] = ()
    timeout: float = 2.0
    timing: bool = False
    color: str = "auto"
    all: bool = False
    svg: str | None = None
    matrix: bool = False
    seconds: float | None = None
    interval: float | None = None


def parse(arguments: Sequence[str]) -> Options:
    """Return what was asked; raises ``UsageError``, or ``SystemExit`` after ``--help``."""
    if not arguments:
        return Options()
    # The two calls that scripts repeat most do without argparse.
    if tuple(arguments) in (("--format", "json"), ("--format=json",), ("--json",)):
        return Options(format="json")
    return _parse(arguments)


def _parse(arguments: Sequence[str]) -> Options:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise UsageError(message, hint="hal-probe --help")

    parser = Parser(
        prog="hal-probe",
        description="Show what this machine has, how it is wired, how healthy it is, and why something is not there.",
        epilog="exit status: 0 all healthy; 1 something degraded or worse (diff: different); 2 something expected is "
        "absent; 3 partial, a plugin failed or ran out of time; 64 usage. The highest that applies is given.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=True,
    )
    parser.add_argument(
        "verb",
        nargs="?",
        default="list",
        metavar="VERB",
        help="one of: " + "; ".join(f"{verb}: {what.replace('%', '%%')}" for verb, what in VERBS.items()),
    )
    parser.add_argument("operands", nargs="*", metavar="FILE", help="the files of snapshot and diff")
    parser.add_argument("--format", choices=FORMATS, default="table", help="table (default), json, yaml or prometheus")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="the same as --format json")
    parser.add_argument("--kind", metavar="KIND,…", help="only these kinds: " + ", ".join(Kind))
    parser.add_argument("--where", default="", metavar="EXPR", help="only devices that fit, as 'numa_node == 0'")
    parser.add_argument("--root", metavar="DIR|SNAPSHOT", help="look at a recorded machine instead of this one")
    parser.add_argument("--expect", action="append", default=[], metavar="KIND=N", help="fail if there are fewer")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="for each driver (default 2)")
    parser.add_argument("--timing", action="store_true", help="say on stderr where the time went")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="NO_COLOR is honoured")
    parser.add_argument("--all", action="store_true", help="in tables also bridges and other PCI functions")
    parser.add_argument("--svg", metavar="FILE", help="topology: draw the picture into a file (- is standard output)")
    parser.add_argument("--matrix", action="store_true", help="topology: only the distance matrix")
    parser.add_argument("--for", type=float, dest="seconds", metavar="SECONDS", help="watch: end after this long")
    parser.add_argument("--interval", type=float, metavar="SECONDS", help="watch: between two looks (default 1)")
    return check(vars(parser.parse_intermixed_args(list(arguments))))


def check(given: dict[str, object]) -> Options:
    """Return the options if they make sense together; raises ``UsageError`` that says what does not."""
    verb, written = str(given["verb"]), str(given["format"])
    if verb not in VERBS:
        raise UsageError(f"{verb!r} is no verb", hint="one of " + ", ".join(VERBS))
    formats = _FORMATS_OF.get(verb, ("table", "json", "yaml"))
    if written not in formats:
        raise UsageError(f"{verb} has no format {written}", hint="one of " + ", ".join(formats))
    operands: tuple[str, ...] = tuple(given["operands"])  # type: ignore[arg-type]
    wanted = _OPERANDS.get(verb, ())
    if len(operands) != len(wanted):
        raise UsageError(
            f"{verb} takes {' '.join(wanted) or 'no files'}, not {' '.join(operands) or 'nothing'}",
            hint="hal-probe --help",
        )
    for name, owner in _ONLY.items():
        if given[name] not in (None, False) and verb != owner:
            raise UsageError(f"--{'for' if name == 'seconds' else name} belongs to {owner}", hint=f"hal-probe {owner}")
    for name in ("timeout", "interval", "seconds"):
        value = given[name]
        if isinstance(value, float) and not 0 < value < 1e9:
            raise UsageError(f"{value:g} seconds make no sense", hint="a number of seconds greater than 0")
    fields = {name: given[name] for name in Options.__struct_fields__ if name in given}
    fields["operands"] = operands
    fields["kinds"] = None if given["kind"] is None else frozenset(kinds_of(str(given["kind"])))
    fields["expect"] = tuple(_expectation(text) for text in given["expect"])  # type: ignore[attr-defined]
    if given["where"]:
        from hal.model.selector import compile_selector

        compile_selector(str(given["where"]))
    return Options(**fields)  # type: ignore[arg-type]


def kinds_of(text: str) -> tuple[Kind, ...]:
    """Return the kinds of a list as ``gpu,rnic``; raises ``UsageError``."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in Kind._value2member_map_:
            raise UsageError(f"{name!r} is no kind", hint="one of " + ", ".join(Kind))
    return tuple(Kind(name) for name in names)


def _expectation(text: str) -> tuple[Kind, int]:
    name, _, count = text.partition("=")
    if not count.isdecimal() or not name:
        raise UsageError(f"--expect {text!r} is not KIND=N", hint="--expect gpu=8")
    (kind,) = kinds_of(name)[:1]
    return kind, int(count)
