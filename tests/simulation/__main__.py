"""``python -m tests.simulation FIRST COUNT [--trace] [--bug NAME]``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback

from tests.simulation.bugs import BUGS
from tests.simulation.world import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--trace", action="store_true", help="print what happened")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant one")
    options = parser.parse_args()
    failed = []
    begun = time.monotonic()
    events = 0
    with BUGS[options.bug]() if options.bug else contextlib.nullcontext():
        for seed in range(options.first, options.first + options.count):
            try:
                world = run_seed(seed)
                events += len(world.time.trace)
                if options.trace:
                    print("\n".join(world.time.trace))
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {error}")
                if options.trace:
                    traceback.print_exc()
    seconds = time.monotonic() - begun
    print(f"{options.count} seeds, {len(failed)} failed {failed[:10]}, {seconds:.1f} s, {events} lines of trace")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
