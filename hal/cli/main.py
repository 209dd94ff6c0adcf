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

from hal.cli.options import USAGE, VERBS, parse
from hal.cli.streams import open_closed_streams
from hal.errors import BrokerError, HalError, JournalError, UsageError

DONE, REFUSED, INTERNAL, TRY_AGAIN = 0, 1, 70, 75
_PASSING = ("Limited", "Unreachable")  # of hal.api.wire, which most verbs need not load
_HOMES = {
    "status": "insight",
    "explain": "insight",
    "repair": "insight",
    "queue": "insight",
    "events": "history",
    "audit": "history",
    "cordon": "operating",
    "uncordon": "operating",
    "drain": "operating",
    "tenants": "operating",
    "quotas": "operating",
    "serve": "serving",
    "token": "serving",
    "completion": "serving",
    "run": "run",
}
"""Where a verb lives, if not in ``hal.cli.leases``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        return _other_program(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is shown escaped
    options = argparse.Namespace(verb=words[0] if words[:1] and words[0] in VERBS else "help", traceback=False)
    try:
        if words[:1] == ["--version"]:
            from hal.cli.version import version_line

            print(version_line("hal"))
            code = DONE
        else:
            options = _parsed(words)
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


def _parsed(words: list[str]) -> argparse.Namespace:
    try:
        return parse(words)
    finally:
        sys.stdout.flush()  # help ends the process: what keeps it from being written is said before


def _hush() -> None:
    """Nothing is left to say: what still waits to be written when Python ends goes nowhere."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(options: argparse.Namespace) -> int:
    from importlib import import_module

    module = import_module(f"hal.cli.{_HOMES.get(options.verb, 'leases')}")
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
    elif isinstance(error, JournalError) or type(error).__name__ in _PASSING:
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


if __name__ == "__main__":
    sys.exit(main())
