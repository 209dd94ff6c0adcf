"""NVMe controllers and the size of their first namespaces."""

from __future__ import annotations

from hal.host.network import card_of
from hal.host.pci import address_on
from hal.host.scan import Scan, one_line, word
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_CLASS = "class/nvme"
_BLOCK = "class/block"
_SECTOR_BYTES = 512


def find_nvmes(scan: Scan) -> None:
    """Add the NVMe controllers; a recording without ``class/nvme`` is searched by its block devices."""
    tree = scan.tree
    found = {name: f"{_CLASS}/{name}" for name in tree.names(_CLASS)}
    if not found:
        for name in tree.names(_BLOCK):
            number, _, namespace = name.removeprefix("nvme").partition("n")
            if name.startswith("nvme") and number.isdecimal() and namespace.isdecimal():
                found.setdefault("nvme" + number, f"{_BLOCK}/{name}/device")
    for name, entry in found.items():
        if scan.expired():
            return
        path = tree.resolve(entry)
        if path is None:
            scan.complain(f"{entry} leads out of the tree")
            continue
        _add_nvme(scan, name, path)


def _add_nvme(scan: Scan, name: str, path: str) -> None:
    tree = scan.tree
    address = address_on(path)
    if address is None:
        told = tree.line(path + "/address")
        address = told if isinstance(told, str) and told in scan.functions else None
    function = scan.functions.get(address) if address is not None else None
    place = None if function is not None else scan.placement.place_folder(name, path)
    facts = scan.facts(function, place)
    model, serial, firmware, state = tree.read_many(path, ("model", "serial", "firmware_rev", "state"))
    facts["model"] = one_line(model, "sysfs:model")
    facts["serial"] = one_line(serial, "sysfs:serial")
    facts["firmware"] = one_line(firmware, "sysfs:firmware_rev")
    facts["state"] = one_line(state, "sysfs:state")
    block, size = _first_namespace(tree, name, path)
    facts["size_bytes"] = size
    aliases = [*scan.take(address)]
    if block:
        aliases.append("block:" + block)
    own = word(serial) if facts["serial"].known else None
    if own is not None:
        aliases.append(f"serial:{serial}")
    scan.add(
        id=None if own is None else "nvme-" + own,
        else_id=f"pci/{address}" if address is not None else f"nvme/{name}",
        kind=Kind.NVME,
        name=name,
        location=scan.locate(function, place),
        attributes=facts,
        aliases=aliases,
        capacity={"size_bytes": size.value} if isinstance(size.value, int) else None,
        parent=card_of(scan, function),
    )


def _first_namespace(tree: Tree, name: str, path: str) -> tuple[str, Attribute]:
    """Return the block device of the first namespace (``nvme0n1``; ``nvme0c0n1`` is a path to it) and its size."""
    size = size_of_block(tree, f"{path}/{name}n1")
    if size.known:
        return name + "n1", size
    for entry in tree.names(path):
        if not entry.startswith(name):
            continue
        rest = entry[len(name) :]
        if rest[:1] not in ("n", "c") or not rest.rpartition("n")[2].isdecimal():
            continue
        block = f"{name}n{rest.rpartition('n')[2]}"
        return block, size_of_block(tree, f"{path}/{entry}")
    return "", Attribute(source="sysfs:size", absent=Absence.NOT_REPORTED, detail="no namespace")


def size_of_block(tree: Tree, path: str) -> Attribute:
    """Return a block device's size in bytes; the kernel counts sectors of 512 whatever the device's own size is."""
    sectors = tree.count(path, "size")
    return Attribute(sectors.value * _SECTOR_BYTES, "sysfs:size") if isinstance(sectors.value, int) else sectors
