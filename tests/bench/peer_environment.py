"""An interpreter with a peer in it: a virtual environment under the cache folder, made when it is first needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

INSTALL_SECONDS = 900
RUN_SECONDS = 300


class PeerMissing(Exception):
    """A peer cannot be had or does not run here; the message says why."""


def folder() -> Path:
    """Return where peers live: ``HAL_PEERS``, or ``hal/peers`` in the user's cache folder."""
    named = os.environ.get("HAL_PEERS")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else cache / "hal" / "peers"


def interpreter(distribution: str) -> Path:
    """Return a Python that has the distribution, installed by pip by its name if it is not there yet."""
    home = folder() / f"{distribution}-py{sys.version_info[0]}.{sys.version_info[1]}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(home)], INSTALL_SECONDS, f"no environment in {home}")
        _run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", distribution],
            INSTALL_SECONDS,
            f"pip cannot install {distribution}",
        )
        done.touch()
    return python


def ask(distribution: str, script: Path) -> dict[str, Any]:
    """Run a peer's script by its own interpreter, in its own process, and return the JSON of its last line."""
    output = _run([str(interpreter(distribution)), str(script)], RUN_SECONDS, f"{distribution} does not run here")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def _run(command: list[str], seconds: float, what: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HAL_"))}
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds, env=clean)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{what}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise PeerMissing(f"{what}: {said[-1]}")
    return done.stdout
