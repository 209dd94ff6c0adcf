"""The GPUs of a machine: PCI functions that amdgpu drives, joined with KFD's nodes by their place.

A GPU's id is what ROCm calls it, ``GPU-`` and the 16 hexadecimal digits of the kernel's ``unique_id``. One that has no
such number (many of the consumers' boards) has its place as its id. Partitions are ``GPU-…/part-N``.
"""

from __future__ import annotations

import msgspec

from hal.drivers.contract import HostRoot
from hal.host.identity import is_gpu
from hal.host.pci import Function, is_address
from hal.host.scan import Scan
from hal.host.tree import Tree
from hal_amd import parse
from hal_amd.kfd import Node, read_nodes

NAME = "amd"
VENDOR = "1002"
KERNEL_DRIVER = "amdgpu"
DRIVERS = "bus/pci/drivers/amdgpu"


class Card(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One GPU as found: where its files are, and its nodes in KFD (several if it is divided, none without KFD).

    ``link_path`` is where the link that leaves the board is told.
    """

    id: str
    uuid: str | None
    name: str
    address: str
    path: str
    link_path: str
    minor: int | None
    hwmon: str | None
    nodes: tuple[Node, ...]
    function: Function

    @property
    def divided(self) -> bool:
        """True if computing sees partitions in place of the whole."""
        return len(self.nodes) > 1

    def part_id(self, node: Node) -> str:
        """Return the device id of a partition: of the whole GPU where there is but one."""
        return f"{self.id}/part-{node.part}" if self.divided else self.id

    def token(self, node: Node) -> str:
        """Return what ``ROCR_VISIBLE_DEVICES`` calls a node: its UUID, or its number where it has no UUID of its own.

        ROCm takes a UUID that fits several nodes for none; older kernels give all partitions that of their GPU.
        """
        unique = node.unique_id
        if self.uuid is None or unique is None or sum(other.unique_id == unique for other in self.nodes) > 1:
            return str(node.ordinal)
        return f"GPU-{unique}"


def find_cards(tree: Tree, scan: Scan, host: HostRoot) -> list[Card]:
    """Return the GPUs that amdgpu drives, by address, named as host discovery numbers the GPUs of all vendors."""
    gpus = [f for f in sorted(scan.functions.values(), key=lambda f: f.address) if is_gpu(f.vendor, f.class_code)]
    numbers = {function.address: number for number, function in enumerate(gpus)}
    ours = {f.address: f for f in gpus if f.vendor == VENDOR and f.driver == KERNEL_DRIVER}
    nodes: dict[str, list[Node]] = {}
    for node in read_nodes(tree):
        nodes.setdefault(_home(node, ours), []).append(node)
    cards: list[Card] = []
    for address, function in ours.items():
        card = _card(tree, scan, function, f"gpu{numbers[address]}", tuple(nodes.get(address, ())), host)
        if any(other.id == card.id for other in cards):  # firmware that repeats a number
            card = msgspec.structs.replace(card, id=_place_id(host, address), uuid=None)
        cards.append(card)
    return cards


def _place_id(host: HostRoot, address: str) -> str:
    return f"{host.node}/pci/{address}"


def _home(node: Node, ours: dict[str, Function]) -> str:
    """Return the function that a node belongs to: kernels before 6.7 put a partition's number in place of function."""
    if node.address in ours:
        return node.address
    return f"{node.address[:-1]}0"


def _outermost(function: Function, scan: Scan) -> Function:
    """Return the function whose link leaves the board: boards have a switch of AMD's (vendor 1002) before the GPU."""
    for address in function.bridges:
        bridge = scan.functions.get(address)
        if bridge is not None and bridge.vendor == VENDOR:
            return bridge
    return function


def _card(tree: Tree, scan: Scan, function: Function, name: str, nodes: tuple[Node, ...], host: HostRoot) -> Card:
    told = tree.line(f"{function.path}/unique_id")
    unique = parse.unique_id(told) if isinstance(told, str) else None
    if unique is None and len(nodes) == 1:
        unique = nodes[0].unique_id
    uuid = f"GPU-{unique}" if unique else None
    if len(nodes) > 1 and len({node.part for node in nodes}) < len(nodes):
        nodes = tuple(msgspec.structs.replace(node, part=part) for part, node in enumerate(nodes))
    minors = (entry.removeprefix("card") for entry in tree.names(f"{function.path}/drm") if entry.startswith("card"))
    sensors = next(iter(tree.names(f"{function.path}/hwmon")), None)
    return Card(
        id=uuid or _place_id(host, function.address),
        uuid=uuid,
        name=name,
        address=function.address,
        path=function.path,
        link_path=_outermost(function, scan).path,
        minor=next((int(minor) for minor in minors if minor.isdecimal()), None),
        hwmon=f"{function.path}/hwmon/{sensors}" if sensors else None,
        nodes=nodes,
        function=function,
    )


def driven(tree: Tree) -> list[str]:
    """Return the addresses of the functions that amdgpu is bound to; a quick look."""
    return [name for name in tree.names(DRIVERS) if is_address(name)]


def undriven(tree: Tree) -> str | None:
    """Return the address of a GPU of AMD's that nothing, or something else, drives."""
    for address in tree.names("bus/pci/devices"):
        vendor, code = tree.read_many(f"bus/pci/devices/{address}", ("vendor", "class"))
        if vendor == f"0x{VENDOR}" and isinstance(code, str) and is_gpu(VENDOR, code.removeprefix("0x")):
            return address
    return None
