"""Opening the broker of this machine: which drivers, which folders, which look."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hal.api.folders import folders
from hal.api.local import LocalBroker, Sight
from hal.drivers.contract import Driver
from hal.drivers.guarded import describe
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal.agent.monitors import Monitors

_LOG = logging.getLogger(__name__)


def _let_go(driver: Driver) -> None:
    """Close a driver that is not needed, under a guard."""
    try:
        driver.close()
    except Exception as error:  # a guard: a plugin's code
        _LOG.warning("driver %s could not be closed: %s", driver.name, describe(error))


def open_broker(
    environ: Mapping[str, str] | None = None,
    state: str | os.PathLike[str] | None = None,
    *,
    deadline_seconds: float = 5.0,
    monitored: bool = False,
) -> LocalBroker:
    """Open the broker of this machine: survey it, open its journal, agree with what was prepared.

    ``monitored``: each driver works in a process of its own, as a daemon wants it; leases are then opened by their
    holders, and not here. Raises :class:`hal.broker.journal.sqlite.JournalBusy` if another process holds the journal
    until the deadline.
    """
    from hal.agent.survey import Survey, survey
    from hal.broker.journal.sqlite import SqliteStore

    where = folders(environ, state)
    monitors: Monitors | None = None
    if monitored:
        from hal.agent.monitors import Monitors

        monitors = Monitors(environ, records=where.state / "monitors")

    def look() -> Survey:
        through = None if monitors is None else monitors.through
        return survey(environ=environ, deadline_seconds=max(5.0, deadline_seconds), through=through)

    def end() -> None:
        if monitors is not None:
            monitors.close()

    try:
        first = look()
        store = SqliteStore(where.state, Deadline.after(deadline_seconds))
    except BaseException:
        end()
        raise
    try:
        drivers: dict[str, Driver] = dict(first.drivers)
        waiting = [first]

        def observe() -> Sight:
            found = waiting.pop() if waiting else look()
            for name, driver in found.drivers.items():
                if drivers.setdefault(name, driver) is not driver:
                    _let_go(driver)
            silent = {report.driver for report in found.reports if any(problem.fatal for problem in report.problems)}
            problems = tuple(problem for problem in found.problems if problem.fatal)
            return Sight(devices=found.inventory.devices, silent=frozenset(silent), problems=problems)

        return LocalBroker(drivers, store, where.runtime, observe=observe, at_end=end)
    except BaseException:
        store.close()
        end()
        raise
