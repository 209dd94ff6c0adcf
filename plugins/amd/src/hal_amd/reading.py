"""One look at a GPU: its files read one after the other, each failing alone, without the GPU's other files noticing.

``pcie_bw`` is no part of it: the kernel counts for a second before it answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from hal.host.missing import NOT_THERE, Missing
from hal.host.scan import malformed
from hal.host.tree import Tree, parse_number
from hal.model.attributes import Absence, Attribute, Value, absent, known
from hal_amd import metrics, parse
from hal_amd.cards import KERNEL_DRIVER, Card

DUMPS = "class/devcoredump"
_FILES = (
    "gpu_busy_percent",
    "mem_busy_percent",
    "mem_info_vram_total",
    "mem_info_vram_used",
    "pp_dpm_sclk",
    "pp_dpm_mclk",
    "pcie_replay_count",
)
_LINK = ("current_link_speed", "max_link_speed", "current_link_width", "max_link_width")
_SENSORS = (
    "power1_average",
    "power1_input",
    "power1_cap",
    "energy1_input",
    "freq1_input",
    "freq2_input",
)
_CHANNELS = (1, 2, 3)
_NO_SENSORS = Missing(Absence.NOT_REPORTED, "no hwmon folder")


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """One temperature with its limits, in degrees Celsius; None for a limit that is not told."""

    label: str
    celsius: float
    critical: float | None = None
    emergency: float | None = None


class Reading(msgspec.Struct, kw_only=True):
    """What one look told: telemetry by name, and what health is judged by."""

    there: bool = True
    bound: bool = True
    off_the_bus: bool = False
    silence: Missing | None = None
    told: dict[str, Attribute] = {}
    heat: list[Heat] = []
    errors: dict[str, dict[str, int]] = {}
    pages: dict[str, int] | None = None
    dumps: list[str] = []

    @property
    def lost(self) -> bool:
        """True if nothing answers at the GPU's place, or nothing is there any more, or no driver speaks for it."""
        return not (self.there and self.bound) or self.off_the_bus


def read(tree: Tree, card: Card) -> Reading:
    """Look at one GPU."""
    path = card.path
    if not tree.exists(path):
        return Reading(there=False)
    if _all_ones(tree, path):
        return Reading(off_the_bus=True)
    if tree.link(f"{path}/driver") != KERNEL_DRIVER:
        return Reading(bound=False)
    found = dict(zip(_FILES, tree.read_many(path, _FILES), strict=True))
    firm = [value for value in found.values() if value is not NOT_THERE]
    found |= zip(_LINK, tree.read_many(card.link_path, _LINK), strict=True)
    sensors: dict[str, str | Missing] = dict.fromkeys(_SENSORS, _NO_SENSORS)
    heat: list[Heat] = []
    if card.hwmon is not None:
        sensors = dict(zip(_SENSORS, tree.read_many(card.hwmon, _SENSORS), strict=True))
        heat = _heat(tree, card.hwmon)
    table = tree.read_bytes(f"{path}/gpu_metrics")
    told = _told(found, sensors, heat, table)
    return Reading(
        silence=_silence(firm),
        told=told,
        heat=heat,
        errors=_errors(tree, path),
        pages=_pages(tree, path),
        dumps=_dumps(tree, card),
    )


def _silence(firm: list[str | Missing]) -> Missing | None:
    """Return why nothing could be read, None if something could be."""
    reasons = [value for value in firm if isinstance(value, Missing)]
    return reasons[0] if reasons and len(reasons) == len(firm) else None


def _all_ones(tree: Tree, path: str) -> bool:
    config = tree.open(f"{path}/config")
    if not isinstance(config, int):
        return False
    try:
        return os.pread(config, 4, 0) == b"\xff\xff\xff\xff"
    except OSError:
        return False
    finally:
        os.close(config)


def _told(
    found: dict[str, str | Missing], sensors: dict[str, str | Missing], heat: list[Heat], table: bytes | Missing
) -> dict[str, Attribute]:
    told = {
        "gpu_utilization_percent": number(found["gpu_busy_percent"], "gpu_busy_percent"),
        "memory_utilization_percent": number(found["mem_busy_percent"], "mem_busy_percent"),
        "memory_used_bytes": number(found["mem_info_vram_used"], "mem_info_vram_used"),
        "memory_total_bytes": number(found["mem_info_vram_total"], "mem_info_vram_total"),
        "power_limit_watts": number(sensors["power1_cap"], "power1_cap", _from_millionths),
        "pcie_replays": number(found["pcie_replay_count"], "pcie_replay_count"),
        "pcie_speed_gts": speed(found["current_link_speed"], "current_link_speed"),
        "pcie_max_speed_gts": speed(found["max_link_speed"], "max_link_speed"),
        "pcie_width": width(found["current_link_width"], "current_link_width"),
        "pcie_max_width": width(found["max_link_width"], "max_link_width"),
        "pcie_received_bytes": absent(Absence.UNSUPPORTED, "sysfs:pcie_bw", "the kernel counts for a second"),
        "pcie_sent_bytes": absent(Absence.UNSUPPORTED, "sysfs:pcie_bw", "the kernel counts for a second"),
    }
    used, total = told["memory_used_bytes"].value, told["memory_total_bytes"].value
    told["memory_free_bytes"] = (
        known(max(0, total - used), "computed")
        if isinstance(used, int) and isinstance(total, int)
        else absent(Absence.NOT_REPORTED, "computed", "used or total memory is not known")
    )
    which = "power1_average" if isinstance(sensors["power1_average"], str) else "power1_input"
    told["power_watts"] = number(sensors[which], which, _from_millionths)
    _clocks(told, found, sensors)
    _temperatures(told, heat)
    _table(told, sensors["energy1_input"], table)
    return told


def _clocks(told: dict[str, Attribute], found: dict[str, str | Missing], sensors: dict[str, str | Missing]) -> None:
    for name, most, file, sensor in (
        ("sm_clock_hz", "sm_max_clock_hz", "pp_dpm_sclk", "freq1_input"),
        ("memory_clock_hz", "memory_max_clock_hz", "pp_dpm_mclk", "freq2_input"),
    ):
        text = found[file]
        states = parse.clocks(text) if isinstance(text, str) else None
        source = f"sysfs:{file}"
        nothing = text.attribute(source) if isinstance(text, Missing) else malformed(source, "no clock states")
        told[most] = nothing if states is None else known(states.max_hz, source)
        measured = number(sensors[sensor], sensor)
        if measured.known:
            told[name] = measured
        elif states is None:
            told[name] = nothing
        elif states.current_hz is None:
            told[name] = absent(Absence.NOT_REPORTED, source, "no state is marked")
        else:
            told[name] = known(states.current_hz, source)


def _temperatures(told: dict[str, Attribute], heat: list[Heat]) -> None:
    by_label = {one.label: one.celsius for one in heat}
    core = next((by_label[label] for label in ("junction", "edge") if label in by_label), None)
    for name, celsius in (("temperature_celsius", core), ("memory_temperature_celsius", by_label.get("mem"))):
        source = "sysfs:hwmon"
        told[name] = absent(Absence.NOT_REPORTED, source) if celsius is None else known(celsius, source)


def _table(told: dict[str, Attribute], energy: str | Missing, table: bytes | Missing) -> None:
    source = "sysfs:gpu_metrics"
    parsed = metrics.parse(table) if isinstance(table, bytes) else None
    if isinstance(table, Missing):
        nothing = table.attribute(source)
    else:
        nothing = absent(Absence.UNSUPPORTED, source, "not in this revision of the firmware's table")
    measured = number(energy, "energy1_input", _from_millionths)
    if measured.known:
        told["energy_joules"] = measured
    elif parsed is not None and parsed.energy_joules is not None:
        told["energy_joules"] = known(parsed.energy_joules, source)
    else:
        told["energy_joules"] = nothing
    reasons = parsed.reasons if parsed is not None else None
    told["clock_event_reasons"] = nothing if reasons is None else known(reasons, source)


def _heat(tree: Tree, hwmon: str) -> list[Heat]:
    found: list[Heat] = []
    for channel in _CHANNELS:
        names = tuple(f"temp{channel}_{what}" for what in ("input", "label", "crit", "emergency"))
        celsius, label, critical, emergency = tree.read_many(hwmon, names)
        measured = number(celsius, names[0], _from_thousandths).value
        if isinstance(measured, float):
            limits = [number(limit, "", _from_thousandths).value for limit in (critical, emergency)]
            found.append(
                Heat(
                    label=label if isinstance(label, str) else "edge",
                    celsius=measured,
                    critical=limits[0] if isinstance(limits[0], float) and limits[0] > 0 else None,
                    emergency=limits[1] if isinstance(limits[1], float) and limits[1] > 0 else None,
                )
            )
    return found


def _errors(tree: Tree, path: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name in tree.names(f"{path}/ras"):
        if name.endswith("_err_count"):
            text = tree.read(f"{path}/ras/{name}")
            counts = parse.error_counts(text) if isinstance(text, str) else None
            if counts is not None:
                found[name.removesuffix("_err_count")] = counts
    return found


def _pages(tree: Tree, path: str) -> dict[str, int] | None:
    text = tree.read(f"{path}/ras/gpu_vram_bad_pages", limit=1 << 16)
    if isinstance(text, Missing):
        return parse.bad_pages("") if text.reason is Absence.NOT_REPORTED and text.detail == "empty" else None
    return parse.bad_pages(text)


def _dumps(tree: Tree, card: Card) -> list[str]:
    """Return the dumps of a hung ring that the kernel holds for this GPU (it keeps one for five minutes)."""
    return [name for name in tree.names(DUMPS) if tree.link(f"{DUMPS}/{name}/failing_device") == card.address]


def _from_millionths(value: int) -> float:
    return value / 1_000_000


def _from_thousandths(value: int) -> float:
    return value / 1_000


def number(found: str | Missing, name: str, convert: Callable[[int], Value] = int) -> Attribute:
    """Return the attribute that a text amounts to, if it is a whole number."""
    source = f"sysfs:{name}"
    value = parse_number(found) if isinstance(found, str) else found
    return known(convert(value), source) if isinstance(value, int) else value.attribute(source)


def speed(found: str | Missing, name: str) -> Attribute:
    """Return a link's speed as an attribute."""
    source = f"sysfs:{name}"
    if isinstance(found, Missing):
        return found.attribute(source)
    value = parse.speed_gts(found)
    return absent(Absence.NOT_REPORTED, source, "not a speed") if value is None else known(value, source)


def width(found: str | Missing, name: str) -> Attribute:
    """Return a link's width as an attribute; all ones mean that nobody answers."""
    told = number(found, name)
    if told.value in (0, 63, 255):
        return absent(Absence.NOT_REPORTED, told.source, "no link")
    return told
