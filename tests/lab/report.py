"""What came of the checks: a line each as they end, then JSON and JUnit for programs."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class Result:
    """One check: its title, whether it passed, how long it took, one line of detail, and the cause if it failed."""

    name: str
    passed: bool
    seconds: float
    detail: str = ""
    cause: str = ""


@dataclass
class Report:
    """All results of one run, and how long its phases took."""

    results: list[Result] = field(default_factory=list)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        """True if there was something to pass and all did."""
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self.started

    def check(self, case: Callable[[], str | None], name: str | None = None) -> bool:
        """Do one check, print its line, return whether it passed; whatever it raises is its failure, not ours.

        Without a name it has the first line of the documentation of what is called.
        """
        called = case.func if isinstance(case, partial) else case
        name = name or (called.__doc__ or called.__name__).splitlines()[0].rstrip(".")
        start = time.monotonic()
        try:
            detail, cause = case() or "", ""
        except Exception as error:  # the guard around a check: the others still count
            last = traceback.extract_tb(error.__traceback__)[-1]
            detail = f"{type(error).__name__} ({Path(last.filename).name}:{last.lineno})"
            cause = str(error) or last.line or ""
        result = Result(name, not cause, round(time.monotonic() - start, 2), detail, cause)
        self.results.append(result)
        word = "ok  " if result.passed else "FAIL"
        print(
            f"{self.seconds:6.1f}  {word} {result.seconds:5.1f} s  {name}{': ' + detail if detail else ''}", flush=True
        )
        if cause:
            print("".join(f"              {line}\n" for line in cause.splitlines()[-40:]), end="", flush=True)
        return result.passed

    def phase(self, name: str, start: float, processor_seconds: float | None = None) -> None:
        """Note how long a phase took that began at ``start`` (``time.monotonic()``), and QEMU's processor time."""
        seconds = round(time.monotonic() - start, 2)
        self.phases[name] = {"seconds": seconds}
        used = ""
        if processor_seconds is not None:
            self.phases[name]["processor_seconds"] = round(processor_seconds, 2)
            used = f" ({processor_seconds:.1f} s of processor time)"
        print(f"{self.seconds:6.1f}  ---- {seconds:5.1f} s  {name}{used}", flush=True)

    def verdict(self) -> str:
        """Say in one line what came of it."""
        failed = sum(not result.passed for result in self.results)
        count = len(self.results)
        return f"{failed} of {count} checks FAILED" if failed else f"{count} checks passed in {self.seconds:.0f} s"

    def write(self, folder: Path) -> None:
        """Write ``summary.json`` and ``junit.xml``."""
        summary = {
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "phases": self.phases,
            "checks": [asdict(result) for result in self.results],
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        suite = ElementTree.Element(
            "testsuite",
            name="lab",
            tests=str(len(self.results)),
            failures=str(sum(not result.passed for result in self.results)),
            time=f"{self.seconds:.2f}",
        )
        for result in self.results:
            case = ElementTree.SubElement(
                suite, "testcase", classname="lab", name=result.name, time=f"{result.seconds:.2f}"
            )
            if not result.passed:
                ElementTree.SubElement(case, "failure", message=result.detail).text = _printable(result.cause)
        ElementTree.ElementTree(suite).write(folder / "junit.xml", encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """XML has no form for control characters, which a console is full of."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
