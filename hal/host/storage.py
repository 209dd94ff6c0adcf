"""NVMe controllers and the size of their first namespaces."""

from __future__ import annotations

from hal.host.folder import Folder
from hal.host.missing import Missing
from hal.host.network import card_of
from hal.host.pci import address_on
from hal.host.scan import Scan, one_line, word
from hal.host.tree import Tree, parse_number
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_CLASS = "class/nvme"
_BLOCK = "class/block"
_SECTOR_BYTES = 512


def find_nvmes(scan: Scan) -> None:
    """Add the NVMe controllers; a recording without ``class/nvme`` is searched by its block devices."""
    tree = scan.tree
    none = True
    for name, folder in tree.walk(_CLASS):
        none = False
        if scan.expired():
            return
        _add_nvme(scan, name, f"{_CLASS}/{name}", folder)
    if none:
        found: dict[str, str] = {}
        for name in tree.names(_BLOCK):
            number, _, namespace = name.removeprefix("nvme").partition("n")
            if name.startswith("nvme") and number.isdecimal() and namespace.isdecimal():
                found.setdefault("nvme" + number, f"{_BLOCK}/{name}/device")
        for name, entry in found.items():
            if scan.expired():
                return
            path = tree.resolve(entry)
            _add_nvme(scan, name, entry, None if path is None else Folder(tree, path))


def _add_nvme(scan: Scan, name: str, entry: str, folder: Folder | None) -> None:
    if folder is None:
        scan.complain(f"{entry} leads out of the tree")
        return
    tree, path = scan.tree, folder.path
    address = address_on(path)
    if address is None:
        told = tree.line(path + "/address")
        address = told if isinstance(told, str) and told in scan.functions else None
    function = scan.functions.get(address) if address is not None else None
    place = None if function is not None else scan.placement.place_folder(name, path)
    facts = scan.facts(function, place)
    model, serial, firmware, state = folder.read_many(("model", "serial", "firmware_rev", "state"))
    facts["model"] = one_line(model, "sysfs:model")
    facts["serial"] = one_line(serial, "sysfs:serial")
    facts["firmware"] = one_line(firmware, "sysfs:firmware_rev")
    facts["state"] = one_line(state, "sysfs:state")
    block, size = _first_namespace(tree, name, folder)
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


def _first_namespace(tree: Tree, name: str, folder: Folder) -> tuple[str, Attribute]:
    """Return the block device of the first namespace (``nvme0n1``; ``nvme0c0n1`` is a path to it) and its size."""
    path = folder.path
    with folder.below(name + "n1") as first:
        size = _size(first.read("size"))
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
    return _size(tree.read(path + "/size"))


def _size(text: str | Missing) -> Attribute:
    sectors = parse_number(text) if isinstance(text, str) else text
    if isinstance(sectors, int):
        return Attribute(sectors * _SECTOR_BYTES, "sysfs:size")
    return sectors.attribute("sysfs:size")
