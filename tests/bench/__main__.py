"""``make bench``: run every benchmark and print one table. Names on the command line choose among them.

Each runs in an interpreter of its own: what one leaves in memory shall not slow the next down.
"""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

ALONE = "--alone"


def main(names: list[str]) -> int:
    if names[:1] == [ALONE]:
        return alone(names[1])
    modules = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    chosen = [module for module in modules if not names or any(name in module for name in names)]
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    print(
        f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}\n"
    )
    print("| what | measured | compared with, same run | ratio | goal | met | includes |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    missed = 0
    for module in chosen:
        done = subprocess.run([sys.executable, "-m", "tests.bench", ALONE, module], check=False)
        if done.returncode < 0 or done.returncode >= 100:
            print(f"{module} failed with status {done.returncode}", file=sys.stderr)
            return 1
        missed += done.returncode
    print(f"\n{missed} goals missed" if missed else "\nall goals met")
    return 0


def alone(module: str) -> int:
    """Run one module's benchmarks; the exit status counts the goals missed."""
    missed = 0
    for row in importlib.import_module(f"tests.bench.{module}").run():
        missed += not row.met
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        met = "yes" if row.met else "**no**"
        print(
            f"| {row.name} | {row.measured} | {row.peer} | {ratio} | {row.goal} | {met} | {row.includes} |", flush=True
        )
    return missed


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except Exception:
        import traceback

        traceback.print_exc()
        status = 100
    sys.exit(status)
