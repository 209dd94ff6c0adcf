"""``hal``: claim devices, use them, give them back.

Exit codes: 0 done, 1 refused, 64 wrong usage, 70 internal error, 75 busy or failing for the moment: try again.
A word that is no command of ours is looked for on PATH as ``hal-WORD``.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hal.cli.streams import open_closed_streams
from hal.errors import BrokerError, HalError, JournalError, UsageError

DONE, REFUSED, USAGE, INTERNAL, TRY_AGAIN = 0, 1, 64, 70, 75
VERBS = {
    "claim": "ask for devices and hold them",
    "open": "open the devices of a lease here and show that they work",
    "env": "print the environment of a lease, for eval",
    "renew": "let a lease last longer",
    "release": "give the devices of a lease back",
    "list": "list the leases",
    "status": "count devices and leases",
    "repair": "reset a device that broke, and hand it out again if it is well",
    "explain": "say why a claim would be refused",
    "events": "print what happened",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        return _other_program(words)
    if words[:1] == ["--version"]:
        from hal.cli.version import version_line

        print(version_line("hal"))
        return DONE
    options = _parser().parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is shown escaped
    try:
        code = _run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _hush()  # whoever read us has gone
        return DONE
    except KeyboardInterrupt:
        return 130
    except HalError as error:
        return _report(error, options.json)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT):
            return _report_mistake(error, options)
        hint = "look at the disk; hal list says what is held"
        print(f"hal: {options.verb}: {error.strerror} (try: {hint})", file=sys.stderr)
        _hush()
        return TRY_AGAIN
    except Exception as error:  # a guard: whatever it is, a script must be able to tell it from "refused"
        return _report_mistake(error, options)


def _hush() -> None:
    """Nothing is left to say: what still waits to be written when Python ends goes nowhere."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(options: argparse.Namespace) -> int:
    if options.verb in ("explain", "repair", "status"):
        from hal.cli import insight as module
    else:
        from hal.cli import leases as module  # type: ignore[no-redef]
    verb: Callable[[argparse.Namespace], int] = getattr(module, f"do_{options.verb}")
    return verb(options)


def _report_mistake(error: Exception, options: argparse.Namespace) -> int:
    import traceback

    if options.traceback:
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    print(f"hal: {options.verb}: {type(error).__name__}: {text} ({place.filename}:{place.lineno})", file=sys.stderr)
    print("hal: this is a mistake of ours; please report it (try: the same with --traceback)", file=sys.stderr)
    return INTERNAL


def _report(error: HalError, as_json: bool) -> int:
    if isinstance(error, UsageError):
        code = USAGE
    elif isinstance(error, JournalError):
        code = TRY_AGAIN
    else:
        code = REFUSED
    if as_json:
        import json

        kind = type(error).__name__
        document = {"error": kind, "message": error.message, "device": error.device, "hint": error.hint}
        print(json.dumps({**document, "during": error.during}))
    print(f"hal: {'refused: ' if isinstance(error, BrokerError) and code == REFUSED else ''}{error}", file=sys.stderr)
    return code


def _other_program(words: list[str]) -> int:
    import shutil

    # Beside this interpreter, too: a virtual environment works by path, without being activated.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)))
    program = shutil.which(f"hal-{words[0]}", path=path) if "/" not in words[0] else None
    if program is None:
        import difflib

        close = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"hal: there is no command {words[0]!r}{hint} (hal --help lists them)", file=sys.stderr)
        return USAGE
    try:
        os.execv(program, [program, *words[1:]])
    except (OSError, ValueError) as error:
        print(f"hal: {program} cannot be run: {error} (try: chmod +x, and a first line with #!)", file=sys.stderr)
        return USAGE


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--state", type=_folder, metavar="DIR", help="keep the journal in this folder")
    common.add_argument(
        "--wait", type=_seconds, default=5.0, metavar="SECONDS", help="how long to wait for another process's turn (5)"
    )
    common.add_argument("--traceback", action="store_true", help="if hal itself fails, say where")
    parser = _Parser(prog="hal", description="Claim the devices of this machine, use them, give them back.")
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_Parser)
    verbs = {name: commands.add_parser(name, help=text, parents=[common]) for name, text in VERBS.items()}
    for name in ("claim", "explain"):
        _add_claim(verbs[name])
    for name in ("open", "env", "renew", "release"):
        verbs[name].add_argument("lease", help="the lease's id")
    verbs["open"].add_argument("device", nargs="?", help="one device of it, by name or id (all)")
    verbs["renew"].add_argument("--ttl", type=float, metavar="SECONDS", help="a different time to live from now on")
    for name in ("list", "release", "renew"):
        verbs[name].add_argument("--tenant", help="only leases of this tenant")
    _add_repair(verbs["repair"])
    verbs["events"].add_argument(
        "--since", type=_revision, default=0, metavar="REVISION", help="what came after (0: all)"
    )
    return parser


def _add_repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", help="its id, name or alias")
    parser.add_argument("--scrub", action="store_true", help="erase it, too: everything on it is lost")
    parser.add_argument("--by-operator", metavar="REASON", help="what you did about it; recorded, and nothing is reset")
    parser.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="SECONDS", help="how long a reset may take (120)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds between 0 and 86400")
    return seconds


def _revision(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a revision, which is 0 or more")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the folder has no name")
    return Path(text)


def _add_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="*", metavar="KIND[:COUNT]", help="gpu, or gpu:4 rnic:4")
    parser.add_argument("--count", type=int, metavar="N", help="how many (1)")
    parser.add_argument("--where", default="", metavar="EXPRESSION", help="as in: memory_bytes >= 80*GB")
    parser.add_argument("--same", metavar="PLACE", help="node, numa, pci-switch or rack")
    parser.add_argument("--ttl", type=float, metavar="SECONDS", help="time to live without renewal (60)")
    parser.add_argument("--tenant", help="on whose account (default)")
    parser.add_argument("--id", help="makes the claim idempotent: asked twice, granted once")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a whole claim in TOML or JSON")


if __name__ == "__main__":
    sys.exit(main())
