"""Health rules of plugins, applied to every device of a survey, each rule under its own guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from hal.agent.report import DriverReport
from hal.drivers.contract import READY, Cause, Problem, Readiness
from hal.drivers.guarded import Call, describe
from hal.drivers.hookspecs import HealthRule
from hal.interfaces.deadline import Deadline
from hal.model.health import Condition
from hal.model.inventory import Inventory


def judge(
    inventory: Inventory, rules: Sequence[tuple[str, HealthRule]], deadline_seconds: float
) -> tuple[Inventory, tuple[DriverReport, ...]]:
    """Return the inventory with what the rules find added to its conditions, and a report for each rule.

    A rule that raises, takes too long, or speaks of another device than the one it was asked about adds nothing.
    """
    now = time.time()
    deadline = Deadline.after(deadline_seconds)
    started = [(plugin, rule, Call(_work(rule, inventory, now), rule.name)) for plugin, rule in rules]
    found: dict[str, list[Condition]] = {}
    reports: list[DriverReport] = []
    for plugin, rule, call in started:
        problems: tuple[Problem, ...] = ()
        readiness = READY
        if not call.join(deadline) or call.value is None:
            detail = describe(call.error) if call.error is not None else "did not answer in time"
            problems = (Problem(source=plugin, step=rule.name, detail=detail, hint="report it to the plugin"),)
            readiness = Readiness(cause=Cause.BROKEN if call.error is not None else Cause.TIMEOUT, detail=detail)
        else:
            for condition in call.value:
                found.setdefault(condition.device, []).append(condition)
        reports.append(
            DriverReport(
                driver=f"rule:{rule.name}",
                plugin=plugin,
                kinds=(),
                readiness=readiness,
                problems=problems,
                seconds=call.seconds,
            )
        )
    if not found:
        return inventory, tuple(reports)
    return (
        Inventory(
            msgspec.structs.replace(device, conditions=(*device.conditions, *found[device.id]))
            if device.id in found
            else device
            for device in inventory
        ),
        tuple(reports),
    )


def _work(rule: HealthRule, inventory: Inventory, now: float) -> Callable[[], list[Condition]]:
    def work() -> list[Condition]:
        conditions: list[Condition] = []
        for device in inventory:
            for condition in rule.judge(device, now):
                if not isinstance(condition, Condition) or condition.device != device.id:
                    raise TypeError(f"asked about {device.id}, it gave {condition!r}")
                conditions.append(condition)
        return conditions

    return work
