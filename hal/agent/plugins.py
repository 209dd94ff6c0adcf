"""The plugins of one survey: which must be loaded, which can be left alone, and what they brought."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hal.agent.report import DriverReport
from hal.drivers.contract import Cause, DriverFactory, HostRoot, Problem, Readiness
from hal.drivers.entries import DriverFacts, Entry, remember
from hal.drivers.match import Match
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.kind import Kind

if TYPE_CHECKING:
    from hal.drivers.hookspecs import HealthRule
    from hal.drivers.loader import Plugin

_HOSTS_SECONDS = 30.0
"""Writing the trees of a whole rack is disk work done once, so it is given more time than a device is."""


_ELSEWHERE = Readiness(cause=Cause.NO_HARDWARE, detail="a recorded machine is looked at, not the one it brings")


class PluginSet:
    """Loads plugins on demand and keeps their problems; nothing a plugin does raises here."""

    def __init__(self, entries: tuple[Entry, ...], environ: Mapping[str, str]) -> None:
        self.entries = entries
        self.environ = environ
        self.problems: tuple[Problem, ...] = ()
        self._loaded: dict[str, Plugin] = {}
        self._without_hosts: set[str] = set()
        self._elsewhere: set[str] = set()

    def load(self, entries: Iterable[Entry], deadline_seconds: float) -> None:
        """Load the plugins that are not loaded yet, side by side."""
        fresh = [entry for entry in entries if entry.name not in self._loaded]
        if not fresh:
            return
        from hal.drivers.loader import load

        for plugin in load(fresh, Deadline.after(deadline_seconds)):
            self._loaded[plugin.name] = plugin
            self.problems = (*self.problems, *plugin.problems)

    def module(self, plugin: str) -> str:
        """Return the module that a loaded plugin's entry point names."""
        return self._loaded[plugin].entry.module

    def hosts(self) -> tuple[HostRoot, ...] | None:
        """Return the machines that plugins bring instead of this one; None for the usual case, that none does.

        One that was to bring machines and failed brings an empty tuple: its devices must not be mixed with this
        machine's.
        """
        found: list[HostRoot] | None = None
        for plugin in self._loaded.values():
            for factory in plugin.factories:
                if factory.hosts is not None and called_for(factory.matches, self.environ):
                    found = [*(found or ()), *self._ask_hosts(plugin, factory)]
        return None if found is None else tuple(found)

    def leave_out_other_machines(self) -> None:
        """A recorded tree is looked at: plugins that bring machines would mix their devices with its."""
        for plugin in self._loaded.values():
            if any(factory.hosts is not None for factory in plugin.factories):
                self._elsewhere.add(plugin.name)

    def _ask_hosts(self, plugin: Plugin, factory: DriverFactory) -> Sequence[HostRoot]:
        from hal.drivers.guarded import Call, describe

        ask, environ = factory.hosts, self.environ
        if ask is None:
            return ()
        call = Call(lambda: tuple(ask(environ)), factory.name)
        if call.join(Deadline.after(_HOSTS_SECONDS)) and call.value is not None:
            return call.value
        detail = describe(call.error) if call.error is not None else "did not answer in time"
        problem = Problem(source=plugin.name, step="hosts", detail=detail)
        self.problems = (*self.problems, problem)
        self._without_hosts.add(plugin.name)
        return ()

    def factories(
        self, found: Sequence[Device], hosts: Sequence[HostRoot], wanted: frozenset[Kind] | None
    ) -> tuple[tuple[str, DriverFactory], ...]:
        """Return (plugin, factory) for every driver whose hardware may be here."""
        chosen: list[tuple[str, DriverFactory]] = []
        for plugin in self._loaded.values():
            if plugin.name in self._without_hosts:
                continue  # its drivers could only repeat what went wrong
            if plugin.name in self._elsewhere:
                continue
            for factory in plugin.factories:
                if wanted is not None and not wanted.intersection(factory.kinds):
                    continue
                if fits(factory.matches, self.environ, found, hosts):
                    chosen.append((plugin.name, factory))
        return tuple(chosen)

    def rules(self) -> tuple[tuple[str, HealthRule], ...]:
        """Return (plugin, rule) for every health rule."""
        return tuple((plugin.name, rule) for plugin in self._loaded.values() for rule in plugin.rules)

    def idle(
        self, chosen: Iterable[tuple[str, DriverFactory]], wanted: frozenset[Kind] | None
    ) -> tuple[DriverReport, ...]:
        """Report the drivers that were not asked because their hardware is not here."""
        asked = {factory.name for _, factory in chosen}
        reports: list[DriverReport] = []
        for entry in self.entries:
            loaded = self._loaded.get(entry.name)
            facts = (loaded.entry.drivers if loaded is not None else entry.drivers) or ()
            for driver in facts:
                if driver.name in asked or (wanted is not None and not wanted.intersection(driver.kinds)):
                    continue
                readiness = _ELSEWHERE if entry.name in self._elsewhere else not_here(driver)
                reports.append(
                    DriverReport(driver=driver.name, plugin=entry.name, kinds=driver.kinds, readiness=readiness)
                )
        return tuple(reports)

    def save(self) -> None:
        """Keep what was learned about plugins that loaded without a fault, for the next process."""
        learned = {name: plugin.entry for name, plugin in self._loaded.items() if not plugin.problems}
        entries = tuple(learned.get(entry.name, entry) for entry in self.entries)
        if entries != self.entries:
            remember(entries, self.environ)


def not_here(driver: DriverFacts) -> Readiness:
    """Say why a driver was not asked."""
    lacks = (
        (match.environment and f"{match.environment} is not set") or f"no {match.model or match.subsystem or 'match'}"
        for match in driver.matches
    )
    wanted = ", ".join(list(dict.fromkeys(lacks))[:3])
    return Readiness(cause=Cause.NO_HARDWARE, detail=wanted)


def called_for(matches: Iterable[Match], environ: Mapping[str, str]) -> bool:
    """True if a row asks for a variable that is set."""
    return any(match.environment and environ.get(match.environment) for match in matches)


def speaks_to_environment(entry: Entry, environ: Mapping[str, str]) -> bool:
    """True for a plugin that a variable calls for, or of which nothing is known yet."""
    return entry.drivers is None or any(called_for(facts.matches, environ) for facts in entry.drivers)


def wants(entry: Entry, found: Sequence[Device], hosts: Sequence[HostRoot]) -> bool:
    """True if a plugin must be loaded because its hardware may be here, or because it judges everybody's."""
    return (
        entry.drivers is None or entry.judges or any(fits(facts.matches, {}, found, hosts) for facts in entry.drivers)
    )


def fits(
    matches: Sequence[Match], environ: Mapping[str, str], found: Sequence[Device], hosts: Sequence[HostRoot]
) -> bool:
    """True if one row of a match table fits what is here; a driver without a table is always asked."""
    if not matches or called_for(matches, environ):
        return True
    for match in matches:
        if match.subsystem and any(not_empty(host, match.subsystem) for host in hosts):
            return True
        if any(_is(match, device) for device in found):
            return True
    return False


def _is(match: Match, device: Device) -> bool:
    vendor = device.value("pci_vendor")
    return vendor is not None and match.fits_pci(
        str(vendor), str(device.value("pci_device") or ""), str(device.value("pci_class") or "")
    )


def not_empty(host: HostRoot, subsystem: str) -> bool:
    """True if a folder of a machine's sysfs has something in it."""
    base = host.root or "/"
    sys = os.path.join(base, "sys")
    try:
        with os.scandir(os.path.join(sys if os.path.isdir(sys) else base, subsystem)) as names:
            return next(names, None) is not None
    except OSError:
        return False
