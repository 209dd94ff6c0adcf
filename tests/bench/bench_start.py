"""How long a whole ``hal-probe`` takes, against the bare start of the same interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row, best

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

        start(str(BIN / "hal-probe"))  # fills the caches: byte code and the list of plugins
        bare = best(lambda: start(sys.executable, "-c", "pass"), repeat=31)
        for name, limit, arguments in (
            ("hal-probe --format json", 5.0, ("--format", "json")),
            ("hal-probe (table)", 7.0, ()),
        ):
            took = best(lambda arguments=arguments: start(str(BIN / "hal-probe"), *arguments), repeat=31)
            yield Row(
                name=name,
                measured=f"{took * 1e3:.1f} ms",
                peer=f"python -c pass: {bare * 1e3:.1f} ms",
                ratio=took / bare,
                goal=f"at most {limit:.0f}x",
                met=took / bare <= limit,
                includes="whole process, dgx-h100 tree, all plugins installed, warm caches",
            )
