"""Drivers by name without a look at the whole machine: for a holder who already knows which devices are theirs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from hal.agent.plugins import PluginSet, speaks_to_environment
from hal.drivers.contract import Context, Driver, DriverFactory, HostRoot
from hal.drivers.entries import Entry, installed
from hal.drivers.guarded import describe
from hal.drivers.loader import Plugin, load
from hal.errors import NotReady
from hal.interfaces.deadline import Deadline


def find_factories(
    names: Iterable[str], environ: Mapping[str, str] | None = None, deadline_seconds: float = 5.0
) -> tuple[dict[str, DriverFactory], Context]:
    """Load the plugins that offer the named drivers; return the factories, and what to create them with.

    Raises :class:`~hal.errors.NotReady` for one that no installed plugin offers.
    """
    environ = os.environ if environ is None else environ
    wanted = set(names)
    entries = installed(environ)
    plugins = PluginSet(entries, environ)
    plugins.load([entry for entry in entries if speaks_to_environment(entry, environ)], deadline_seconds)
    offering = [e for e in entries if e.drivers is None or any(facts.name in wanted for facts in e.drivers)]
    loaded = load(offering, Deadline.after(deadline_seconds))
    brought = plugins.hosts()
    root = environ.get("HAL_SYSFS_ROOT") or None
    hosts = (HostRoot(node=os.uname().nodename, root=root),) if brought is None or root else brought
    return _chosen(wanted, loaded), Context(hosts=hosts, environ=environ)


def offered(name: str, module: str, deadline_seconds: float = 5.0) -> DriverFactory:
    """Load one plugin, by the module that its entry point names; return what it offers under a driver's name.

    Raises :class:`~hal.errors.NotReady` if it does not.
    """
    loaded = load([Entry(name=module, module=module)], Deadline.after(deadline_seconds))
    return _chosen({name}, loaded)[name]


def _chosen(wanted: AbstractSet[str], loaded: Iterable[Plugin]) -> dict[str, DriverFactory]:
    """Return the factories of the wanted names; raises what kept one of them from being offered."""
    plugins = tuple(loaded)
    found: dict[str, DriverFactory] = {}
    for factory in (factory for plugin in plugins for factory in plugin.factories):
        if factory.name in wanted:
            found.setdefault(factory.name, factory)
    for name in sorted(wanted - found.keys()):
        trouble = "; ".join(f"{problem.source}: {problem.detail}" for plugin in plugins for problem in plugin.problems)
        raise NotReady(
            f"no installed plugin offers the driver {name}" + (f" ({trouble})" if trouble else ""),
            during="open",
            hint="pip install the plugin that offered it when the lease was granted; hal-probe doctor",
        )
    return found


def create_drivers(
    names: Iterable[str], environ: Mapping[str, str] | None = None, deadline_seconds: float = 5.0
) -> dict[str, Driver]:
    """Create the named drivers; nothing is discovered.

    Raises :class:`~hal.errors.NotReady` for one that no installed plugin offers.
    """
    factories, context = find_factories(names, environ, deadline_seconds)
    return {name: create_driver(factory, context) for name, factory in factories.items()}


def create_driver(factory: DriverFactory, context: Context) -> Driver:
    """Create one driver under a guard; raises :class:`~hal.errors.NotReady` for what it raises."""
    try:
        return factory.create(context)
    except Exception as error:  # a guard: a plugin's code
        raise NotReady(
            f"the driver {factory.name} could not be created: {describe(error)}",
            during="open",
            hint="hal-probe doctor; report it to the plugin",
        ) from error
