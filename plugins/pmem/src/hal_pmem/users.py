"""Who uses a namespace of the kernel's: a mount, a mapping of ours, or any process that /proc tells this user of."""

from __future__ import annotations

import os

from hal_pmem import locks
from hal_pmem.mounts import mounted_at
from hal_pmem.spaces import Space


def user_of(space: Space) -> str:
    """Return who uses a namespace, in words; "" if nobody does. Raises ``OSError``."""
    if not os.path.exists(space.node):
        return ""
    where = "" if space.is_dax else mounted_at(space.node)
    if where:
        return f"mounted at {where}"
    try:
        if locks.is_held(space.node, 0, space.usable_bytes):
            return "mapped by a process"
    except PermissionError:
        pass  # who may not open it has not mapped it; /proc tells of this user's other processes
    return mapped_by(space.node)


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
