"""Programs that run whole in the guest: those under ``tests/lab/checks``, and the rdma plugin's own tests.

A program is run with the environment's interpreter in the checkout and passes with status 0; its last line of output
is shown. One that knows ``--phase`` runs twice: ``--phase write``, then the power is cut, and after the next boot
``--phase verify``. It may use ``region0`` and ``region2`` as it likes, ``rxe0`` and ``rxe1``; ``region1`` and the NVMe
are where faults are made.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from tests.lab.guest import Ended, GuestError
from tests.lab.lab import Lab
from tests.lab.needs import CHECKOUT

PROGRAMS = CHECKOUT / "tests/lab/checks"
_RDMA_TESTS = CHECKOUT / "plugins/rdma/tests"
_SECONDS = 240.0
_TESTS_SECONDS = 900.0
_ONE_TEST_SECONDS = 300


def programs() -> list[Path]:
    """Return the programs, in the order of their names."""
    return sorted(path for path in PROGRAMS.glob("*.py") if not path.name.startswith("_"))


def outlives_power(program: Path) -> bool:
    """True for a program that is run before and after the power is cut."""
    return "--phase" in program.read_text()


def title(program: Path, phase: str = "") -> str:
    """Return what a program checks: the first line of its documentation."""
    words = (ast.get_docstring(ast.parse(program.read_text())) or program.stem).partition("\n")[0].partition(". ")[0]
    return f"{words.rstrip('.')} ({program.stem}{' ' + phase if phase else ''})"


def case(lab: Lab, program: Path, phase: str = "") -> Callable[[], str]:
    """Return the check that runs a program."""

    def run() -> str:
        arguments = ("--phase", phase) if phase else ()
        return _last_line(lab.guest.run(lab.host.python, program, *arguments, timeout=_SECONDS))

    return run


def start_verbs_tests(lab: Lab) -> str:
    """the rdma plugin's tests over verbs start beside what follows"""
    files = sorted(str(path.relative_to(CHECKOUT)) for path in _RDMA_TESTS.glob("test_*verbs*.py"))
    if not files:
        raise GuestError(f"there is no test_*verbs*.py in {_RDMA_TESTS.relative_to(CHECKOUT)}")
    lab.beside = lab.guest.start(
        # By -c: a peer process that multiprocessing spawns imports what -m named, and pytest takes long, emulated.
        lab.host.python, "-c", "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        "-q", "-p", "no:cacheprovider", "--timeout", str(_ONE_TEST_SECONDS), *files,
        timeout=_TESTS_SECONDS,
        environ={"HAL_LAB": "1"},
    )  # fmt: skip
    return ", ".join(files)


def verbs_tests(lab: Lab) -> str:
    """the rdma plugin passes its tests and the conformance kit over verbs"""
    if lab.beside is None:
        raise GuestError("they did not start")
    ended = lab.beside.wait()
    last = _last_line(ended)
    if ended.code:
        raise AssertionError(f"pytest ended with {ended.code}:\n{ended.out[-4000:]}{ended.err[-2000:]}")
    if "skipped" in last:  # the lab has all that they can ask for
        raise AssertionError(f"some were skipped:\n{ended.out[-3000:]}")
    return last


def _last_line(ended: Ended) -> str:
    """Return the last line of a program's output; where it prints a line of JSON for each check, how many it did."""
    lines = ended.out.strip().splitlines()
    if lines and lines[-1].startswith('{"check"'):
        return f"{len(lines)} checks in it"
    return lines[-1].strip("= ") if lines else ""
