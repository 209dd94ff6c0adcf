"""How long a whole ``hal-probe`` takes, against the bare start of the same interpreter."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.rows import Row


def run() -> Iterator[Row]:
    from hal_mocks.sysfs import host_roots

    with tempfile.TemporaryDirectory() as scratch:
        root = host_roots({"HAL_MACHINE": f"dgx-h100?state={scratch}/mock"})[0].root
        environ = {**os.environ, "HAL_SYSFS_ROOT": str(root), "XDG_CACHE_HOME": scratch}
        for name in ("HAL_MACHINE", "PYTHONDONTWRITEBYTECODE"):
            environ.pop(name, None)
        alone = _core_alone(Path(scratch, "core"))
        every = "all plugins installed: pluggy is imported, and rdma looks at its NICs"
        for name, python, limit, arguments, includes in (
            ("hal-probe --format json, the core alone", alone, 5.0, ("--format", "json"), "no plugin installed"),
            ("hal-probe (table), the core alone", alone, 7.0, (), "no plugin installed"),
            ("hal-probe --format json", Path(sys.executable), None, ("--format", "json"), every),
        ):
            yield _row(name, str(python), limit, arguments, includes, environ)


def _row(
    name: str, python: str, limit: float | None, arguments: tuple[str, ...], includes: str, environ: dict[str, str]
) -> Row:
    def start(*command: str) -> None:
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    probe = (python, "-c", "from hal.cli.probe import main; raise SystemExit(main())", *arguments)
    start(*probe)  # fills the caches: byte code and the list of plugins
    # In turns: on a shared machine a minute is long enough for everything to become half as fast.
    pairs = [(_seconds(start, python, "-c", "pass"), _seconds(start, *probe)) for _ in range(41)]
    bare, took = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(probed / plain for plain, probed in pairs)
    return Row(
        name=name,
        measured=f"{took * 1e3:.1f} ms",
        peer=f"python -c pass: {bare * 1e3:.1f} ms",
        ratio=ratio,
        goal="none" if limit is None else f"at most {limit:.0f}x",
        met=limit is None or ratio <= limit,
        includes=f"whole process, dgx-h100 tree, {includes}, warm caches",
    )


def _core_alone(folder: Path) -> Path:
    """Return the interpreter of an environment that has the core and what it depends on, and nothing else."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("msgspec", "numpy", "pluggy"):
        module = importlib.util.find_spec(name)
        assert module is not None
        assert module.origin is not None
        (site / name).symlink_to(Path(module.origin).parent)
    (site / "hal").symlink_to(Path(__file__).parents[2] / "hal")
    return folder / "bin" / "python"


def _seconds(run: Callable[..., object], *command: str) -> float:
    start = time.perf_counter()
    run(*command)
    return time.perf_counter() - start
