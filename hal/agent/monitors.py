"""The drivers of a machine, each in a process of its own: what a daemon uses in place of the drivers themselves.

A daemon looks at its machine with ``survey(through=monitors.through)``: then every driver is created, asked and later
prepared with in its monitor, and the daemon itself never enters a vendor's library. ``monitored`` is the short way for
drivers whose names are known.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from hal.drivers.contract import Context, HostRoot
from hal.drivers.guarded import Call, describe
from hal.drivers.monitor import MonitoredDriver, monitor
from hal.drivers.monitor_calls import Monitor
from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_life import Stem
from hal.drivers.monitor_restarts import Restarts
from hal.errors import DeadlineExceeded, HalError, NotReady
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal.drivers.contract import Driver, DriverFactory

START_SECONDS = 10.0
"""How long importing a plugin and creating its driver may take."""
_BEFOREHAND = ("hal.agent.monitors", "hal.agent.drivers", "hal.drivers.loader", "hal.drivers.hookspecs", "pluggy")
"""What every nursery needs to load a plugin, and nothing of any plugin."""


class _Given(msgspec.Struct, frozen=True, kw_only=True):
    """What a survey already knows: the module of the driver's plugin, and the machines to look at."""

    module: str
    hosts: tuple[HostRoot, ...]


class Monitors:
    """Starts a process for each driver it is asked for, keeps it, and ends them all when it is closed.

    ``environ`` is what the drivers see of the environment (``HAL_MACHINE`` among it), ``records`` the folder in which
    quarantines are kept (:class:`~hal.drivers.monitor_restarts.Restarts`), ``user`` whose rights the processes have
    (only root can give them another's). With ``open_here`` leases can be opened in this process, too. Thread-safe.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        records: Path | None = None,
        user: str | None = None,
        open_here: bool = False,
    ) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.records = records
        self.user = user
        self.open_here = open_here
        self.drivers: dict[str, MonitoredDriver] = {}
        self._lock = threading.Lock()
        self._starting: dict[str, Monitor] = {}
        self._stem = Stem(self.environ, user, _BEFOREHAND)

    def through(self, factory: DriverFactory, module: str) -> DriverFactory:
        """Return the factory that creates the same driver in its monitor, which loads only that module's plugin."""

        def create(context: Context) -> Driver:
            return self.driver(factory.name, given=_Given(module=module, hosts=context.hosts))

        return msgspec.structs.replace(factory, create=create)

    def start(self, names: Iterable[str]) -> None:
        """Begin to start the monitors of drivers, without waiting for any."""
        for name in names:
            self._process(name).start()

    def driver(self, name: str, deadline: Deadline | None = None, *, given: _Given | None = None) -> MonitoredDriver:
        """Return a driver in its monitor: the one that runs, or a new one if there is none or it was closed.

        Raises what kept it from being created, and :class:`~hal.errors.DeadlineExceeded`.
        """
        with self._lock:
            known = self.drivers.get(name)
            if known is not None and not known.process.closed:
                return known
        process = self._process(name, given)
        try:
            found = monitor(
                process.recipe,
                self.environ,
                Deadline.after(START_SECONDS) if deadline is None else deadline,
                open_here=self._opener(name) if self.open_here else None,
                process=process,
            )
        finally:
            with self._lock:
                self._starting.pop(name, None)
        with self._lock:
            before = self.drivers.get(name)
            if before is None or before.process.closed:
                self.drivers[name] = found
                return found
        if before.process is not found.process:
            found.close()  # another thread was quicker
        return before

    def _process(self, name: str, given: _Given | None = None) -> Monitor:
        with self._lock:
            process = self._starting.get(name)
            if process is None or process.closed:
                record = None if self.records is None else self.records / f"{name}.quarantine"
                words = "" if given is None else msgspec.json.encode(given).decode()
                recipe = Recipe(function="hal.agent.monitors:creator", name=name, given=words)
                process = Monitor(recipe, Restarts(name, record), self.environ, user=self.user, stem=self._stem)
                self._starting[name] = process
            return process

    def _opener(self, name: str) -> Callable[[], Driver]:
        def create() -> Driver:
            from hal.agent.drivers import create_drivers

            return create_drivers([name], self.environ)[name]

        return create

    def settle(self) -> None:
        """End the process that only starts others; from now on each is started by itself, which is slower."""
        self._stem.end()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            running = [*self.drivers.values()]
            starting = [*self._starting.values()]
        for driver in running:
            driver.close()
        for process in starting:
            process.close()
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def monitored(
    names: Iterable[str],
    environ: Mapping[str, str] | None = None,
    *,
    records: Path | None = None,
    user: str | None = None,
    open_here: bool = False,
    deadline_seconds: float = START_SECONDS,
) -> dict[str, Driver]:
    """Return the named drivers (a survey's ``drivers`` are such names), each in its monitor; started side by side.

    Raises what the first of them raised that could not be created; then none is left running.
    """
    monitors = Monitors(environ, records=records, user=user, open_here=open_here)
    wanted = list(names)
    monitors.start(wanted)
    deadline = Deadline.after(deadline_seconds)
    calls = {name: Call(lambda name=name: monitors.driver(name, deadline), name) for name in wanted}  # type: ignore[misc]
    found: dict[str, Driver] = {}
    patience = Deadline.after(deadline_seconds + 5.0)
    for name, call in calls.items():
        if not call.join(patience) or call.value is None:
            monitors.close()
            if isinstance(call.error, HalError):
                raise call.error
            if call.error is None:
                raise DeadlineExceeded(f"driver {name} did not start", during="create", hint="hal-probe doctor")
            raise NotReady(
                f"driver {name} did not start: {describe(call.error)}", during="create", hint="hal-probe doctor"
            ) from call.error
        found[name] = call.value
    monitors.settle()
    return found


def creator(name: str, given: str = "") -> Callable[[], Driver]:
    """Load the plugin that offers a driver, in its monitor's nursery; return what creates the driver in a worker.

    Without what a survey has found (``given``), all plugins that may offer it are loaded.
    """
    from hal.agent.drivers import create_driver, find_factories, offered

    if given:
        known = msgspec.json.decode(given, type=_Given)
        factory = offered(name, known.module)
        context = Context(hosts=known.hosts, environ=os.environ)
    else:
        factories, context = find_factories([name])
        factory = factories[name]
    return lambda: create_driver(factory, context)
