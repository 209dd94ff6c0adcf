"""``python -m tests.lab``: boot the guest, make it show everything, cut its power, boot it again, report."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.lab.needs import CHECKOUT, Missing, find_host
from tests.lab.plan import Plan
from tests.lab.report import Report

_PASSED, _FAILED, _NOT_HERE, _STOPPED = 0, 1, 2, 143


def main() -> int:
    """Run the lab; 0 if every check passed, 1 if not, 2 if this machine lacks something."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "build/lab", help="for results, logs and images")
    parser.add_argument("--record", action="store_true", help="renew the recordings in tests/golden/lab")
    options = parser.parse_args()
    try:
        host = find_host()
    except Missing as missing:
        print("The lab cannot run on this machine. It needs:", *missing.lines, sep="\n  ", file=sys.stderr)
        return _NOT_HERE
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.log"), *folder.glob("*.json"), *folder.glob("*.xml")):
        old.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_STOPPED))
    report = Report()
    try:
        Plan(host, folder, report, record=options.record).run()
    finally:
        report.write(folder)
    print(f"{report.verdict()}; {folder}/summary.json and junit.xml", flush=True)
    return _PASSED if report.passed else _FAILED


if __name__ == "__main__":
    sys.exit(main())
