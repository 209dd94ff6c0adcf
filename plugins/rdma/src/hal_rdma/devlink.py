"""Health reporters of a NIC's firmware, as ``devlink -j health`` tells of them (Documentation/networking/devlink)."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import msgspec

from hal.model.health import Action, Condition, Radius, Severity
from hal_rdma.health import SOURCE

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline

_SECONDS = 1.0
_FATAL = frozenset({"fw_fatal"})


class Reporter(msgspec.Struct, frozen=True, kw_only=True):
    """One reporter: its state (``healthy`` or ``error``), how often it fell ill and was recovered."""

    name: str
    state: str
    errors: int = 0
    recoveries: int = 0


def parse_health(text: str | bytes) -> dict[str, tuple[Reporter, ...]]:
    """Return the reporters by PCI address. Raises ``ValueError`` for what is no such JSON."""
    document = json.loads(text)
    health = document.get("health") if isinstance(document, dict) else None
    if not isinstance(health, dict):
        raise ValueError("no object 'health' in it")
    found: dict[str, tuple[Reporter, ...]] = {}
    for name, rows in health.items():
        bus, _, address = str(name).partition("/")
        if bus == "pci" and isinstance(rows, list):
            address = address.partition("/")[0]  # a port's reporters belong to its function
            reporters = tuple(_reporter(row) for row in rows if isinstance(row, dict) and row.get("reporter"))
            found[address] = (*found.get(address, ()), *reporters)
    return found


def _reporter(row: dict[str, object]) -> Reporter:
    return Reporter(
        name=str(row["reporter"]),
        state=str(row.get("state", "")),
        errors=_count(row.get("error")),
        recoveries=_count(row.get("recover")),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def ask_devlink(deadline: Deadline) -> dict[str, tuple[Reporter, ...]]:
    """Return the reporters of all functions, by PCI address; nothing where there is no ``devlink`` or no answer."""
    program = shutil.which("devlink", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return {}
    try:
        done = subprocess.run(
            [program, "-j", "health", "show"],
            capture_output=True,
            timeout=min(_SECONDS, deadline.remaining_seconds),
            check=False,
        )
        return parse_health(done.stdout) if done.returncode == 0 and done.stdout.strip() else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}


def judge_reporters(device: str, reporters: tuple[Reporter, ...], now: float) -> list[Condition]:
    """Return the conditions of reporters that are in their error state."""
    return [
        Condition(
            device=device,
            type="FirmwareError",
            severity=Severity.FATAL if one.name in _FATAL else Severity.CRITICAL,
            evidence=f"devlink reporter {one.name} is in state {one.state} "
            f"({one.errors} errors, {one.recoveries} recoveries)",
            source=f"{SOURCE}:devlink",
            radius=Radius.DEVICE,
            action=Action.DRAIN_RESET,
            first_seen_at=now,
            last_seen_at=now,
            count=max(1, one.errors),
            latched=one.name in _FATAL,
        )
        for one in reporters
        if one.state == "error"
    ]
