"""Loading plugins, each entry point and each hook under its own guard: a broken one is a line in the report."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from hal.drivers.contract import DriverFactory, Problem
from hal.drivers.entries import DriverFacts, Entry, source_stamp
from hal.drivers.guarded import Call, describe
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal.drivers.hookspecs import Exporter, HealthRule

T = TypeVar("T")


class Plugin(msgspec.Struct, kw_only=True):
    """A plugin that was loaded, as far as it let itself be loaded."""

    entry: Entry
    factories: tuple[DriverFactory, ...] = ()
    exporters: tuple[Exporter, ...] = ()
    rules: tuple[HealthRule, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """The entry point's name."""
        return self.entry.name


def load(entries: Iterable[Entry], deadline: Deadline) -> tuple[Plugin, ...]:
    """Import plugins and call their hooks, all at once, until the deadline; never raises for a plugin's sake."""
    calls = [(entry, Call(_loading(entry), entry.name)) for entry in entries]
    plugins: list[Plugin] = []
    for entry, call in calls:
        if not call.join(deadline):
            plugins.append(
                _failed(entry, "load", "did not finish loading in time", "a module must do nothing at import")
            )
        elif call.value is None:
            error = call.error or RuntimeError("no result")
            plugins.append(_failed(entry, "load", describe(error), "pip install --upgrade the plugin, or remove it"))
        else:
            plugins.append(call.value)
    return tuple(plugins)


def _failed(entry: Entry, step: str, detail: str, hint: str) -> Plugin:
    return Plugin(entry=entry, problems=(Problem(source=entry.name, step=step, detail=detail, hint=hint),))


def _loading(entry: Entry) -> Callable[[], Plugin]:
    return lambda: _load(entry)


def _load(entry: Entry) -> Plugin:
    import pluggy

    from hal.drivers import hookspecs

    problems: list[Problem] = []

    def trouble(step: str, error: BaseException, hint: str) -> None:
        problems.append(Problem(source=entry.name, step=step, detail=describe(error), hint=hint))

    try:
        module = importlib.import_module(entry.module)
    except BaseException as error:  # a guard: even SystemExit at import is only this plugin's failure
        return _failed(entry, "import", describe(error), f"python -c 'import {entry.module}' shows where")
    # A manager of its own, so that one plugin's mistakes cannot be laid at another's door.
    manager = pluggy.PluginManager("hal")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, entry.name)
    except pluggy.PluginValidationError as error:
        trouble("register", error, "compare the hook's arguments with docs/reference/hooks.md")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        trouble("register", error, "the hooks are hal_drivers, hal_exporters and hal_health_rules")

    def collect(hook: str, kind: type[T]) -> tuple[T, ...]:
        found: list[T] = []
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            try:
                for item in implementation.function():
                    if not isinstance(item, kind):
                        raise TypeError(f"{hook} gave a {type(item).__name__}, not a {kind.__name__}")
                    found.append(item)
            except BaseException as error:  # a guard: what was given before the failure is kept
                trouble(hook, error, "a hook only registers: it must not touch hardware or files")
        return tuple(found)

    factories = collect("hal_drivers", DriverFactory)
    rules = collect("hal_health_rules", hookspecs.HealthRule)
    plugin = Plugin(
        entry=msgspec.structs.replace(
            entry,
            drivers=tuple(facts(factory) for factory in factories),
            judges=bool(rules),
            stamp=_stamp(module),
        ),
        factories=factories,
        exporters=collect("hal_exporters", hookspecs.Exporter),
        rules=rules,
    )
    plugin.problems = tuple(problems)
    return plugin


def _stamp(module: ModuleType) -> tuple[str, int]:
    return source_stamp(module.__file__) if module.__file__ else ("", 0)


def facts(factory: DriverFactory) -> DriverFacts:
    """Return what a factory says about itself, without its code."""
    return DriverFacts(
        name=factory.name,
        kinds=factory.kinds,
        matches=factory.matches,
        priority=factory.priority,
        brings_hosts=factory.hosts is not None,
    )


def loaded_exporters(entries: Sequence[Entry], deadline: Deadline) -> tuple[Any, ...]:
    """Return the exporters of all plugins; one that cannot be loaded contributes none."""
    return tuple(exporter for plugin in load(entries, deadline) for exporter in plugin.exporters)
