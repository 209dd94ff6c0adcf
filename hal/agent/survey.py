"""One look at a machine: plugins, drivers, host discovery, all guarded, merged into one inventory."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from hal.agent.plugins import PluginSet, speaks_to_environment, wants
from hal.agent.report import SYSFS, DriverReport
from hal.drivers.catalog import KNOWN, drives, plugin_for
from hal.drivers.contract import Cause, Context, Discovery, Driver, DriverFactory, HostRoot, Problem, Readiness
from hal.drivers.entries import installed
from hal.model.device import Device
from hal.model.inventory import Inventory, merge
from hal.model.kind import ACCELERATORS, Kind


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """Hardware that is there and that no driver drives: what it is, and what to install."""

    device: str
    node: str
    kind: Kind
    model: str
    distribution: str
    text: str


class Survey:
    """What a survey found. ``partial`` is true if a plugin or driver failed or ran out of time."""

    def __init__(
        self,
        inventory: Inventory,
        reports: tuple[DriverReport, ...],
        plugin_problems: tuple[Problem, ...],
        drivers: Mapping[str, Driver],
        suggestions: tuple[Suggestion, ...],
        hosts: tuple[HostRoot, ...],
    ) -> None:
        self.inventory = inventory
        self.reports = reports
        self.plugin_problems = plugin_problems
        self.drivers = drivers
        self.suggestions = suggestions
        self.hosts = hosts

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that went wrong, one line each."""
        return (*self.plugin_problems, *(problem for report in self.reports for problem in report.problems))

    @property
    def partial(self) -> bool:
        """True if something that should have been looked at was not."""
        return any(problem.fatal for problem in self.problems)

    def close(self) -> None:
        """Close all drivers."""
        for driver in self.drivers.values():
            driver.close()


def survey(
    *,
    deadline_seconds: float = 2.0,
    environ: Mapping[str, str] | None = None,
    root: str | None = None,
    kinds: Iterable[Kind] | None = None,
    through: Callable[[DriverFactory, str], DriverFactory] | None = None,
) -> Survey:
    """Look at this machine, or at the tree under ``root`` (or ``HAL_SYSFS_ROOT``), or at the one a plugin brings.

    Every plugin and driver has ``deadline_seconds``; all run side by side. Nothing that a plugin does raises here.
    ``through`` changes how drivers are created (:meth:`hal.agent.monitors.Monitors.through`: each in its own process);
    it is told the module of the driver's plugin.
    """
    environ = os.environ if environ is None else environ
    wanted = frozenset(kinds) if kinds is not None else None
    root = root or environ.get("HAL_SYSFS_ROOT") or None
    entries = installed(environ)
    by_environment = [entry for entry in entries if speaks_to_environment(entry, environ)]
    plugins = PluginSet(entries, environ)
    plugins.load(by_environment, deadline_seconds)
    brought = None if root else plugins.hosts()
    if root:
        plugins.leave_out_other_machines()
        hosts: tuple[HostRoot, ...] = (_recorded(root),)
    else:
        hosts = (HostRoot(node=os.uname().nodename),) if brought is None else brought
    host_found, host_reports = _look_at_hosts(hosts, deadline_seconds)
    # A machine that a plugin brings is that plugin's to drive: other vendors' libraries speak of the running one.
    own, places = (host_found, hosts) if brought is None else ((), ())
    plugins.load([entry for entry in entries if wants(entry, own, places)], deadline_seconds)
    context = Context(hosts=hosts, environ=environ)
    layers: list[tuple[int, Iterable[Device]]] = [(0, host_found)]
    reports = list(host_reports)
    drivers: dict[str, Driver] = {}
    chosen = plugins.factories(own, places, wanted)
    if through is not None:
        chosen = tuple((plugin, through(factory, plugins.module(plugin))) for plugin, factory in chosen)
    if chosen:
        from hal.agent.discovery import run_drivers

        for run in run_drivers(chosen, context, deadline_seconds):
            reports.append(run.report)
            layers.append((run.factory.priority, run.devices))
            if run.driver is not None:
                drivers[run.factory.name] = run.driver
    reports.extend(plugins.idle(chosen, wanted))
    plugins.save()
    inventory = merge(layers)
    rules = plugins.rules()
    if rules:
        from hal.agent.rules import judge

        inventory, judged = judge(inventory, rules, deadline_seconds)
        reports.extend(judged)
    return Survey(
        inventory=inventory,
        reports=tuple(reports),
        plugin_problems=plugins.problems,
        drivers=drivers,
        suggestions=suggest(inventory, {entry.distribution for entry in entries}),
        hosts=hosts,
    )


def _recorded(root: str) -> HostRoot:
    """Return the machine recorded in a folder or a snapshot, under the name that is recorded with it."""
    name, given = "", root
    if os.path.isfile(root):
        from hal.errors import HalError
        from hal.host.archive import unpack

        try:
            root = unpack(root)
        except HalError:
            pass  # whoever looks into it says why
    try:
        with open(os.path.join(root, "etc", "hostname"), encoding="utf-8", errors="replace") as file:
            name = file.read(256).strip()
    except OSError:
        pass
    return HostRoot(node=name or os.path.basename(os.path.abspath(given)) or "recorded", root=root)


def _look_at_hosts(
    hosts: tuple[HostRoot, ...], deadline_seconds: float
) -> tuple[tuple[Device, ...], tuple[DriverReport, ...]]:
    import time

    from hal.drivers.guarded import describe
    from hal.host.driver import discover_host

    devices: list[Device] = []
    reports: list[DriverReport] = []
    for host in hosts:
        start = time.monotonic()
        try:
            found = discover_host(host)
        except Exception as error:  # a guard: host discovery is a driver like any other
            found = Discovery(problems=(Problem(source=SYSFS, step="discover", detail=describe(error)),))
        devices.extend(found.devices)
        reports.append(
            DriverReport(
                driver=SYSFS,
                plugin="hal",
                kinds=tuple(Kind),
                readiness=Readiness(cause=Cause.READY, detail=host.node),
                device_count=len(found.devices),
                problems=found.problems,
                seconds=time.monotonic() - start,
            )
        )
    return tuple(devices), tuple(reports)


def suggest(inventory: Inventory, installed: Collection[str] = ()) -> tuple[Suggestion, ...]:
    """Name what is there and driven by nothing, and what to install; a plugin that is installed speaks for itself."""
    found: list[Suggestion] = []
    for device in inventory:
        if device.driver != SYSFS or not (device.kind in ACCELERATORS or device.kind is Kind.PCI):
            continue
        vendor, model, code = (str(device.value(name) or "") for name in ("pci_vendor", "pci_device", "pci_class"))
        kind = device.kind if device.kind in ACCELERATORS else None
        known = drives(vendor, model, code, kind) if vendor else None
        if known is None and kind is None:
            continue
        distribution, name = known or ((*plugin_for(device.kind), "a plugin")[0], "")
        if distribution in installed:
            continue
        name = name or str(device.value("model") or device.kind.value)
        article = "an" if (name[:1].upper() in "AEFHILMNORSX" and name[:2].isupper()) or name[:1] in "AEIOU" else "a"
        slot = f"in slot {device.location.pci_address}" if device.location.pci_address else f"as {device.name}"
        found.append(
            Suggestion(
                device=device.id,
                node=device.location.node,
                kind=kind or _kind_of(vendor, model, code),
                model=name,
                distribution=distribution,
                text=f"{article} {name} is {slot}; nothing drives it; install {distribution}",
            )
        )
    return tuple(found)


def _kind_of(vendor: str, device: str, code: str) -> Kind:
    for known in KNOWN:
        for match in known.matches:
            if match.kind is not None and match.fits_pci(vendor, device, code):
                return match.kind
    return Kind.PCI
