"""RDMA NICs and network interfaces: different names of one device where they share a PCI function."""

from __future__ import annotations

from hal.host.folder import Folder
from hal.host.identity import RNICS
from hal.host.missing import NOT_THERE, Missing
from hal.host.numa import Place
from hal.host.pci import Function, address_on
from hal.host.scan import Scan, malformed, one_line, whole_number
from hal.model.attributes import Absence, Attribute
from hal.model.device import Location
from hal.model.kind import Kind

_RDMA = "class/infiniband"
_NET = "class/net"
_HEX = frozenset("0123456789abcdef")
_ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
_HOLES = 4
_MOST_GIDS = 256
_MOST_PORTS = 16
_VIRTUAL = ("devices/virtual/", "devices/vif")


class Interface:
    """A network interface as found."""

    __slots__ = ("address", "name", "path")

    def __init__(self, name: str, path: str, address: str | None) -> None:
        self.name = name
        self.path = path
        self.address = address


def find_interfaces(scan: Scan) -> list[Interface]:
    """Return the network interfaces that have hardware behind them."""
    tree = scan.tree
    found: list[Interface] = []
    for name, path in tree.entries(_NET):
        if path is None or path.startswith(_VIRTUAL) or name == "lo":
            continue
        address = address_on(path)
        if address is None:
            device = tree.resolve(path + "/device")
            if device is None or device == path + "/device":
                continue
            address = address_on(device)
        found.append(Interface(name, path, address))
    return found


def find_rnics(scan: Scan, interfaces: list[Interface]) -> None:
    """Add the RDMA devices; a network interface of the same function is another name of one and is not added."""
    tree = scan.tree
    by_address: dict[str, Interface] = {}
    for interface in interfaces:
        if interface.address is not None:
            by_address.setdefault(interface.address, interface)
    for name, folder in tree.walk(_RDMA):
        if scan.expired():
            return
        if folder is None:
            scan.complain(f"{_RDMA}/{name} leads out of the tree")
            continue
        address = address_on(folder.path)
        if address is None:
            device = tree.resolve(folder.path + "/device")
            address = address_on(device) if device is not None else None
        _add_rnic(scan, name, folder, address, by_address)


def _add_rnic(scan: Scan, name: str, folder: Folder, address: str | None, by_address: dict[str, Interface]) -> None:
    function = scan.functions.get(address) if address is not None else None
    facts = scan.facts(function)
    guid_text, firmware, board, model = folder.read_many(("node_guid", "fw_ver", "board_id", "hca_type"))
    guid = _guid(guid_text)
    if guid is not None:
        facts["node_guid"] = Attribute(guid, "sysfs:node_guid")
    elif isinstance(guid_text, str):
        facts["node_guid"] = malformed("sysfs:node_guid", f"{guid_text[:40]!r} is no GUID")
    else:
        facts["node_guid"] = guid_text.attribute("sysfs:node_guid")
    facts["firmware"] = one_line(firmware, "sysfs:fw_ver")
    facts["board_id"] = one_line(board, "sysfs:board_id")
    facts["hca_type"] = one_line(model, "sysfs:hca_type")
    named = RNICS.get((function.vendor, function.device)) if function is not None else None
    facts["model"] = facts["hca_type"] if named is None else Attribute(named, "pci-ids")
    with folder.below("ports") as ports:
        ndevs = _read_port(ports, "1", "", facts)
        count = 1
        while count < _MOST_PORTS and ports.holds(str(count + 1)):
            count += 1
            ndevs += _read_port(ports, str(count), f"port{count}_", facts)
    facts["ports"] = Attribute(count, "sysfs:ports")
    interface = by_address.get(address) if address is not None else None
    netdev = interface.name if interface is not None else (ndevs[0] if ndevs else None)
    aliases = [*scan.take(address), "rdma:" + name]
    if guid is not None:
        aliases.append("guid:" + guid)
    if netdev is not None:
        facts["netdev"] = Attribute(netdev, "sysfs:class/net" if interface is not None else "sysfs:gid_attrs/ndevs")
        if interface is not None:
            aliases.append("netdev:" + netdev)
    else:
        facts["netdev"] = Attribute(source="sysfs:class/net", absent=Absence.NOT_REPORTED, detail="InfiniBand only")
    location = scan.locate(function)
    if function is None:
        location, facts = _place_soft(scan, folder.path, netdev, facts)
    scan.add(
        id=None if guid is None else "rnic-" + guid,
        else_id=f"pci/{address}" if address is not None else f"rnic/{name}",
        kind=Kind.RNIC,
        name=name,
        location=location,
        attributes=facts,
        aliases=aliases,
        parent=card_of(scan, function),
    )


def _place_soft(
    scan: Scan, path: str, netdev: str | None, facts: dict[str, Attribute]
) -> tuple[Location, dict[str, Attribute]]:
    """Place a soft RDMA device where the interface below it sits."""
    under = scan.tree.resolve(f"{_NET}/{netdev}") if netdev is not None else None
    address = address_on(under) if under is not None else None
    function = scan.functions.get(address) if address is not None else None
    place: Place
    if function is not None and function.place[0] is not None:
        place = (function.place[0], Attribute(function.place[0], "parent"))
    else:
        place = scan.placement.place_folder(netdev or path, path)
    return scan.locate(None, place), {**facts, "numa_node": place[1]}


def _guid(text: str | Missing) -> str | None:
    if not isinstance(text, str):
        return None
    digits = text.lower().removeprefix("0x").replace(":", "")
    return digits if len(digits) == 16 and _HEX.issuperset(digits) and digits.strip("0") else None


def _read_port(ports: Folder, number: str, prefix: str, facts: dict[str, Attribute]) -> list[str]:
    """Read one port; return the network interfaces that its GIDs belong to."""
    with ports.below(number) as port:
        state, layer, rate = port.read_many(("state", "link_layer", "rate"))
        gids, types, ndevs = _read_gids(port)
        counters = port.holds("counters")
    if isinstance(state, str):
        word = state.partition(":")[2].strip().lower()
        facts[prefix + "port_state"] = (
            Attribute(word, "sysfs:state")
            if word and word.isprintable()
            else malformed("sysfs:state", f"{state[:40]!r}")
        )
    else:
        facts[prefix + "port_state"] = state.attribute("sysfs:state")
    facts[prefix + "link_layer"] = one_line(layer, "sysfs:link_layer")
    facts[prefix + "rate_gbps"] = _rate(rate)
    if gids:
        facts[prefix + "gids"] = Attribute(gids, "sysfs:gids")
        if any(types):
            facts[prefix + "gid_types"] = Attribute(types, "sysfs:gid_attrs/types")
        if any(ndevs):
            facts[prefix + "gid_netdevs"] = Attribute(ndevs, "sysfs:gid_attrs/ndevs")
    else:
        facts[prefix + "gids"] = Attribute(source="sysfs:gids", absent=Absence.NOT_REPORTED)
    facts[prefix + "counters"] = (
        Attribute(True, "sysfs:counters")
        if counters
        else Attribute(source="sysfs:counters", absent=Absence.NOT_REPORTED, detail="the driver counts nothing")
    )
    return [name for name in ndevs if name]


def _read_gids(port: Folder) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return a port's GIDs and, for each, its type and its network interface, empty where that is not known."""
    gids: list[str] = []
    rows: list[str] = []
    holes = 0
    with port.below("gids") as table:
        for index in range(_MOST_GIDS):
            gid = table.line(str(index))
            if gid == NOT_THERE:
                break  # the table ends here
            if not isinstance(gid, str) or gid == _ZERO_GID:
                # Tables have 16 to 256 rows, filled from the front with few holes: reading on costs a probe.
                holes += 1
                if holes >= _HOLES:
                    break
                continue
            holes = 0
            gids.append(gid)
            rows.append(str(index))
    if not gids:
        return (), (), ()
    with port.below("gid_attrs") as beside:
        return tuple(gids), _read_beside(beside, "types", tuple(rows)), _read_beside(beside, "ndevs", tuple(rows))


def _read_beside(attributes: Folder, name: str, rows: tuple[str, ...]) -> tuple[str, ...]:
    with attributes.below(name) as table:
        texts = table.read_many(rows)
    return tuple(text if isinstance(text, str) and text.isprintable() else "" for text in texts)


def _rate(text: str | Missing) -> Attribute:
    if not isinstance(text, str):
        return text.attribute("sysfs:rate")
    try:
        rate = float(text.partition(" ")[0])
    except ValueError:
        return malformed("sysfs:rate", f"{text[:40]!r}")
    return Attribute(rate, "sysfs:rate") if 0 <= rate < 1e9 else malformed("sysfs:rate", f"{text[:40]!r}")


def card_of(scan: Scan, function: Function | None) -> str | None:
    """Return the id of the card that a function, or the function whose virtual one it is, belongs to."""
    if function is None or not scan.parents:
        return None
    own = scan.parents.get(function.slot)
    if own is None and function.vendor == "15b3":
        physical = scan.tree.link(function.path + "/physfn")
        own = scan.parents.get(physical.rpartition(".")[0]) if physical else None
    return own


def find_nics(scan: Scan, interfaces: list[Interface]) -> None:
    """Add the interfaces whose function no RDMA device has taken."""
    tree = scan.tree
    rdma = set(scan.taken)
    for interface in interfaces:
        address = interface.address
        if address is not None and address in rdma:
            continue
        if scan.expired():
            return
        function = scan.functions.get(address) if address is not None else None
        if function is None:
            place = scan.placement.place_folder(interface.name, interface.path)
            location, facts = scan.locate(None, place), scan.facts(None, place)
        else:
            location, facts = scan.locate(function), scan.facts(function)
        mac, operstate, told = tree.read_many(interface.path, ("address", "operstate", "speed"))
        facts["mac"] = one_line(mac, "sysfs:address")
        facts["operstate"] = one_line(operstate, "sysfs:operstate")
        speed = whole_number(told, "sysfs:speed")
        if isinstance(speed.value, int) and speed.value <= 0:
            speed = Attribute(source="sysfs:speed", absent=Absence.NOT_REPORTED, detail="no carrier")
        facts["speed_mbps"] = speed
        scan.add(
            id=None,
            else_id=f"nic/{interface.name}",
            kind=Kind.NIC,
            name=interface.name,
            location=location,
            attributes=facts,
            aliases=(*scan.take(address), "netdev:" + interface.name),
            parent=card_of(scan, function),
        )
