"""Host discovery as a driver: the kernel's own view of a machine, of the lowest priority, that opens nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.drivers.contract import (
    READY,
    Cause,
    Context,
    Discovery,
    DriverFactory,
    Grant,
    HostRoot,
    Problem,
    Readiness,
)
from hal.errors import DeviceNotFound, DriverError, Unsupported
from hal.host.gpus import find_gpus
from hal.host.identity import is_bluefield
from hal.host.memory import find_nodes
from hal.host.network import find_interfaces, find_nics, find_rnics
from hal.host.scan import DRIVER, Scan
from hal.host.storage import find_nvmes
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.health import Action, Condition, Severity
from hal.model.kind import Kind

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal.interfaces.common import Handle

_PLUGINS = {
    Kind.GPU: "rackhal-nvidia",
    Kind.DPU: "rackhal-bluefield",
    Kind.RNIC: "rackhal-rdma",
    Kind.PMEM: "rackhal-pmem",
    Kind.UPMEM: "rackhal-upmem",
}


def discover_host(
    root: HostRoot, *, overrides: Mapping[str, int] | None = None, deadline: Deadline | None = None
) -> Discovery:
    """Return everything that a machine's sysfs tells of.

    ``overrides`` maps a PCI address, a host bridge (``pci0000:15``) or another device's name (``region0``) to the NUMA
    node it is really on, for firmware that lies. Raises :class:`~hal.errors.DriverError` if there is no sysfs at all;
    anything less costs an attribute or a problem.
    """
    with HostTree(root.root) as host:
        return discover_tree(host, root, overrides=overrides, deadline=deadline)


def discover_tree(
    host: HostTree, root: HostRoot, *, overrides: Mapping[str, int] | None = None, deadline: Deadline | None = None
) -> Discovery:
    """Return everything that an opened tree tells of; ``root`` gives the names of node and rack."""
    scan = Scan(host, root.node, root.rack, overrides, deadline)
    bluefields = any(is_bluefield(function.vendor, function.device) for function in scan.functions.values())
    if bluefields:
        from hal.host.bluefield import add_cards, find_cards

        cards = find_cards(scan)
    interfaces = find_interfaces(scan)
    find_nodes(scan)
    find_rnics(scan, interfaces)
    find_nics(scan, interfaces)
    find_nvmes(scan)
    find_gpus(scan)
    _find_memory(scan)
    if bluefields:
        add_cards(scan, cards)
    _add_functions(scan)
    return Discovery(devices=tuple(scan.devices), problems=tuple(scan.problems))


def _find_memory(scan: Scan) -> None:
    """Find persistent memory, CXL and UPMEM; what looks for hardware that few machines have is imported where it is."""
    tree = scan.tree
    regions: dict[str, str] = {}
    dax = bool(tree.names("bus/dax/devices"))
    if dax or tree.names("bus/nd/devices") or any(name.startswith("pmem") for name in tree.names("class/block")):
        from hal.host.pmem import find_regions

        regions = find_regions(scan)
    if tree.names("bus/cxl/devices"):
        from hal.host.cxl import find_cxl

        regions = {**regions, **find_cxl(scan, regions)}
    if dax:
        from hal.host.pmem import find_dax

        find_dax(scan, regions)
    if tree.names("class/dpu_rank"):
        from hal.host.upmem import find_ranks

        find_ranks(scan)


def _add_functions(scan: Scan) -> None:
    """Add the functions that nothing else has named: switch ports and the rest."""
    for address, function in scan.functions.items():
        if address in scan.taken:
            continue
        facts = scan.facts(function)
        scan.add(
            id=None,
            else_id=f"pci/{address}",
            kind=Kind.SWITCH if function.is_bridge else Kind.PCI,
            name=address,
            location=scan.locate(function),
            attributes=facts,
            aliases=("pci:" + address,),
        )


class SysfsDriver:
    """The driver ``sysfs``. It finds all kinds and conditions that the kernel shows; using a device takes a plugin."""

    name = DRIVER

    def __init__(self, hosts: Sequence[HostRoot], overrides: Mapping[str, int] | None = None) -> None:
        self._hosts = tuple(hosts)
        self._overrides = dict(overrides or {})
        self._seen: dict[str, Device] = {}

    def readiness(self) -> Readiness:
        """Ready where there is a sysfs to look into."""
        for host in self._hosts:
            try:
                HostTree(host.root).close()
            except DriverError as error:
                return Readiness(cause=Cause.NO_HARDWARE, detail=error.message, remedy="mount -t sysfs sysfs /sys")
        return READY

    def discover(self, deadline: Deadline) -> Discovery:
        """Look at every machine; one that cannot be looked into is a problem and hides no other."""
        devices: list[Device] = []
        problems: list[Problem] = []
        for host in self._hosts:
            try:
                found = discover_host(host, overrides=self._overrides, deadline=deadline)
            except DriverError as error:
                problems.append(Problem(source=host.node, step="discover", detail=error.message, hint=error.hint or ""))
                continue
            devices += found.devices
            problems += found.problems
        self._seen.update((device.id, device) for device in devices)
        return Discovery(devices=tuple(devices), problems=tuple(problems))

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Look again; a device that was found before and is not any more has a condition that says so."""
        before = dict(self._seen)
        now = {device.id: device for device in self.discover(deadline).devices}
        found: list[Condition] = []
        for device_id in device_ids:
            device = now.get(device_id)
            if device is not None:
                found += device.conditions
            elif device_id in before:
                found.append(
                    Condition(
                        device=device_id,
                        type="NotEnumerated",
                        severity=Severity.FATAL,
                        evidence="the kernel has listed it before and does not any more",
                        source=self.name,
                        action=Action.REBOOT,
                    )
                )
            else:
                raise _not_found(device_id, "sample")
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse: the kernel's view can be looked at, not leased."""
        raise self._refusal(device_id, "prepare", deadline)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Nothing was prepared, so there is nothing to take back."""
        self._find(device_id, "unprepare", deadline)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> Handle:
        """Refuse, naming the plugin that can."""
        raise self._refusal(device_id, "open", deadline)

    def close(self) -> None:
        """Nothing is held."""

    def _find(self, device_id: str, step: str, deadline: Deadline) -> Device:
        if device_id not in self._seen:
            self.discover(deadline)
        device = self._seen.get(device_id)
        if device is None:
            raise _not_found(device_id, step)
        return device

    def _refusal(self, device_id: str, step: str, deadline: Deadline) -> Unsupported:
        device = self._find(device_id, step, deadline)
        plugin = _PLUGINS.get(device.kind)
        return Unsupported(
            "sysfs shows the device but cannot drive it",
            device=device_id,
            during=step,
            hint=f"pip install {plugin}" if plugin is not None else "the kernel uses it; no lease is needed",
        )


def _not_found(device_id: str, step: str) -> DeviceNotFound:
    return DeviceNotFound("sysfs shows no such device", device=device_id, during=step, hint="hal-probe list")


def _create(context: Context) -> SysfsDriver:
    return SysfsDriver(context.hosts)


SYSFS_FACTORY = DriverFactory(name=DRIVER, kinds=tuple(Kind), create=_create, priority=0)
