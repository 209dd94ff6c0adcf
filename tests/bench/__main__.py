"""``make bench``: run every benchmark and print one table. Names on the command line choose among them."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path


def main(names: list[str]) -> int:
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
    print("| --- | --- | --- | --- | --- | --- | --- |")
    missed = 0
    for module in chosen:
        for row in importlib.import_module(f"tests.bench.{module}").run():
            missed += not row.met
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            met = "yes" if row.met else "**no**"
            print(
                f"| {row.name} | {row.measured} | {row.peer} | {ratio} | {row.goal} | {met} | {row.includes} |",
                flush=True,
            )
    print(f"\n{missed} goals missed" if missed else "\nall goals met")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
