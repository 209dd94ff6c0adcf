"""``hal-probe``: what this machine has, how it is wired, how healthy it is, and why something is not there."""

from __future__ import annotations

import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    import msgspec

    from hal.cli.probe_look import Look
    from hal.cli.probe_options import Options

_PLAIN_LINES = str.maketrans({"├": "|", "─": "-", "│": "|", "└": "`", "…": "~", "·": "-"})
_BROKEN_PIPE, _INTERRUPTED = 141, 130  # what a shell gives for SIGPIPE and SIGINT


def main() -> int:
    """Run ``hal-probe`` as a process of its own; does not return.

    A short-lived process needs no garbage collector, and no tidying of an interpreter that ends: together a tenth of
    the time. What registered itself to be called at exit still is.
    """
    import atexit
    import gc
    import os

    gc.disable()
    if sys.stdout is None or sys.stderr is None:
        from hal.cli.streams import open_closed_streams

        open_closed_streams()
    code = guarded(sys.argv[1:])
    atexit._run_exitfuncs()  # noqa: SLF001
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def guarded(arguments: Sequence[str]) -> int:
    """Run and return the exit status. A reader that goes away early is no error worth a word."""
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            return _mistake(error)
        place = error.filename or "the output"
        print(f"hal-probe: {place}: {error.strerror} (try: look at the disk it goes to)", file=sys.stderr)
        return 3
    except Exception as error:  # the last guard: whatever a machine does to us, the reader learns it in one line
        return _mistake(error)


def _mistake(error: Exception) -> int:
    print(f"hal-probe: {type(error).__name__}: {error} (please report this)", file=sys.stderr)
    return 3


def run(arguments: Sequence[str]) -> int:
    """Do what was asked; mistakes of the caller end with status 64, and say what to try."""
    if list(arguments) == ["--version"]:
        from hal.cli.version import version_line

        print(version_line("hal-probe"))
        return 0
    with_fewer_imports()
    from hal.cli.probe_options import parse
    from hal.errors import HalError, UsageError

    try:
        return _verb(parse(arguments))
    except UsageError as error:
        print(f"hal-probe: {error}", file=sys.stderr)
        return 64
    except HalError as error:
        print(f"hal-probe: {error}", file=sys.stderr)
        return 3
    except SystemExit as stop:  # argparse, after --help
        return stop.code if isinstance(stop.code, int) else 0


def with_fewer_imports() -> None:
    """Import msgspec as if ``typing_extensions`` were not installed, which it is written for.

    Where it is, msgspec would import it, and it ``inspect`` and its kin: a fifth of a whole ``hal-probe``
    (docs/decisions/0007). It can be imported as ever afterwards.
    """
    if "msgspec" in sys.modules or "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules["typing_extensions"]


def _verb(options: Options) -> int:
    verb = options.verb
    if verb == "list":
        return _list(options)
    if verb in ("tree", "topology"):
        from hal.cli.probe_topology import show_topology, show_tree

        return show_tree(options) if verb == "tree" else show_topology(options)
    if verb == "doctor":
        from hal.cli.probe_doctor import doctor

        return doctor(options)
    if verb == "watch":
        from hal.cli.probe_watch import watch

        return watch(options)
    if verb == "diff":
        from hal.cli.probe_diff import compare

        return compare(options)
    if verb == "snapshot":
        from hal.cli.probe_diff import snapshot

        return snapshot(options)
    from hal.cli.probe_schema import published

    say(published())
    return 0


def _list(options: Options) -> int:
    seen = timed(options)
    if options.format == "table":
        from hal.cli.probe_list import list_lines

        say_lines(list_lines(seen, options))
        warn(seen)
    elif options.format == "prometheus":
        from hal.cli.render.prometheus import metrics

        say(metrics(seen.devices, seen.survey.reports, seen.survey.partial))
        warn(seen)
    else:
        from hal.cli.probe_look import inventory_report

        say_report(inventory_report(seen), options)
    return seen.exit_code


def timed(options: Options) -> Look:
    """Look once, and say where the time went if that was asked."""
    from time import monotonic, process_time

    before = process_time()
    from hal.cli.probe_look import look

    start = monotonic()
    seen = look(options)
    if options.timing:
        survey, spent = 1e3 * (monotonic() - start), 1e3 * process_time()
        words = f"survey {survey:.1f} ms; processor {spent:.1f} ms since start, {1e3 * before:.1f} ms of it before"
        print(f"timing: {words}", file=sys.stderr)
        for report in seen.survey.reports:
            print(f"timing: driver {report.driver} {1e3 * report.seconds:.1f} ms", file=sys.stderr)
    seen.survey.close()
    return seen


def warn(seen: Look) -> None:
    """Say in one line each what went wrong beside the devices; programs find it in the report."""
    from hal.cli.render.text import clean

    for problem in seen.survey.problems:
        hint = f" (try: {problem.hint})" if problem.hint else ""
        print(clean(f"hal-probe: {problem.source}: {problem.step}: {problem.detail}{hint}"), file=sys.stderr)
    for one in seen.expectations:
        if not one.met:
            print(f"hal-probe: expected {one.expected} {one.kind}, found {one.found}", file=sys.stderr)


def say_report(report: msgspec.Struct, options: Options) -> None:
    """Write a report as JSON or YAML."""
    from hal.cli.probe_document import encode

    if options.format == "yaml":
        from hal.cli.probe_document import plain
        from hal.cli.render.yaml import emit

        say(emit(plain(report)))
    else:
        _write(encode(report) + b"\n")


def say_lines(lines: Sequence[str]) -> None:
    """Write lines for people."""
    say("".join(line + "\n" for line in lines))


def say(text: str) -> None:
    """Write text; where the encoding has no lines to draw with, plain characters do; the rest becomes escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        _write(text.encode(encoding))
    except UnicodeEncodeError:
        _write(text.translate(_PLAIN_LINES).encode(encoding, "backslashreplace"))


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _abandon_output() -> None:
    """Point standard output at nothing, so that the interpreter's own flush at exit finds no broken pipe."""
    import os

    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main())
