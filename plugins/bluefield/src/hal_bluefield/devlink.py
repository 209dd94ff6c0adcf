"""What the kernel's devlink tells of a card: firmware, board, health reporters, by the JSON of iproute2's tool."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hal.errors import DeviceError
from hal.interfaces.deadline import Deadline
from hal_bluefield.commands import run_command

_HINT = "apt install iproute2"


class Reporter(msgspec.Struct, frozen=True, kw_only=True):
    """A health reporter (mlx5: ``fw``, ``fw_fatal``, ``vnic``): its state, and how often it saw and mended an error."""

    name: str
    state: str
    errors: int = 0
    recoveries: int = 0


class DevlinkInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and health of one PCI function; what devlink did not tell is empty, ``why`` says the reason."""

    driver: str = ""
    serial: str = ""
    board: str = ""
    firmware: str = ""
    reporters: tuple[Reporter, ...] = ()
    why: str = ""


def read_devlink(address: str, device: str, deadline: Deadline) -> DevlinkInfo:
    """Ask devlink about a function. A tool that is missing, refuses or talks nonsense costs fields, nothing more."""
    handle = f"pci/{address}"
    told: list[str] = []
    info = _ask(("dev", "info", handle), "info", handle, device, deadline, told)
    health = _ask(("health", "show", handle), "health", handle, device, deadline, told)
    versions = info.get("versions") if isinstance(info, dict) else None
    running = versions.get("running") if isinstance(versions, dict) else None
    fixed = versions.get("fixed") if isinstance(versions, dict) else None
    return DevlinkInfo(
        driver=_word(info, "driver"),
        serial=_word(info, "serial_number"),
        board=_word(fixed, "fw.psid"),
        firmware=_word(running, "fw.version") or _word(running, "fw"),
        reporters=tuple(_reporters(health)),
        why="; ".join(dict.fromkeys(told)),
    )


def _ask(
    words: tuple[str, ...], table: str, handle: str, device: str, deadline: Deadline, told: list[str]
) -> dict[str, Any] | list[Any]:
    """Return the entry of one device, or nothing with a reason in ``told``."""
    try:
        result = run_command(("devlink", "-j", *words), device=device, step="devlink", deadline=deadline, hint=_HINT)
    except DeviceError as error:
        told.append(error.message)
        return {}
    if result.code:
        told.append(f"devlink: {result.complaint}")
        return {}
    try:
        entry = json.loads(result.out)[table][handle]
    except (ValueError, KeyError, TypeError):
        told.append(f"devlink says nothing of {handle}")
        return {}
    return entry if isinstance(entry, dict | list) else {}


def _reporters(health: dict[str, Any] | list[Any]) -> list[Reporter]:
    found: list[Reporter] = []
    for entry in health if isinstance(health, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("reporter"), str):
            errors, recoveries = entry.get("error"), entry.get("recover")
            found.append(
                Reporter(
                    name=entry["reporter"],
                    state=str(entry.get("state", "")),
                    errors=errors if isinstance(errors, int) else 0,
                    recoveries=recoveries if isinstance(recoveries, int) else 0,
                )
            )
    return found


def _word(table: object, key: str) -> str:
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, str) else ""
