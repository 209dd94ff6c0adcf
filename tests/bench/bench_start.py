"""How long a whole ``hal-probe`` takes, against the bare start of the same interpreter."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.rows import Row

BIN = Path(sys.executable).parent


def run() -> Iterator[Row]:
    from hal_mocks.sysfs import host_roots

    with tempfile.TemporaryDirectory() as scratch:
        root = host_roots({"HAL_MACHINE": f"dgx-h100?state={scratch}/mock"})[0].root
        environ = {**os.environ, "HAL_SYSFS_ROOT": str(root), "XDG_CACHE_HOME": scratch}
        for name in ("HAL_MACHINE", "PYTHONDONTWRITEBYTECODE"):
            environ.pop(name, None)

        def start(*command: str) -> None:
            subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

        probe = str(BIN / "hal-probe")
        start(probe)  # fills the caches: byte code and the list of plugins
        for name, limit, arguments in (
            ("hal-probe --format json", 5.0, ("--format", "json")),
            ("hal-probe (table)", 7.0, ()),
        ):
            # In turns: on a shared machine a minute is long enough for everything to become half as fast.
            pairs = [
                (_seconds(start, sys.executable, "-c", "pass"), _seconds(start, probe, *arguments)) for _ in range(41)
            ]
            bare, took = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(probed / plain for plain, probed in pairs)
            yield Row(
                name=name,
                measured=f"{took * 1e3:.1f} ms",
                peer=f"python -c pass: {bare * 1e3:.1f} ms",
                ratio=ratio,
                goal=f"at most {limit:.0f}x",
                met=ratio <= limit,
                includes="whole process, dgx-h100 tree, all plugins installed, warm caches",
            )


def _seconds(run: Callable[..., object], *command: str) -> float:
    start = time.perf_counter()
    run(*command)
    return time.perf_counter() - start
