"""GPUs and partitions as devices of hal, named as host discovery and the mocks name their attributes.

``compute_capability`` is absent: it is CUDA's number, and a claim that asks for one means a GPU of NVIDIA's. What code
is compiled for is ``gfx_target``.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hal.drivers.catalog import drives
from hal.host.missing import Missing
from hal.host.scan import Scan
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Link
from hal.model.health import Condition, Presence
from hal.model.kind import Kind
from hal_amd import parse
from hal_amd.cards import NAME, VENDOR, Card
from hal_amd.kfd import Node
from hal_amd.reading import Reading

_KFD = "kfd"
_TEXTS = (("vbios_version", "vbios_version"), ("serial", "serial_number"))
_LINK = ("link_speed_gts", "link_width", "link_max_speed_gts", "link_max_width")
_OF_THE_GPU = (
    "vendor",
    "architecture",
    "gfx_target",
    "compute_capability",
    "numa_node",
    "pci_vendor",
    "pci_device",
    "compute_partition",
    "memory_partition",
)


def identify(tree: Tree, scan: Scan, card: Card, names: Mapping[str, str]) -> dict[str, Attribute]:
    """Return what a GPU is, from its folder, its nodes and, where it is there, AMD's library."""
    facts = scan.facts(card.function)
    outermost = next((f for f in scan.functions.values() if f.path == card.link_path), card.function)
    facts |= {name: outermost.attributes[name] for name in _LINK if name in outermost.attributes}
    facts["vendor"] = known("AMD", "pci-ids")
    facts["uuid"] = _uuid(tree, card)
    facts["model"] = _model(tree, card, names)
    facts |= {name: tree.text(card.path, file) for name, file in _TEXTS}
    facts["driver_version"] = tree.text("module/amdgpu", "version")
    facts["memory_bytes"] = _memory(tree, card)
    facts["compute_capability"] = absent(Absence.UNSUPPORTED, _KFD, "CUDA's; see gfx_target")
    facts |= _computing(card.nodes)
    facts |= _modes(tree, card)
    hive = card.nodes[0].properties.get("hive_id", 0) if card.nodes else 0
    if hive:
        facts["xgmi_hive"] = known(f"{hive:016x}", _KFD)
    return facts


def _uuid(tree: Tree, card: Card) -> Attribute:
    told = tree.text(card.path, "unique_id")
    if card.uuid is not None:
        return known(card.uuid, told.source if told.known else _KFD)
    return absent(told.absent or Absence.NOT_REPORTED, told.source, told.detail or "this board has no number")


def _model(tree: Tree, card: Card, names: Mapping[str, str]) -> Attribute:
    told = tree.text(card.path, "product_name")
    if told.known:
        return told
    if card.address in names:
        return known(names[card.address], "amdsmi")
    ours = drives(VENDOR, card.function.device, card.function.class_code, Kind.GPU)
    if ours is not None and not ours[1].startswith("AMD "):  # a model, and not a class of them
        return known(f"AMD {ours[1]}", "catalog")
    return told


def _memory(tree: Tree, card: Card) -> Attribute:
    told = tree.count(card.path, "mem_info_vram_total")
    banks = [node.memory_bytes for node in card.nodes if node.memory_bytes is not None]
    if told.known or not banks:
        return told
    return known(sum(banks), _KFD)


def _computing(nodes: tuple[Node, ...]) -> dict[str, Attribute]:
    """Return what KFD tells of a GPU's (or a partition's) processors."""
    nothing = absent(Absence.NOT_REPORTED, _KFD, "KFD does not list it: ROCm does not see it")
    if not nodes:
        return {"gfx_target": nothing, "architecture": nothing, "multiprocessors": nothing}
    first = nodes[0].properties
    target = parse.gfx_target(first.get("gfx_target_version", 0))
    family = parse.architecture(target) if target is not None else None
    each = first.get("simd_per_cu", 0)
    units = sum(node.properties.get("simd_count", 0) for node in nodes) // each if each else 0
    unknown = absent(Absence.NOT_REPORTED, _KFD)
    return {
        "gfx_target": unknown if target is None else known(target, _KFD),
        "architecture": unknown if family is None else known(family, _KFD),
        "multiprocessors": known(units, _KFD) if units else unknown,
    }


def _modes(tree: Tree, card: Card) -> dict[str, Attribute]:
    """Return how a GPU is divided, and could be; nothing for one that cannot be."""
    found: dict[str, Attribute] = {}
    for kind in ("compute", "memory"):
        now = tree.line(f"{card.path}/current_{kind}_partition")
        if isinstance(now, Missing) and now.reason is Absence.NOT_REPORTED:
            continue
        found[f"{kind}_partition"] = _mode(now, f"sysfs:current_{kind}_partition")
        listed = tree.line(f"{card.path}/available_{kind}_partition")
        found[f"{kind}_partitions"] = _mode(listed, f"sysfs:available_{kind}_partition", several=True)
    return found


def _mode(text: str | Missing, source: str, *, several: bool = False) -> Attribute:
    if isinstance(text, Missing):
        return text.attribute(source)
    modes = parse.modes(text)
    if not modes:  # the kernel has a word for not knowing
        return absent(Absence.NOT_REPORTED, source, f"{text!r} is no mode")
    return known(modes if several else modes[0], source)


def gpu_device(
    card: Card,
    scan: Scan,
    facts: Mapping[str, Attribute],
    reading: Reading | None,
    links: tuple[Link, ...],
    conditions: tuple[Condition, ...],
    *,
    live: bool,
) -> Device:
    """Return a whole GPU. It can be leased where ROCm sees it as one device, on the machine that it is in."""
    attributes = dict(facts)
    if reading is not None:
        errors = {name: counts.get("ue", 0) for name, counts in reading.errors.items()}
        if errors:
            attributes["ras_uncorrectable"] = known(sum(errors.values()), "sysfs:ras")
            corrected = sum(counts.get("ce", 0) for counts in reading.errors.values())
            attributes["ras_corrected"] = known(corrected, "sysfs:ras")
        if reading.pages is not None:
            attributes["retired_pages"] = known(reading.pages["R"], "sysfs:gpu_vram_bad_pages")
            attributes["retired_pages_pending"] = known(reading.pages["P"], "sysfs:gpu_vram_bad_pages")
    aliases = [f"pci:{card.address}"]
    if card.uuid is not None:
        aliases.append(f"uuid:{card.uuid}")
    if len(card.nodes) == 1:
        aliases.append(f"rocr:{card.token(card.nodes[0])}")
    memory = facts["memory_bytes"].value
    lost = reading is not None and reading.lost
    return Device(
        id=card.id,
        kind=Kind.GPU,
        name=card.name,
        driver=NAME,
        location=scan.locate(card.function),
        aliases=tuple(aliases),
        attributes=attributes,
        capacity={"memory_bytes": memory} if isinstance(memory, int) and memory > 0 else {},
        links=links,
        conditions=conditions,
        presence=Presence.GHOST if lost else Presence.PRESENT,
        allocatable=live and not lost and len(card.nodes) == 1 and isinstance(memory, int) and memory > 0,
    )


def part_device(gpu: Device, card: Card, node: Node, *, live: bool) -> Device:
    """Return a partition as a child of its GPU, whose fate it shares."""
    part_id = card.part_id(node)
    attributes = {name: gpu.attributes[name] for name in _OF_THE_GPU if name in gpu.attributes}
    mode = gpu.value("compute_partition")
    memory = node.memory_bytes
    attributes |= _computing((node,))
    attributes |= {
        "model": known(f"{gpu.value('model') or 'AMD GPU'} {mode or 'part'} {node.part}", _KFD),
        "uuid": known(part_id, _KFD),
        "memory_bytes": absent(Absence.NOT_REPORTED, _KFD) if memory is None else known(memory, _KFD),
    }
    return Device(
        id=part_id,
        kind=Kind.GPU,
        name=f"{gpu.name}-part{node.part}",
        driver=NAME,
        location=msgspec.structs.replace(gpu.location),
        aliases=(f"uuid:{part_id}", f"rocr:{card.token(node)}"),
        attributes=attributes,
        capacity={} if memory is None else {"memory_bytes": memory},
        conditions=tuple(msgspec.structs.replace(condition, device=part_id) for condition in gpu.conditions),
        presence=gpu.presence,
        parent=gpu.id,
        allocatable=live and gpu.presence is Presence.PRESENT and memory is not None,
    )
