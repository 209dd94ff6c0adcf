"""The guest recorded by ``hal-probe snapshot``, and the recording looked at on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.lab.lab import Lab, value

_LARGEST_BYTES = 200_000
# What a snapshot replaces by pseudonyms.
_HIDDEN = frozenset(
    {"serial", "set_cookie", "node_guid", "gids", "dimms", "dimm_id", "mac", "sys_image_guid", "namespaces", "uuid"}
)


def replays(lab: Lab) -> str:
    """a snapshot made in the guest shows the same machine on the host"""
    path = record(lab, "first")
    again = replay(path, lab.folder)
    live = {device["name"]: device for device in lab.seen["devices"]}
    shown = {device["name"]: device for device in again["devices"]}
    kinds = {name: device["kind"] for name, device in live.items()}
    assert {name: device["kind"] for name, device in shown.items()} == kinds
    compared = 0
    for name, device in shown.items():
        assert _place(device) == _place(live[name]), name
        for attribute, found in device["attributes"].items():
            before = live[name]["attributes"].get(attribute, {})
            if attribute not in _HIDDEN and found.get("source") == before.get("source"):
                assert found.get("value") == before.get("value"), (name, attribute, before, found)
                compared += 1
    serials = [value(device, "serial") for device in lab.seen["devices"]]
    told = json.dumps(again)
    leaked = [serial for serial in serials if serial and len(serial) > 4 and serial in told]
    assert not leaked, f"the snapshot tells serial numbers: {leaked}"
    return f"{len(shown)} devices, {compared} attributes, {path.stat().st_size >> 10} KiB"


def record(lab: Lab, name: str) -> Path:
    """Record the guest and bring the recording here."""
    inside = f"/run/lab/{name}.tgz"
    ended = lab.hal_probe("snapshot", inside)
    assert ended.code == 0, f"hal-probe snapshot ended with {ended.code}: {ended.err}"
    path = lab.folder / f"{name}.tgz"
    path.write_bytes(lab.guest.read(inside))
    assert path.stat().st_size < _LARGEST_BYTES, f"{path} has {path.stat().st_size} bytes"
    return path


def replay(path: Path, folder: Path) -> dict[str, Any]:
    """Return what ``hal-probe`` says here about a recording."""
    environ = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    environ.pop("HAL_MACHINE", None)
    command = [str(Path(sys.executable).parent / "hal-probe"), "--root", str(path), "--json", "--timeout", "30"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1, 3), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _place(device: dict[str, Any]) -> tuple[Any, ...]:
    location = device["location"]
    return location.get("numa_node"), location.get("pci_address"), tuple(location.get("pci_path", ()))
