"""What a GPU does from now on if nobody interferes, worked out ahead by the mock's own model and written as moments.

The library cannot ask Python, and must not know the model a second time: it looks up the moment that holds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hal.model.attributes import Attribute
from hal.model.health import Action
from hal_mocks.base import GONE, tell_lies
from hal_mocks.faults import FLAP_SECONDS, Fault, FaultType
from hal_mocks.gpu_describe import Place
from hal_mocks.gpu_health import all_conditions, loses_device, recovery_action, xid_of
from hal_mocks.gpu_measure import measured, replays_per_second
from hal_mocks.gpu_store import Record, absorb, leaves_traces
from hal_mocks.gpu_thermal import STEP_SECONDS, Thermal, advance, power_of
from hal_mocks.nvml.boards import generation_of
from hal_mocks.nvml.layout import number, struct

LOST = 15
"""``NVML_ERROR_GPU_IS_LOST``."""

REASONS = {"gpu-idle": 1, "sw-power-cap": 4, "hw-slowdown": 8, "hw-thermal-slowdown": 64}
"""Bits of ``nvmlClocksEventReason``."""

RECOVERY = {
    Action.NONE: 0,
    Action.RESTART_APP: 0,
    Action.RESET: 1,
    Action.REBOOT: 2,
    Action.DRAIN_RESET: 4,
    Action.POWER_CYCLE: 2,
    Action.REPLACE: 2,
}
"""``NVML_GPU_RECOVERY_ACTION``: NVML does not know the strongest steps and asks for a reboot."""

_XID_EVENT, _DOUBLE_BIT_EVENT = 8, 2
_NOBODY = 0xFFFFFFFF
_LOOKS = 240
"""How many of the model's steps are worked out ahead, at most: 20 minutes."""

_STRAIGHT_CELSIUS = 0.25
_SETTLED_CELSIUS = 0.005


class Course(msgspec.Struct, frozen=True):
    """Everything of which a GPU's future follows. ``faults`` are all of the GPU's, those of its partitions too."""

    place: Place
    faults: tuple[Fault, ...]
    record: Record
    thermal: Thermal
    limit_watts: float
    busy_ns: int
    now: float


def write_timeline(timeline: Any, course: Course, instances: Mapping[str, int], least_joules: float) -> None:
    """Fill in what comes: ``least_joules`` is the energy told last, below which the counter must not fall."""
    own = tuple(fault for fault in course.faults if fault.device == course.place.gpu.uuid)
    changes = sorted(set(_changes(own, course.now)))
    points = _points(course, own, changes)
    lift = max(0.0, least_joules - points[0][1].energy_joules)
    moment = None
    for at, (time, thermal) in enumerate(points):
        active = tuple(fault for fault in own if fault.active(time))
        fresh = struct("hal_moment")() if moment is None or time in changes else _copy(moment)
        if moment is None or time in changes:
            _write_facts(fresh, course, active, time)
        told = _told(course, active, _standing(course, thermal), time)
        _write_told(fresh, told, active, course.limit_watts)
        fresh.at, fresh.energy_joules, fresh.replays = time, thermal.energy_joules + lift, thermal.replays
        fresh.joules_per_second = _number(told, "power_watts")
        if at + 1 < len(points):
            later, after = points[at + 1]
            fresh.joules_per_second = (after.energy_joules - thermal.energy_joules) / (later - time)
        timeline.at[at], timeline.moments[at] = time, fresh
        moment = fresh
    timeline.moment_count = len(points)
    _write_events(timeline, course, instances)


def _copy(moment: Any) -> Any:
    return type(moment).from_buffer_copy(moment)


def _standing(course: Course, thermal: Thermal) -> Thermal:
    """Return a state as the model will tell it from then on: busy as it is said to be, not as it was until then."""
    load = min(1.0, thermal.load)
    watts = power_of(load, thermal.slowed, course.limit_watts)
    return msgspec.structs.replace(thermal, utilization=load, power_watts=watts)


def _changes(faults: Sequence[Fault], now: float) -> Iterator[float]:
    """Return when faults begin or end; a flapping link's turns are written as a period, not one by one."""
    for fault in faults:
        steady = msgspec.structs.replace(fault, type=FaultType.LINK_DOWN) if fault.type is FaultType.FLAP else fault
        change = steady.next_change(now)
        while change is not None:
            yield change
            change = steady.next_change(change)


def _points(course: Course, own: Sequence[Fault], changes: Sequence[float]) -> list[tuple[float, Thermal]]:
    """Return when what is told changes its course, and how the model stands then.

    That is when a fault begins or ends, when heat makes the GPU slow down or lets it recover, and as often between as
    straight lines need to follow the temperature. The last point holds for ever after.
    """
    most = number("HAL_MOMENTS")
    coming = list(changes[: most - 1])
    thermal, last = course.thermal, course.now
    kept, passed = [(last, thermal)], [(last, thermal)]
    looks = iter([course.now + STEP_SECONDS * look for look in range(1, _LOOKS + 1)])
    look = next(looks, None)
    while coming or look is not None:
        change = bool(coming) and (look is None or coming[0] <= look)
        time = coming.pop(0) if change else look
        if not change or time == look:
            look = next(looks, None)
        if time is None or time <= last:
            continue
        active = tuple(fault for fault in own if fault.active(last))
        following = advance(thermal, time, course.limit_watts, course.busy_ns, replays_per_second(active))
        bent = not change and _bends(kept[-1], passed[len(passed) // 2], (time, following))
        if len(kept) + len(coming) + 1 < most:
            if bent and passed[-1][0] > kept[-1][0]:
                kept.append(passed[-1])
                passed = []
            if change or following.slowed != thermal.slowed:
                kept.append((time, following))
                passed = []
        elif change:
            kept.append((time, following))
        settled = abs(following.temperature_celsius - thermal.temperature_celsius) < _SETTLED_CELSIUS
        if settled and following.slowed == thermal.slowed and not change:
            look = None
        thermal, last = following, time
        passed.append((last, thermal))
    if last > kept[-1][0] and len(kept) < most:
        kept.append((last, thermal))
    return kept


def _bends(first: tuple[float, Thermal], middle: tuple[float, Thermal], end: tuple[float, Thermal]) -> bool:
    """True if a straight line from first to end would pass the temperature in the middle by too much."""
    share = (middle[0] - first[0]) / (end[0] - first[0])
    rise = end[1].temperature_celsius - first[1].temperature_celsius
    straight = first[1].temperature_celsius + share * rise
    return abs(straight - middle[1].temperature_celsius) > _STRAIGHT_CELSIUS


def _told(course: Course, active: tuple[Fault, ...], thermal: Thermal, now: float) -> dict[str, Attribute]:
    record = _record_at(course, now)
    conditions = all_conditions(course.place.gpu.uuid, record, active, now)
    told = measured(
        course.place,
        active,
        thermal,
        power_limit_watts=course.limit_watts,
        used_bytes=0,
        received_bytes=0,
        sent_bytes=0,
        action=recovery_action(conditions),
    )
    return told | tell_lies({"memory_bytes": course.place.device.attributes["memory_bytes"]}, active)


def _record_at(course: Course, now: float) -> Record:
    own = course.place.gpu.uuid
    traces = tuple(fault for fault in course.faults if fault.device == own and leaves_traces(fault))
    return absorb(course.record, traces, now)


def _number(told: Mapping[str, Attribute], name: str) -> float:
    value = told[name].value
    return float(value) if isinstance(value, int | float) else 0.0


def _write_told(moment: Any, told: Mapping[str, Attribute], active: Sequence[Fault], limit_watts: float) -> None:
    moment.temperature = _number(told, "temperature_celsius")
    moment.power_share = _number(told, "power_watts") / limit_watts
    moment.replays_per_second = replays_per_second(active)
    reasons = told["clock_event_reasons"].value
    moment.reasons = sum(REASONS.get(str(reason), 0) for reason in reasons) if isinstance(reasons, tuple) else 0
    moment.utilization = min(100, max(0, int(_number(told, "gpu_utilization_percent"))))
    moment.sm_mhz = int(_number(told, "sm_clock_hz") / 1e6)
    moment.memory_mhz = int(_number(told, "memory_clock_hz") / 1e6)
    moment.performance_state = 0
    moment.pcie_generation = generation_of(told["pcie_speed_gts"].value)
    moment.pcie_width = int(_number(told, "pcie_width"))
    word = told["recovery_action"].value
    moment.recovery_action = RECOVERY[Action(word)] if word in tuple(Action) else 0
    total = int(_number(told, "memory_total_bytes"))
    own = int(_number(told, "memory_bytes"))
    lied = {fault.attribute for fault in active if fault.type is FaultType.LIE}
    moment.memory_bytes = own if "memory_bytes" in lied else total
    used = int(_number(told, "memory_used_bytes"))
    moment.memory_used_told = used if "memory_used_bytes" in lied else 0xFFFF_FFFF_FFFF_FFFF


def _write_facts(moment: Any, course: Course, active: Sequence[Fault], now: float) -> None:
    moment.error = LOST if any(loses_device(fault) or fault.type in GONE for fault in active) else 0
    moment.hangs = any(fault.type is FaultType.HANG for fault in active)
    moment.slow_seconds = sum(fault.seconds for fault in active if fault.type is FaultType.SLOW)
    moment.links_down = any(fault.type is FaultType.LINK_DOWN for fault in active)
    for fault in active:
        if fault.type is FaultType.FLAP:
            moment.flap_onset, moment.flap_seconds = fault.onset_at, fault.seconds or FLAP_SECONDS
    record = _record_at(course, now)
    for word, counts in (("volatile", record.volatile), ("aggregate", record.aggregate)):
        for name in counts.__struct_fields__:
            setattr(moment, f"{word}_{name}", getattr(counts, name))
    for name in ("remapped_correctable", "remapped_uncorrectable", "remap_pending", "remap_failed"):
        setattr(moment, name, int(getattr(record, name)))


def _write_events(timeline: Any, course: Course, instances: Mapping[str, int]) -> None:
    """Write the events of the faults, the latest if there are too many. One that heals before it begins never was."""
    found: list[tuple[float, int, int, int, int]] = []
    for fault in course.faults:
        meaning = xid_of(fault)
        if meaning is None:
            continue
        whose = instances.get(fault.device, _NOBODY)
        if fault.type is FaultType.ECC_UNCORRECTABLE:
            found.append((fault.onset_at, 2 * fault.id, _DOUBLE_BIT_EVENT, 0, whose))
        found.append((fault.onset_at, 2 * fault.id + 1, _XID_EVENT, meaning.code, whose))
    kept = [
        (event.at, event.id, event.type, event.data, event.instance)
        for event in timeline.events[: timeline.event_count]
        if event.at <= course.now
    ]
    every = sorted({event[1]: event for event in (*found, *kept)}.values())[-number("HAL_EVENTS") :]
    for at, (time, id_, type_, data, instance) in enumerate(every):
        event = timeline.events[at]
        event.at, event.id, event.type, event.data, event.instance = time, id_, type_, data, instance
        event.compute = 0 if instance != _NOBODY else _NOBODY
    timeline.event_count = len(every)


def energy_told(timeline: Any, now: float) -> float:
    """Return the energy that the library tells at a time, 0 before it has told any."""
    held = [moment for moment in timeline.moments[: timeline.moment_count] if moment.at <= now]
    if not held:
        return 0.0
    return float(held[-1].energy_joules + held[-1].joules_per_second * (now - held[-1].at))


def covered_until(timeline: Any) -> float:
    """Return until when a timeline has been worked out."""
    return float(timeline.at[timeline.moment_count - 1]) if timeline.moment_count else 0.0


def copy_events(target: Any, source: Any) -> None:
    """Take over the events that have been told from the place that held before."""
    ctypes.memmove(target.events, source.events, ctypes.sizeof(source.events))
    target.event_count = source.event_count
