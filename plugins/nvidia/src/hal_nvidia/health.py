"""What a reading says about a GPU's health: conditions with evidence, and what is latched until a repair.

The driver's own recommendation (field ``GPU_RECOVERY_ACTION``) is a condition of its own where no other condition asks
for the same. XIDs come from the event set; those that need a reset stay until this driver has reset the GPU, others for
:data:`XID_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.interfaces.gpu_xid import Blame, xid
from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_nvidia import errors as e
from hal_nvidia import sampling as s
from hal_nvidia.board import Board
from hal_nvidia.telemetry import GTS, RECOVERY

XID_SECONDS = 300.0
_ECC, _REMAP_FAILED = 48, 64
_GPU_IDLE = 0x1
_THERMAL = 0x20 | 0x40
_POWER_BRAKE = 0x80
_UP = 1
_RECOVERY_WORDS = {
    1: "reset the GPU",
    2: "reboot the node",
    3: "drain the GPU's peers",
    4: "drain and reset the GPU",
    5: "recover the IMEX domain",
    6: "reset the GPU's bus",
    7: "reboot the system",
}
_SEVERITY = {3: Severity.DEGRADED, 5: Severity.DEGRADED}
_RADIUS = {2: Radius.NODE, 3: Radius.LINK, 5: Radius.FABRIC, 7: Radius.NODE}


def judge(board: Board, found: s.Reading, now: float) -> list[Condition]:
    """Return the conditions that hold on a GPU that answers."""
    if _is_well(board, found):
        return []
    conditions: list[Condition] = []
    _memory(board, found, now, conditions)
    _links(board, found, now, conditions)
    reasons = found.get("reasons")
    if isinstance(reasons, int):
        if reasons & _THERMAL:
            text = "clocks are lowered because it is hot"
            conditions.append(_condition(board, "ThermalSlowdown", Severity.WARN, text, now))
        if reasons & _POWER_BRAKE:
            text = "clocks are lowered by the power brake: the supply asks for less"
            conditions.append(_condition(board, "PowerBrake", Severity.WARN, text, now))
    if board.xids:
        conditions.extend(remembered(board, now))
    if found.get("failed") and any(
        e.code_of(v) == e.RESET_REQUIRED for v in found.values() if isinstance(v, Exception)
    ):
        text = "NVML answers that the GPU must be reset"
        conditions.append(_condition(board, "ResetRequired", Severity.CRITICAL, text, now, Action.RESET))
    action = found.get(s.RECOVERY_ACTION)
    explained = {condition.action for condition in conditions}
    if isinstance(action, int) and action and RECOVERY.get(action) not in explained:
        conditions.append(
            _condition(
                board,
                "RecoveryAction",
                _SEVERITY.get(action, Severity.CRITICAL),
                f"the driver recommends: {_RECOVERY_WORDS.get(action, f'action {action}')}",
                now,
                RECOVERY.get(action, Action.RESET),
                radius=_RADIUS.get(action, Radius.DEVICE),
            )
        )
    return conditions


def _is_well(board: Board, found: s.Reading) -> bool:
    """True if a short look finds nothing: of most GPUs, at most times, there is nothing to say."""
    try:
        return (
            found["remapped"][2:] == (0, 0)
            and found["uncorrected"] == 0
            and found[s.RECOVERY_ACTION] == 0
            and not found["reasons"] & (_THERMAL | _POWER_BRAKE)
            and found["pcie_width"] == found["pcie_max_width"]
            and found["pcie_generation"] == found["pcie_max_generation"]
            and found["nvlinks"] == board.all_up
            and len(board.links_seen_up) == len(board.links)
            and not board.xids
            and not found["failed"]
        )
    except (KeyError, TypeError, AttributeError):  # something was not told: look closely
        return False


def _memory(board: Board, found: s.Reading, now: float, conditions: list[Condition]) -> None:
    uncorrected = found.get("uncorrected")
    rows = found.get("remapped")
    pending = isinstance(rows, tuple) and rows[2]
    count = uncorrected if isinstance(uncorrected, int) else 0
    retiring = found.get("retired_pending")  # a number, or an error: the binding's errors compare with each other only
    if pending or (isinstance(retiring, int) and retiring == 1):
        what = "rows wait for a reset to be replaced" if pending else "pages wait for a reset to be retired"
        text = f"{count} uncorrectable memory errors since the last reset; {what}"
        conditions.append(
            _condition(
                board,
                "UncorrectableEcc",
                Severity.CRITICAL,
                text,
                now,
                Action.DRAIN_RESET,
                code=_ECC,
                count=max(1, count),
                latched=True,
            )
        )
    elif count:
        text = f"{count} uncorrectable memory errors since the last reset"
        conditions.append(
            _condition(
                board, "UncorrectableEcc", Severity.DEGRADED, text, now, Action.DRAIN_RESET, code=_ECC, count=count
            )
        )
    if isinstance(rows, tuple) and rows[3]:
        text = "no spare row was left to replace a faulty one"
        conditions.append(
            _condition(
                board,
                "RowRemappingFailed",
                Severity.CRITICAL,
                text,
                now,
                Action.REPLACE,
                code=_REMAP_FAILED,
                latched=True,
            )
        )


def _links(board: Board, found: s.Reading, now: float, conditions: list[Condition]) -> None:
    width, widest = found.get("pcie_width"), found.get("pcie_max_width")
    speed, fastest = found.get("pcie_generation"), found.get("pcie_max_generation")
    narrow = isinstance(width, int) and isinstance(widest, int) and width < widest
    reasons = found.get("reasons")
    busy = isinstance(reasons, int) and not reasons & _GPU_IDLE  # an idle GPU may slow its link down to save power
    slow = busy and isinstance(speed, int) and isinstance(fastest, int) and speed < fastest
    if narrow or slow:
        text = f"PCIe {GTS.get(speed or 0, 0.0)} GT/s x{width}, of {GTS.get(fastest or 0, 0.0)} GT/s x{widest}"
        conditions.append(
            _condition(board, "LinkDegraded", Severity.DEGRADED, text, now, Action.DRAIN_RESET, radius=Radius.LINK)
        )
    down: list[int] = []
    states = found.get("nvlinks", ())
    if board.links and (len(board.links_seen_up) < len(board.links) or states != board.all_up):
        for link, state in zip(board.links, states, strict=False):
            if not isinstance(state, int):
                continue
            if state == _UP:
                board.links_seen_up.add(link)
            elif link in board.links_seen_up:
                down.append(link)
    if down:
        numbers = ", ".join(map(str, down))
        text = f"{len(down)} of {len(board.links)} NVLinks are down: {numbers}"
        conditions.append(
            _condition(board, "NvlinkDown", Severity.DEGRADED, text, now, Action.DRAIN_RESET, radius=Radius.LINK)
        )


def lost(board: Board, off_the_bus: bool, now: float) -> list[Condition]:
    """Return the conditions of a GPU that NVML calls lost, with the XIDs that were heard of before."""
    if off_the_bus or any(code == 79 for code, _ in board.xids):
        found = _condition(
            board,
            "FallenOffBus",
            Severity.FATAL,
            "config space reads all ones" if off_the_bus else "XID 79 was reported, and NVML answers: GPU is lost",
            now,
            Action.REBOOT,
            latched=True,
        )
    else:
        text = "every call answers that the GPU is lost"
        found = _condition(board, "DeviceLost", Severity.FATAL, text, now, Action.RESET, latched=True)
    return [found, *remembered(board, now)]


def silent(board: Board, now: float) -> Condition:
    """Return the condition of a GPU that did not answer in time: nobody knows how it is."""
    text = "a call of NVML did not return before its deadline"
    found = _condition(board, "NoAnswer", Severity.CRITICAL, text, now, Action.RESET)
    return msgspec.structs.replace(found, status=Status.UNKNOWN)


def broken(board: Board, error: BaseException, now: float) -> Condition:
    """Return the condition of a GPU that answers with an error to everything."""
    return _condition(board, "NotAnswering", Severity.CRITICAL, f"NVML answers: {error}", now, Action.RESET)


def remember_xid(board: Board, device: str, code: int, where: str, now: float) -> Condition:
    """Keep an XID as a condition of a device of the board (the GPU, or a MIG device) and return it."""
    meaning = xid(code)
    before = board.xids.get((code, device))
    latched = meaning.needs_reset and meaning.blame is not Blame.APPLICATION
    condition = Condition(
        device=device,
        type="XidError",
        severity=meaning.severity,
        evidence=f"XID {code}: {meaning.meaning}{where}",
        source=e.SOURCE,
        radius=meaning.radius,
        action=meaning.action,
        code=code,
        first_seen_at=now if before is None else before.first_seen_at,
        last_seen_at=now,
        count=1 if before is None else before.count + 1,
        expires_at=None if latched else now + XID_SECONDS,
        latched=latched,
    )
    board.xids[code, device] = condition
    return condition


def remembered(board: Board, now: float) -> list[Condition]:
    """Return the XIDs that still count, and forget the others."""
    for key, condition in list(board.xids.items()):
        if condition.expires_at is not None and condition.expires_at <= now:
            del board.xids[key]
    return list(board.xids.values())


def said_of(conditions: Sequence[Condition], device: str, gpu: str) -> tuple[Condition, ...]:
    """Return what of a GPU's conditions concerns one of its devices: its own, and for a part what is its GPU's."""
    return tuple(
        condition if condition.device == device else msgspec.structs.replace(condition, device=device)
        for condition in conditions
        if condition.device in (device, gpu)
    )


def _condition(
    board: Board,
    type: str,
    severity: Severity,
    evidence: str,
    now: float,
    action: Action = Action.NONE,
    *,
    radius: Radius = Radius.DEVICE,
    code: int | None = None,
    count: int = 1,
    latched: bool = False,
) -> Condition:
    return Condition(
        device=board.uuid,
        type=type,
        severity=severity,
        evidence=evidence,
        source=e.SOURCE,
        radius=radius,
        action=action,
        code=code,
        first_seen_at=board.since(type, code, now),
        last_seen_at=now,
        count=count,
        latched=latched,
    )
