"""What a look at a GPU says about its health: conditions with evidence.

Counts of errors begin when the driver is loaded and end when it is loaded again; pages that wait to be retired are
retired at the next reset or start of the driver.
"""

from __future__ import annotations

import msgspec

from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_amd.cards import KERNEL_DRIVER, Card
from hal_amd.reading import Heat, Reading

SOURCE = "sysfs"
_MEMORY = "umc"
_LANES = ("pcie_max_width", "pcie_width")


class Memory:
    """Since when each condition of each device has held, for as long as it holds."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def since(self, device: str, type: str, now: float) -> float:
        """Return when a condition was first seen."""
        return self._since.setdefault((device, type), now)

    def keep_only(self, device: str, types: set[str]) -> None:
        """Forget what no longer holds."""
        for key in [key for key in self._since if key[0] == device and key[1] not in types]:
            del self._since[key]


def judge(card: Card, reading: Reading, memory: Memory, now: float) -> list[Condition]:
    """Return the conditions that hold on a GPU."""
    found = _lost(card, reading) if reading.lost else _judge(card, reading)
    memory.keep_only(card.id, {condition.type for condition in found})
    return [_at(condition, memory.since(card.id, condition.type, now), now) for condition in found]


def unanswered(card: Card, memory: Memory, now: float) -> list[Condition]:
    """Return the condition of a GPU whose files did not answer in time: nobody knows how it is."""
    text = "a file of the kernel's did not answer before its deadline"
    found = _condition(card, "NoAnswer", Severity.CRITICAL, text, Action.RESET, status=Status.UNKNOWN)
    return [_at(found, memory.since(card.id, found.type, now), now)]


def gone(device_id: str, now: float) -> Condition:
    """Return the condition of a device that was there at an earlier look."""
    return Condition(
        device=device_id,
        type="DeviceLost",
        severity=Severity.FATAL,
        evidence="sysfs does not list it any more",
        source=SOURCE,
        action=Action.REBOOT,
        first_seen_at=now,
        last_seen_at=now,
        latched=True,
    )


def _lost(card: Card, reading: Reading) -> list[Condition]:
    if reading.off_the_bus:
        text = "config space reads all ones"
        return [_condition(card, "FallenOffBus", Severity.FATAL, text, Action.REBOOT, latched=True)]
    if reading.there:
        text = f"{KERNEL_DRIVER} has let go of it"
        return [_condition(card, "DriverNotBound", Severity.CRITICAL, text, Action.REBOOT)]
    text = "its folder in sysfs is gone"
    return [_condition(card, "DeviceLost", Severity.FATAL, text, Action.REBOOT, latched=True)]


def _judge(card: Card, reading: Reading) -> list[Condition]:
    found: list[Condition] = []
    if reading.silence is not None:
        text = f"none of its files can be read ({reading.silence.reason}): it is being reset, or has hung"
        found.append(_condition(card, "NotAnswering", Severity.CRITICAL, text, Action.RESET))
    _errors(card, reading, found)
    hot = _hottest(card, reading.heat)
    if hot is not None:
        found.append(hot)
    for dump in reading.dumps:
        text = f"a ring hung and the driver reset the GPU: {dump} holds the dump"
        found.append(_condition(card, "RingHang", Severity.WARN, text, Action.RESTART_APP))
        break
    most, lanes = (reading.told[name].value if name in reading.told else None for name in _LANES)
    if isinstance(lanes, int) and isinstance(most, int) and lanes < most:
        text = f"PCIe x{lanes}, of x{most}"
        found.append(_condition(card, "LinkDegraded", Severity.DEGRADED, text, Action.DRAIN_RESET, Radius.LINK))
    return found


def _errors(card: Card, reading: Reading, found: list[Condition]) -> None:
    pages = reading.pages or {}
    pending, stuck = pages.get("P", 0), pages.get("F", 0)
    lost = reading.errors.get(_MEMORY, {}).get("ue", 0)
    if lost or pending:
        text = f"{lost} uncorrectable memory errors since the driver was loaded"
        if pending:
            text += f"; {pending} pages wait for a reset to be retired"
        severity = Severity.CRITICAL if pending else Severity.DEGRADED
        found.append(
            _condition(
                card,
                "UncorrectableEcc",
                severity,
                text,
                Action.DRAIN_RESET,
                count=max(1, lost),
                latched=bool(pending),
            )
        )
    if stuck:
        text = f"{stuck} bad pages could not be retired"
        found.append(_condition(card, "PageRetirementFailed", Severity.CRITICAL, text, Action.REPLACE, latched=True))
    blocks = {name: counts["ue"] for name, counts in reading.errors.items() if name != _MEMORY and counts.get("ue")}
    if blocks:
        where = ", ".join(f"{count} in {name}" for name, count in sorted(blocks.items()))
        text = f"uncorrectable errors since the driver was loaded: {where}"
        total = sum(blocks.values())
        found.append(_condition(card, "UncorrectableError", Severity.DEGRADED, text, Action.DRAIN_RESET, count=total))


def _hottest(card: Card, heat: list[Heat]) -> Condition | None:
    for one in heat:
        if one.emergency is not None and one.celsius >= one.emergency:
            text = f"{one.label} is at {one.celsius:g} °C; at {one.emergency:g} °C the GPU shuts itself down"
            return _condition(card, "OverTemperature", Severity.CRITICAL, text, Action.POWER_CYCLE)
    for one in heat:
        if one.critical is not None and one.celsius >= one.critical:
            text = f"{one.label} is at {one.celsius:g} °C; above {one.critical:g} °C clocks are lowered"
            return _condition(card, "OverTemperature", Severity.WARN, text)
    return None


def _at(condition: Condition, first: float, now: float) -> Condition:
    return msgspec.structs.replace(condition, first_seen_at=first, last_seen_at=now)


def _condition(
    card: Card,
    type: str,
    severity: Severity,
    evidence: str,
    action: Action = Action.NONE,
    radius: Radius = Radius.DEVICE,
    *,
    status: Status = Status.TRUE,
    count: int = 1,
    latched: bool = False,
) -> Condition:
    return Condition(
        device=card.id,
        type=type,
        severity=severity,
        evidence=evidence,
        source=SOURCE,
        status=status,
        radius=radius,
        action=action,
        count=count,
        latched=latched,
    )
