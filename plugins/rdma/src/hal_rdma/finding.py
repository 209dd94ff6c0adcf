"""Finding RDMA NICs: host discovery's own view of them, and what this driver adds: links, SR-IOV, subfunctions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

from hal.drivers.contract import HostRoot, Problem
from hal.errors import DriverError
from hal.host.bluefield import find_cards
from hal.host.identity import is_bluefield
from hal.host.network import find_interfaces, find_rnics
from hal.host.scan import Scan
from hal.host.tree import HostTree
from hal.model.attributes import Attribute
from hal.model.device import Device, Link, alias
from hal_rdma.health import judge_ports
from hal_rdma.ports import RDMA, read_ports

if TYPE_CHECKING:
    from hal.host.tree import Tree
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import Port

DRIVER = "rdma"
_LANES = re.compile(r"\((\d+)X ")
_SUBFUNCTION = re.compile(r"/(mlx5_core\.sf\.\d+)/")
_FILES = {"sriov_totalvfs": "max_vfs", "sriov_numvfs": "vfs"}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A NIC as found: the device, the machine it is on, and its ports of that moment."""

    device: Device
    host: HostRoot
    ports: tuple[Port, ...] = ()
    guid: str = ""

    @property
    def rdma_name(self) -> str:
        """Its name in ``class/infiniband``."""
        return alias(self.device, "rdma") or self.device.name


def is_still_there(found: Found) -> bool:
    """True if the kernel lists the same NIC by the same name; much quicker than to look for it."""
    if not found.guid:
        return False
    try:
        with HostTree(found.host.root) as host:
            return host.sys.read(f"{host.sys.resolve(f'{RDMA}/{found.rdma_name}')}/node_guid") == found.guid
    except DriverError:
        return False


class Cards:
    """Whose parts NICs are. A BlueField's serial number takes tens of milliseconds to read, so it is read once, until
    the functions of the machine's cards are others.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[frozenset[str], dict[str, str]]] = {}

    def tell(self, scan: Scan) -> None:
        """Give a scan the cards by slot."""
        functions = frozenset(one.address for one in scan.functions.values() if is_bluefield(one.vendor, one.device))
        if not functions:
            return
        before, parents = self._known.get(scan.node, (frozenset(), {}))
        if before == functions:
            scan.parents.update(parents)
        else:
            find_cards(scan)
            self._known[scan.node] = functions, dict(scan.parents)


def find_nics(
    hosts: Iterable[HostRoot], deadline: Deadline, cards: Cards | None = None
) -> tuple[list[Found], list[Problem]]:
    """Return the RDMA NICs of some machines; a machine that cannot be looked into is a problem and hides no other."""
    cards = cards or Cards()
    found: list[Found] = []
    problems: list[Problem] = []
    for root in hosts:
        try:
            with HostTree(root.root) as host:
                if host.sys.names(RDMA):
                    found += _find(host, root, deadline, cards, problems)
        except DriverError as error:
            problems.append(Problem(source=root.node, step="discover", detail=error.message, hint=error.hint or ""))
    return found, problems


def _find(host: HostTree, root: HostRoot, deadline: Deadline, cards: Cards, problems: list[Problem]) -> list[Found]:
    scan = Scan(host, root.node, root.rack, deadline=deadline)
    cards.tell(scan)
    find_rnics(scan, find_interfaces(scan))
    # What is wrong with other functions of the machine is host discovery's to say; what ran out of time is ours, too.
    problems += [msgspec.structs.replace(one, source=DRIVER) for one in scan.problems if one.fatal]
    # The device that has the function's name owns it; subfunctions sit on the same one.
    by_address = {address: one.id for one in scan.devices if (address := alias(one, "pci")) is not None}
    return [_complete(scan, root, device, by_address) for device in scan.devices]


def _complete(scan: Scan, root: HostRoot, device: Device, by_address: dict[str, str]) -> Found:
    name = alias(device, "rdma") or device.name
    ports = read_ports(scan.tree, name)
    attributes = {**device.attributes, **_sriov(scan, device)}
    parent = device.parent
    above = attributes.get("physical_function")
    path = scan.tree.resolve(f"{RDMA}/{name}") or ""
    guid = scan.tree.read(f"{path}/node_guid")
    subfunction = _SUBFUNCTION.search(f"{path}/")
    if subfunction is not None:
        attributes["subfunction"] = Attribute(subfunction[1], "sysfs:class/infiniband")
        owner = by_address.get(device.location.pci_address or "")
    else:
        owner = by_address.get(str(above.value)) if above is not None else None
    if parent is None and owner != device.id:
        parent = owner
    return Found(
        device=msgspec.structs.replace(
            device,
            driver=DRIVER,
            attributes=attributes,
            capacity={"ports": len(ports)},
            links=tuple(_link(scan.tree, name, port) for port in ports),
            parent=parent,
            allocatable=bool(ports),
            conditions=tuple(
                msgspec.structs.replace(one, source=DRIVER) for one in device.conditions if one.type != "LinkDown"
            )
            + judge_ports(device.id, ports, _unread(attributes, ports)),
        ),
        host=root,
        ports=ports,
        guid=guid if isinstance(guid, str) else "",
    )


def _unread(attributes: Mapping[str, Attribute], ports: tuple[Port, ...]) -> dict[int, str]:
    """Return why the state of ports cannot be read, by number."""
    found: dict[int, str] = {}
    for port in ports:
        state = attributes.get("port_state" if port.number == 1 else f"port{port.number}_port_state")
        if state is not None and state.absent is not None:
            found[port.number] = f"{state.absent.value} {state.detail}".strip()
    return found


def _sriov(scan: Scan, device: Device) -> dict[str, Attribute]:
    """Return how many virtual functions a NIC has and may have, or whose virtual function it is."""
    function = scan.functions.get(device.location.pci_address or "")
    if function is None:
        return {}
    physical = scan.tree.link(function.path + "/physfn")
    if physical is not None:
        return {"physical_function": Attribute(physical, "sysfs:physfn")}
    return {
        name: scan.tree.count(function.path, file)
        for file, name in _FILES.items()
        if scan.tree.exists(f"{function.path}/{file}")
    }


def _link(tree: Tree, name: str, port: Port) -> Link:
    rate = tree.read(f"{RDMA}/{name}/ports/{port.number}/rate")
    lanes = _LANES.search(rate) if isinstance(rate, str) else None
    return Link(
        type=port.link_layer.value.lower(),
        lanes=int(lanes[1]) if lanes is not None else 1,
        bandwidth_bytes_per_second=port.rate_gbps * 1e9 / 8 if port.rate_gbps else None,
        state="up" if port.up else "down",
        detail=f"port {port.number}",
    )
