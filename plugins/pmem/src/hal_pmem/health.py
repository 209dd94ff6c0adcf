"""From attributes to conditions: what the kernel, ndctl and cxl say about persistent memory, as evidence.

Facts: the flags of ``nfit/flags`` (drivers/acpi/nfit/core.c) and of ndctl's JSON; CXL 3.1, 8.2.9.9.3.1 (Get Health
Info), in the words of cxl's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping

from hal.model.attributes import Attribute
from hal.model.health import Action, Condition, Severity

SOURCE = "pmem"
_Row = tuple[str, Severity, Action, str]

FLAGS: Mapping[str, _Row] = {
    "save_fail": ("FailedSave", Severity.CRITICAL, Action.REPLACE, "its data was not saved at the last power failure"),
    "restore_fail": ("FailedRestore", Severity.CRITICAL, Action.REPLACE, "its data was not restored at boot"),
    "flush_fail": ("FailedFlush", Severity.CRITICAL, Action.REPLACE, "caches were not flushed at the last shutdown"),
    "map_fail": ("FailedMap", Severity.CRITICAL, Action.REBOOT, "the firmware could not map it"),
    "not_armed": ("NotArmed", Severity.DEGRADED, Action.POWER_CYCLE, "it would not save its data at a power failure"),
    "smart_event": ("SmartEvent", Severity.WARN, Action.NONE, "it has a health event to tell: ndctl list -DH"),
}
CXL_FLAGS: Mapping[str, _Row] = {
    "maintenance_needed": ("MaintenanceNeeded", Severity.WARN, Action.NONE, "it asks for maintenance"),
    "performance_degraded": ("PerformanceDegraded", Severity.DEGRADED, Action.NONE, "it is slower than it should be"),
    "hw_replacement_needed": ("ReplacementNeeded", Severity.CRITICAL, Action.REPLACE, "it asks to be replaced"),
    "media_not_ready": ("MediaNotReady", Severity.CRITICAL, Action.RESET, "its media are not ready"),
    "media_persistence_lost": ("PersistenceLost", Severity.CRITICAL, Action.REPLACE, "it does not keep data any more"),
    "media_data_lost": ("DataLost", Severity.CRITICAL, Action.REPLACE, "it has lost data"),
    "media_powerloss_persistence_loss": (
        "PersistenceLossImminent", Severity.CRITICAL, Action.REPLACE, "a power failure would end its persistence",
    ),
    "media_shutdown_persistence_loss": (
        "PersistenceLossImminent", Severity.CRITICAL, Action.REPLACE, "a shutdown would end its persistence",
    ),
    "media_persistence_loss_imminent": (
        "PersistenceLossImminent", Severity.CRITICAL, Action.REPLACE, "it will soon keep no data any more",
    ),
    "media_powerloss_data_loss": (
        "DataLossImminent", Severity.CRITICAL, Action.REPLACE, "a power failure would lose its data",
    ),
    "media_shutdown_data_loss": (
        "DataLossImminent", Severity.CRITICAL, Action.REPLACE, "a shutdown would lose its data",
    ),
    "media_data_loss_imminent": ("DataLossImminent", Severity.CRITICAL, Action.REPLACE, "it will soon lose data"),
}  # fmt: skip
_STATES: Mapping[str, tuple[Severity, Action]] = {
    "non-critical": (Severity.WARN, Action.NONE),
    "critical": (Severity.CRITICAL, Action.REPLACE),
    "fatal": (Severity.FATAL, Action.REPLACE),
}
_ALARMS: Mapping[str, _Row] = {
    "alarm_temperature": ("OverTemperature", Severity.DEGRADED, Action.NONE, "its temperature alarm is on"),
    "alarm_controller_temperature": (
        "OverTemperature", Severity.DEGRADED, Action.NONE, "the temperature alarm of its controller is on",
    ),
    "alarm_spares": ("SparesLow", Severity.DEGRADED, Action.REPLACE, "its alarm for spare blocks is on"),
}  # fmt: skip
_LATCHED = frozenset({"FailedSave", "FailedRestore", "FailedFlush", "DataLost", "PersistenceLost", "BadBlocks"})

Facts = Mapping[str, Attribute]


def judge_region(id: str, facts: Facts, modules: Mapping[str, Facts], now: float) -> tuple[Condition, ...]:
    """Return a region's conditions: its own, and those of the modules (by name) that its bytes are spread over."""
    found: list[Condition] = []
    bad = _value(facts, "bad_blocks")
    if isinstance(bad, int) and bad > 0:
        evidence = f"badblocks lists {bad} sectors of 512 bytes: their data is lost until they are cleared"
        found.append(condition(id, "BadBlocks", Severity.DEGRADED, evidence, now))
    if _value(facts, "read_only") is True:
        found.append(condition(id, "ReadOnly", Severity.CRITICAL, "the region reports read_only", now, Action.REPLACE))
    for name, module in modules.items():
        found += judge_module(id, name, module, now)
    return merged(found)


def judge_module(id: str, name: str, facts: Facts, now: float) -> list[Condition]:
    """Return what one module's attributes amount to, as conditions of ``id``; ``name`` is for the evidence."""
    found: list[Condition] = []
    flags = _value(facts, "flags")
    for flag in flags if isinstance(flags, tuple) else ():
        found += _row(id, name, FLAGS.get(str(flag)), f"flag {flag}", now)
    flags = _value(facts, "health_flags")
    for flag in flags if isinstance(flags, tuple) else ():
        found += _row(id, name, CXL_FLAGS.get(str(flag)) or _ALARMS.get(str(flag)), f"{flag}", now)
    if _value(facts, "locked") is True:
        evidence = f"{name}: its security state is locked"
        found.append(condition(id, "Locked", Severity.DEGRADED, evidence, now))
    state = str(_value(facts, "health_state") or "")
    if state in _STATES:
        severity, action = _STATES[state]
        found.append(condition(id, "HealthState", severity, f"{name}: health_state {state}", now, action))
    used = _value(facts, "life_used_percent")
    if isinstance(used, int) and used >= 100:
        evidence = f"{name}: life_used_percent {used}"
        found.append(condition(id, "WornOut", Severity.DEGRADED, evidence, now, Action.REPLACE))
    spares, least = _value(facts, "spares_percent"), _value(facts, "spares_threshold_percent")
    if isinstance(spares, int) and isinstance(least, int) and spares < least:
        evidence = f"{name}: spares_percent {spares}, below its threshold {least}"
        found.append(condition(id, "SparesLow", Severity.DEGRADED, evidence, now, Action.REPLACE))
    count, before = _value(facts, "dirty_shutdown_count"), _value(facts, "dirty_shutdown_baseline")
    if isinstance(count, int) and isinstance(before, int) and count > before:
        evidence = f"{name}: dirty_shutdown_count rose from {before} to {count}: the last stores may be lost"
        found.append(condition(id, "DirtyShutdown", Severity.DEGRADED, evidence, now, latched=True))
    return found


def merged(found: list[Condition]) -> tuple[Condition, ...]:
    """Return one condition of each type: several modules with one trouble are one condition with all the evidence."""
    by_type: dict[str, list[Condition]] = {}
    for one in found:
        by_type.setdefault(one.type, []).append(one)
    return tuple(_join(same) for same in by_type.values())


def _join(same: list[Condition]) -> Condition:
    first = same[0]
    if len(same) == 1:
        return first
    order = list(Severity)
    worst = max(same, key=lambda one: order.index(one.severity))
    return Condition(
        device=first.device,
        type=first.type,
        severity=worst.severity,
        evidence="; ".join(one.evidence for one in same),
        source=first.source,
        action=worst.action,
        count=len(same),
        latched=any(one.latched for one in same),
        first_seen_at=first.first_seen_at,
        last_seen_at=first.last_seen_at,
    )


def _row(id: str, name: str, row: _Row | None, said: str, now: float) -> list[Condition]:
    if row is None:
        return []
    name_of_it, severity, action, words = row
    return [condition(id, name_of_it, severity, f"{name}: {said}: {words}", now, action)]


def condition(
    id: str,
    type: str,
    severity: Severity,
    evidence: str,
    now: float,
    action: Action = Action.NONE,
    *,
    latched: bool = False,
) -> Condition:
    """Return a condition of this driver."""
    return Condition(
        device=id,
        type=type,
        severity=severity,
        evidence=evidence,
        source=SOURCE,
        action=action,
        latched=latched or type in _LATCHED,
        first_seen_at=now,
        last_seen_at=now,
    )


def _value(facts: Facts, name: str) -> object:
    attribute = facts.get(name)
    return attribute.value if attribute is not None else None
