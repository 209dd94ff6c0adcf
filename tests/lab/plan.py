"""What is done in which order: two boots, and the power cut between them."""

from __future__ import annotations

import compileall
import dataclasses
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from tests.lab import hardware, kernel
from tests.lab.cases import faults, programs, recording, sight
from tests.lab.guest import GuestError
from tests.lab.lab import Lab
from tests.lab.machine import Machine
from tests.lab.needs import CHECKOUT, Host
from tests.lab.report import Report

_GOLDEN = CHECKOUT / "tests/golden/lab"
_COMPILED = ("hal", "mocks/src", "plugins", "tests/lab")


class Plan:
    """One run of the lab; ``record`` renews the recordings that the golden tests use."""

    def __init__(self, host: Host, folder: Path, report: Report, *, record: bool) -> None:
        self._host = host
        self._folder = folder
        self._images = folder / "images"
        self._report = report
        self._record = record

    def run(self) -> None:
        """Do everything; what fails is in the report."""
        start = time.monotonic()
        hardware.make_images(self._images)
        try:
            self._host = dataclasses.replace(self._host, kernel=kernel.unpacked(self._host.kernel, self._folder))
            for part in _COMPILED:  # emulated, compiling takes thirty times as long
                compileall.compile_dir(CHECKOUT / part, quiet=2)
            self._report.phase("kernel and images made", start)
            if self._boot("first"):
                self._boot("second")
        finally:
            shutil.rmtree(self._images)

    def _boot(self, name: str) -> bool:
        """Boot, check, and cut the power; returns whether the guest came up."""
        check = self._report.check
        with Machine(self._host, name, self._folder, self._images) as machine:
            start = time.monotonic()
            if not check(machine.start, f"{name} boot: the guest answers"):
                return False
            booted = machine.processor_seconds
            self._report.phase(f"{name} boot", start, booted)
            start = time.monotonic()
            lab = Lab(self._host, self._folder, machine)
            if name == "first" and check(lab.prepare):
                self._first(lab)
            elif name == "second" and check(lab.prepare_memory):
                self._second(lab)
            if not self._report.passed:
                _keep_log(lab)
            self._report.phase(f"{name} boot, checks", start, machine.processor_seconds - booted)
        return True

    def _first(self, lab: Lab) -> None:
        check = self._report.check
        check(partial(programs.start_verbs_tests, lab))  # the longest of all, on the second processor
        for case in sight.CASES:
            check(partial(case, lab))
        check(partial(recording.replays, lab))
        if self._record:  # before a program changes anything
            check(lambda: _renew(lab, "whole"), "recording: the whole machine")
        for program in programs.programs():
            phase = "write" if programs.outlives_power(program) else ""
            check(programs.case(lab, program, phase), programs.title(program, phase))
        self._break(lab)
        check(partial(programs.verbs_tests, lab))

    def _break(self, lab: Lab) -> None:
        check = self._report.check
        with faults.Watch(lab) as watch:
            if not check(watch.begin):
                return
            for break_it in faults.BREAKING:
                check(partial(break_it, lab, watch))
            check(partial(faults.health, lab))
            if self._record:
                check(lambda: _renew(lab, "broken"), "recording: the broken machine")
            for mend in faults.MENDING:
                check(partial(mend, lab, watch))

    def _second(self, lab: Lab) -> None:
        for program in programs.programs():
            if programs.outlives_power(program):
                self._report.check(programs.case(lab, program, "verify"), programs.title(program, "verify"))


def _renew(lab: Lab, name: str) -> str:
    _GOLDEN.mkdir(exist_ok=True)
    target = _GOLDEN / f"{name}.tgz"
    shutil.copy(recording.record(lab, name), target)
    return f"{target.relative_to(CHECKOUT)}; renew what the golden tests expect with HAL_RECORD_GOLDEN=1"


def _keep_log(lab: Lab) -> None:
    """Keep the kernel's messages beside the console, if the guest still answers."""
    try:
        (lab.folder / f"{lab.machine.name}.dmesg.log").write_text(lab.guest.run("dmesg").out)
    except GuestError as error:
        print(f"the kernel's messages could not be kept: {error}", file=sys.stderr)
