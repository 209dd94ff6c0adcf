"""Ports of an RDMA device as ``class/infiniband/<dev>/ports`` tells of them (kernel ABI: sysfs-class-infiniband).

What a port does not say makes it less, never more: a state that cannot be read is down, and a rate that cannot be read
is none. The reasons are in the device's attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.host.missing import NOT_THERE
from hal.interfaces.rnic import Gid, LinkLayer, PhysicalState, Port, PortState

if TYPE_CHECKING:
    from hal.host.folder import Folder
    from hal.host.tree import Tree

RDMA = "class/infiniband"
ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
MOST_PORTS = 16
_MOST_GIDS = 256
_HOLES = 4
_STATES = {1: PortState.DOWN, 2: PortState.INIT, 3: PortState.ARMED, 4: PortState.ACTIVE, 5: PortState.ACTIVE}
"""``ib_port_state``; 5 is ACTIVE_DEFER, which still carries data."""

_PHYSICAL = {
    1: PhysicalState.SLEEP,
    2: PhysicalState.POLLING,
    3: PhysicalState.DISABLED,
    4: PhysicalState.TRAINING,
    5: PhysicalState.LINK_UP,
    6: PhysicalState.RECOVERY,
}
"""``ib_port_phys_state`` (7 is a test mode: no data)."""


def read_ports(tree: Tree, name: str) -> tuple[Port, ...]:
    """Return a device's ports by number. ``max_rate_gbps`` is the present rate: sysfs knows no other."""
    with _folder(tree, name) as ports:
        numbers = [number for number in range(1, MOST_PORTS + 1) if ports.holds(str(number))]
        return tuple(_read_port(ports, number) for number in numbers)


def port_numbers(tree: Tree, name: str) -> tuple[int, ...]:
    """Return the numbers of a device's ports."""
    with _folder(tree, name) as ports:
        return tuple(number for number in range(1, MOST_PORTS + 1) if ports.holds(str(number)))


def _folder(tree: Tree, name: str) -> Folder:
    from hal.host.folder import Folder

    return Folder(tree, f"{tree.resolve(f'{RDMA}/{name}') or f'{RDMA}/{name}'}/ports")


def _read_port(ports: Folder, number: int) -> Port:
    with ports.below(str(number)) as port:
        state, physical, layer, rate, lid = port.read_many(("state", "phys_state", "link_layer", "rate", "lid"))
        gbps = parse_rate(rate)
        return Port(
            number=number,
            state=_STATES.get(_leading_number(state), PortState.DOWN),
            physical_state=_PHYSICAL.get(_leading_number(physical), PhysicalState.DISABLED),
            link_layer=LinkLayer.INFINIBAND if layer == "InfiniBand" else LinkLayer.ETHERNET,
            rate_gbps=gbps,
            max_rate_gbps=gbps,
            lid=_lid(lid),
            gids=_read_gids(port),
        )


def _leading_number(text: object) -> int:
    head = text.partition(":")[0].strip() if isinstance(text, str) else ""
    return int(head) if head.isdecimal() and len(head) < 4 else 0


def parse_rate(text: object) -> float:
    """Return a rate in gigabits a second from ``400 Gb/sec (4X NDR)``, 0 if it makes no sense."""
    try:
        rate = float(text.partition(" ")[0]) if isinstance(text, str) else 0.0
    except ValueError:
        return 0.0
    return rate if 0 <= rate < 1e9 else 0.0


def _lid(text: object) -> int:
    try:
        lid = int(text, 0) if isinstance(text, str) else 0
    except ValueError:
        return 0
    return lid if 0 <= lid < 1 << 16 else 0


def _read_gids(port: Folder) -> tuple[Gid, ...]:
    """Read the table from its beginning; it is filled from the front with few holes, and asking on costs a probe."""
    found: list[tuple[int, str]] = []
    holes = 0
    with port.below("gids") as table:
        for index in range(_MOST_GIDS):
            gid = table.line(str(index))
            if gid == NOT_THERE:
                break
            if not isinstance(gid, str) or gid == ZERO_GID or len(gid.split(":")) != 8:
                holes += 1
                if holes >= _HOLES:
                    break
                continue
            holes = 0
            found.append((index, gid))
    if not found:
        return ()
    rows = tuple(str(index) for index, _ in found)
    with port.below("gid_attrs") as beside, beside.below("types") as types, beside.below("ndevs") as ndevs:
        kinds, netdevs = types.read_many(rows), ndevs.read_many(rows)
    return tuple(
        Gid(index=index, gid=gid, type=_plain(kind), netdev=_plain(netdev))
        for (index, gid), kind, netdev in zip(found, kinds, netdevs, strict=True)
    )


def _plain(text: object) -> str:
    return text if isinstance(text, str) and text.isprintable() else ""
