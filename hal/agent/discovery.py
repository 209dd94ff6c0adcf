"""Running drivers side by side, each under its own guard and deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from hal.agent.report import DriverReport
from hal.drivers.contract import Cause, Context, Discovery, Driver, DriverFactory, Problem, Readiness
from hal.drivers.guarded import Call, describe
from hal.interfaces.deadline import Deadline
from hal.model.device import Device

_GRACE_SECONDS = 0.25
_VERBS = ("name", "readiness", "discover", "sample", "prepare", "unprepare", "open", "close")


class Run(msgspec.Struct, kw_only=True):
    """What came of one driver: its report, its devices, and the driver itself if it can be used."""

    factory: DriverFactory
    report: DriverReport
    devices: tuple[Device, ...] = ()
    driver: Driver | None = None


class _Progress:
    """How far a driver came, so that one which hangs can be named with the step it hangs in."""

    def __init__(self) -> None:
        self.step = "create"
        self.driver: Driver | None = None
        self.readiness: Readiness | None = None


def run_drivers(
    factories: Sequence[tuple[str, DriverFactory]], context: Context, deadline_seconds: float
) -> tuple[Run, ...]:
    """Create every driver, ask whether it is ready, and let it discover; all at once, each with the same deadline."""
    deadline = Deadline.after(deadline_seconds)
    started = []
    for plugin, factory in factories:
        progress = _Progress()
        started.append((plugin, factory, progress, Call(_work(factory, context, deadline, progress), factory.name)))
    # A driver that keeps its deadline returns what it has at the deadline: leave it the time to return.
    patience = Deadline.after(deadline.remaining_seconds + _GRACE_SECONDS)
    return tuple(_finish(plugin, factory, progress, call, patience) for plugin, factory, progress, call in started)


def _work(factory: DriverFactory, context: Context, deadline: Deadline, progress: _Progress) -> Callable[[], Discovery]:
    def work() -> Discovery:
        driver = factory.create(context)
        if not isinstance(driver, Driver):
            lacks = ", ".join(verb for verb in _VERBS if not hasattr(driver, verb))
            what = f"something of type {type(driver).__name__}"
            raise TypeError(f"{factory.name} created {what}, which lacks {lacks} of the driver contract")
        progress.step = "readiness"
        progress.readiness = driver.readiness()
        if not progress.readiness.ready:
            driver.close()
            return Discovery()
        progress.driver = driver
        progress.step = "discover"
        found = driver.discover(deadline)
        if not isinstance(found, Discovery):
            raise TypeError(f"discover gave a {type(found).__name__}, not a Discovery")
        return found

    return work


def _finish(plugin: str, factory: DriverFactory, progress: _Progress, call: Call[Discovery], deadline: Deadline) -> Run:
    finished = call.join(deadline)
    # Read only now: before the join the call may not yet have come to make the driver.
    found, driver, readiness = Discovery(), progress.driver, progress.readiness
    problems: tuple[Problem, ...] = ()
    if not finished:
        readiness = Readiness(cause=Cause.TIMEOUT, detail=f"did not finish {progress.step} in time")
        problems = (
            _problem(factory, progress, "did not answer in time", "hal-probe doctor; --timeout gives it longer"),
        )
        driver = None
    elif call.error is not None:
        readiness = Readiness(cause=Cause.BROKEN, detail=describe(call.error))
        problems = (_problem(factory, progress, describe(call.error), "hal-probe doctor; report it to the plugin"),)
    elif call.value is not None:
        found = call.value
    return Run(
        factory=factory,
        devices=found.devices,
        driver=driver,
        report=DriverReport(
            driver=factory.name,
            plugin=plugin,
            kinds=factory.kinds,
            readiness=readiness or Readiness(cause=Cause.BROKEN),
            device_count=len(found.devices),
            problems=(*problems, *found.problems),
            seconds=call.seconds,
        ),
    )


def _problem(factory: DriverFactory, progress: _Progress, detail: str, hint: str) -> Problem:
    return Problem(source=factory.name, step=progress.step, detail=detail, hint=hint)
