from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.compiled import keep_compiled

BIN = Path(sys.executable).parent


class Doors:
    """Runs the installed commands as a user does, in an environment of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.site = home / "site"
        self.site.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "PYTHONPATH": str(self.site),
            "PYTHONWARNINGS": "error",
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "120",
        }
        (home / "run").mkdir(mode=0o700)
        keep_compiled(home / "cache")

    def run(
        self, command: str, *args: str, environ: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command), *args],
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def install(self, name: str, source: str) -> None:
        """Put a plugin of one module on the path, with an entry point, as pip would."""
        module = f"halplug_{name}"
        (self.site / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.site / f"rackhal_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rackhal-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hal.plugins]\n{name} = {module}\n")


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path)


@pytest.fixture
def mock(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment in which the machine is a mock one, with a state folder of its own."""
    return lambda profile: {"HAL_MACHINE": f"{profile}?state={tmp_path / 'mock'}"}
