"""What the tools add to what sysfs says: health of the modules by their names (``nmem0``, ``mem2``).

Facts: the key names of ndctl's and cxl's JSON (ndctl-list(1), cxl-list(1), version 76). A value that no module can
have is absent, not believed: some firmware reports a life used of -95 per cent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hal.model.attributes import Absence, Attribute, absent, known
from hal_pmem.health import CXL_FLAGS
from hal_pmem.tools import Answer

Facts = dict[str, Attribute]

_NDCTL = "ndctl"
_CXL = "cxl"
_NUMBERS = {  # of ndctl: attribute, and the range in which a value means anything
    "temperature_celsius": ("temperature_celsius", -100.0, 300.0),
    "controller_temperature_celsius": ("controller_temperature_celsius", -100.0, 300.0),
    "spares_percentage": ("spares_percent", 0, 100),
    "spares_threshold": ("spares_threshold_percent", 0, 100),
    "life_used_percentage": ("life_used_percent", 0, 255),
    "shutdown_count": ("dirty_shutdown_count", 0, 1 << 40),
}
_CXL_NUMBERS = {
    "temperature": ("temperature_celsius", -100, 300),
    "life_used_percent": ("life_used_percent", 0, 255),
    "dirty_shutdowns": ("dirty_shutdown_count", 0, 1 << 40),
    "volatile_errors": ("corrected_volatile_errors", 0, 1 << 40),
    "pmem_errors": ("corrected_persistent_errors", 0, 1 << 40),
}
_FLAGS = {
    "flag_failed_save": "save_fail",
    "flag_failed_restore": "restore_fail",
    "flag_failed_flush": "flush_fail",
    "flag_failed_map": "map_fail",
    "flag_failed_arm": "not_armed",
    "flag_smart_event": "smart_event",
}
_ALARMS = ("alarm_temperature", "alarm_controller_temperature", "alarm_spares")
_STATES = ("ok", "non-critical", "critical", "fatal")
HEALTH_NAMES = ("temperature_celsius", "spares_percent", "life_used_percent", "dirty_shutdown_count", "health_state")
"""What a module may tell of its health, and is asked for in telemetry."""


def module_facts(answers: Mapping[str, Answer]) -> dict[str, Facts]:
    """Return what the tools say about each module, by its kernel name."""
    found: dict[str, Facts] = {}
    for dimm in _inner(answers.get(_NDCTL, ([], ""))[0], "dimms"):
        found.setdefault(str(dimm.get("dev")), {}).update(_of_dimm(dimm))
    for memory in _inner(answers.get(_CXL, ([], ""))[0], "memdevs"):
        found.setdefault(str(memory.get("memdev")), {}).update(_of_memory(memory))
    return found


def dax_modes(answers: Mapping[str, Answer]) -> dict[str, str]:
    """Return how each DAX device is used, by its name: ``devdax``, or ``system-ram`` once the kernel has taken it."""
    found: dict[str, str] = {}
    for one in answers.get("daxctl", ([], ""))[0]:
        inner = one.get("devices")
        for device in inner if isinstance(inner, list) else [one]:
            if isinstance(device, dict) and device.get("mode") in ("devdax", "system-ram"):
                found[str(device.get("chardev"))] = str(device["mode"])
    return found


def why_silent(answers: Mapping[str, Answer], tool: str) -> Attribute:
    """Return the attribute that stands where a tool told nothing."""
    why = answers.get(tool, ([], f"{tool} was not asked"))[1]
    if not why:
        return absent(Absence.NOT_REPORTED, tool, "the module tells no health")
    if "in time" in why:
        return absent(Absence.TIMEOUT, tool, why)
    if "ermission" in why:
        return absent(Absence.PERMISSION, tool, why)
    if "JSON" in why or "objects" in why:
        return absent(Absence.MALFORMED, tool, why)
    return absent(Absence.UNSUPPORTED if "installed" in why else Absence.ERROR, tool, why)


def _of_dimm(dimm: Mapping[str, Any]) -> Facts:
    facts: Facts = {}
    flags = tuple(word for key, word in _FLAGS.items() if dimm.get(key) is True)
    if flags:
        facts["flags"] = known(flags, _NDCTL)
    health = dimm.get("health")
    if not isinstance(health, dict):
        return facts
    facts.update(_numbers(health, _NUMBERS, _NDCTL))
    state = health.get("health_state")
    if isinstance(state, str):
        facts["health_state"] = (
            known(state, _NDCTL) if state in _STATES else absent(Absence.MALFORMED, _NDCTL, repr(state)[:60])
        )
    shutdown = health.get("shutdown_state")
    if shutdown in ("clean", "dirty"):
        facts["shutdown_state"] = known(shutdown, _NDCTL)
    alarms = tuple(name for name in _ALARMS if health.get(name) is True)
    if alarms:
        facts["health_flags"] = known(alarms, _NDCTL)
    return facts


def _of_memory(memory: Mapping[str, Any]) -> Facts:
    health = memory.get("health")
    if not isinstance(health, dict):
        return {}
    facts = _numbers(health, _CXL_NUMBERS, _CXL)
    flags = tuple(name for name in CXL_FLAGS if health.get(name) is True)
    if flags:
        facts["health_flags"] = known(flags, _CXL)
    if health.get("media_normal") is True or flags:
        bad = any(CXL_FLAGS[name][1] == "critical" for name in flags)
        facts["health_state"] = known("critical" if bad else "non-critical" if flags else "ok", _CXL)
    return facts


def _numbers(health: Mapping[str, Any], table: Mapping[str, tuple[str, float, float]], tool: str) -> Facts:
    facts: Facts = {}
    for key, (name, least, most) in table.items():
        value = health.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            facts[name] = absent(Absence.MALFORMED, tool, f"{key} is {value!r}"[:80])
        else:
            facts[name] = known(value, tool)
    return facts


def _inner(objects: Iterable[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Return the objects of one sort: by themselves, or within those that list them."""
    found: list[Mapping[str, Any]] = []
    own = {"dimms": "dev", "memdevs": "memdev"}[key]
    for one in objects:
        inner = one.get(key)
        if isinstance(inner, list):
            found += [part for part in inner if isinstance(part, dict)]
        elif own in one and "provider" not in one:
            found.append(one)
    return found
