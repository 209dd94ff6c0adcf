"""What can be measured on a card now: by its BMC's sensors and its own kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hal.errors import AccessDenied, DeadlineExceeded, DeviceError, DeviceGone, Unsupported
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence, Attribute, absent, known
from hal_bluefield.card import Card, meminfo

TEMPERATURE = ("bluefield_temp", "Bluefield_temp", "soc_temp")
POWER = ("total_power", "power_envelope", "soc_power")
_PROC = ("cat", "/proc/stat", "/proc/meminfo", "/proc/uptime")


def read_telemetry(card: Card, deadline: Deadline) -> dict[str, Attribute]:
    """Return the names that :class:`hal.interfaces.dpu.Dpu` agrees on; each absent with a reason where not told."""
    found = {
        "temperature_celsius": _sensor(card, TEMPERATURE, deadline),
        "power_watts": _sensor(card, POWER, deadline),
    }
    found.update(_kernel(card, deadline))
    return found


def why(error: DeviceError, source: str) -> Attribute:
    """Return an error as the absence that it is."""
    if isinstance(error, Unsupported):
        reason = Absence.UNSUPPORTED
    elif isinstance(error, AccessDenied):
        reason = Absence.PERMISSION
    elif isinstance(error, DeadlineExceeded):
        reason = Absence.TIMEOUT
    elif isinstance(error, DeviceGone):
        reason = Absence.DEVICE_LOST
    else:
        reason = Absence.ERROR
    return absent(reason, source, error.message)


def attempt(ask: Callable[[], Attribute], source: str) -> Attribute:
    """Return what is told, or why it is not."""
    try:
        return ask()
    except DeviceError as error:
        return why(error, source)


def _sensor(card: Card, names: tuple[str, ...], deadline: Deadline) -> Attribute:
    def ask() -> Attribute:
        name, told = card.need_bmc("telemetry").sensor(names, "telemetry", deadline)
        reading = told.get("Reading")
        source = f"redfish:{name}"
        if isinstance(reading, int | float) and not isinstance(reading, bool):
            return known(float(reading), source)
        return absent(Absence.NOT_REPORTED, source, str((told.get("Status") or {}).get("State", "no reading")))

    return attempt(ask, "redfish:Sensors")


def _kernel(card: Card, deadline: Deadline) -> Mapping[str, Attribute]:
    names = ("arm_utilization_percent", "memory_total_bytes", "memory_used_bytes", "uptime_seconds")
    try:
        text = card.need_shell("telemetry").run(_PROC, step="telemetry", deadline=deadline).out
    except DeviceError as error:
        return {name: why(error, "card:/proc") for name in names}
    found = dict.fromkeys(names, absent(Absence.MALFORMED, "card:/proc"))
    memory = meminfo(text)
    if "MemTotal" in memory:
        found["memory_total_bytes"] = known(memory["MemTotal"], "card:/proc/meminfo")
        if "MemAvailable" in memory:
            found["memory_used_bytes"] = known(memory["MemTotal"] - memory["MemAvailable"], "card:/proc/meminfo")
    for line in text.splitlines():
        words = line.split()
        if line.startswith("cpu ") and len(words) >= 5 and all(word.isdecimal() for word in words[1:]):
            ticks = [int(word) for word in words[1:9]]
            now = (sum(ticks), ticks[3] + (ticks[4] if len(ticks) > 4 else 0))
            found["arm_utilization_percent"] = _busy(card.ticks, now)
            card.ticks = now
        elif len(words) == 2 and words[0].replace(".", "", 1).isdecimal() and words[1].replace(".", "", 1).isdecimal():
            found["uptime_seconds"] = known(float(words[0]), "card:/proc/uptime")
    return found


def _busy(before: tuple[int, int] | None, now: tuple[int, int]) -> Attribute:
    """Return the share of time that the cores were not idle between two readings of (all, idle) ticks."""
    source = "card:/proc/stat"
    if before is None:
        return absent(Absence.NOT_REPORTED, source, "a rate takes two readings; this is the first")
    passed, idle = now[0] - before[0], now[1] - before[1]
    if passed <= 0:  # the card has restarted, or no tick has passed
        return absent(Absence.NOT_REPORTED, source, "no time has passed since the last reading")
    return known(100.0 * min(passed, max(0, passed - idle)) / passed, source)
