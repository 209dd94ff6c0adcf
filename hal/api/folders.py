"""Where the broker keeps its journal, and where the guard pages live."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hal.errors import UsageError


class Folders(msgspec.Struct, frozen=True):
    """``state`` survives a reboot, ``runtime`` need not."""

    state: Path
    runtime: Path


def folders(environ: Mapping[str, str] | None = None, state: str | os.PathLike[str] | None = None) -> Folders:
    """Return the folders of this user's broker.

    State: ``$XDG_STATE_HOME/hal``, else ``~/.local/state/hal``; ``/var/lib/hal`` for root. Runtime:
    ``$XDG_RUNTIME_DIR/hal``, ``/run/hal`` for root. A machine named by ``HAL_MACHINE`` (or a tree named by
    ``HAL_SYSFS_ROOT``) gets folders of its own below, so that its leases never mix with those of real devices.
    ``state`` names a folder for both. A relative ``XDG_…`` folder is ignored, as its specification asks.
    """
    environ = os.environ if environ is None else environ
    if state is not None:
        kept = Path(state)
        if not kept.name:
            raise UsageError(f"the state folder is {str(kept)!r}", during="open", hint="--state FOLDER, with a name")
        kept = kept.absolute()
        return Folders(kept, kept / "run")
    root = os.getuid() == 0
    below = Path("hal")
    machine = "\n".join((_named(environ.get("HAL_MACHINE", "")), _path(environ.get("HAL_SYSFS_ROOT", "")))).strip()
    if machine:
        below = Path("hal", "machine-" + hashlib.sha256(machine.encode()).hexdigest()[:16])
    if os.path.isabs(environ.get("XDG_STATE_HOME", "")):  # a relative one is invalid, says its specification
        kept = Path(environ["XDG_STATE_HOME"])
    else:
        kept = Path("/var/lib") if root else Path(environ.get("HOME") or Path.home(), ".local", "state")
    if os.path.isabs(environ.get("XDG_RUNTIME_DIR", "")):
        fleeting = Path(environ["XDG_RUNTIME_DIR"])
    else:
        fleeting = Path("/run") if root else Path(tempfile.gettempdir(), f"hal-{os.getuid()}")
    return Folders(kept / below, fleeting / below)


def _named(machine: str) -> str:
    """Return what ``HAL_MACHINE`` names, the same wherever it is said: its paths do not depend on where one stands."""
    profile, _, options = machine.partition("?")
    words = sorted(word for word in options.split("&") if word)
    whole = [f"state={_path(word[6:])}" if word.startswith("state=") else word for word in words]
    profile = _path(profile) if "/" in profile or profile.endswith(".toml") else profile
    return f"{profile}?{'&'.join(whole)}" if whole else profile


def _path(text: str) -> str:
    return os.path.abspath(text) if text else ""
