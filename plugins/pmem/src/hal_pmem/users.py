"""Which processes have a device node mapped, whoever they are: what /proc tells this user."""

from __future__ import annotations

import os


def mapped_by(node: str) -> str:
    """Return "mapped by process N (name)" for the first process that has the node mapped, "" for none that shows."""
    wanted = f" {node}\n"
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/maps", encoding="utf-8", errors="replace") as maps:
                if not any(line.endswith(wanted) for line in maps):
                    continue
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as comm:
                return f"mapped by process {name} ({comm.read().strip()})"
        except OSError:  # ended meanwhile, or not this user's to look into
            continue
    return ""
