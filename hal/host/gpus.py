"""GPUs as PCI functions, with what their kernel drivers add to sysfs and proc."""

from __future__ import annotations

from hal.host.identity import is_gpu
from hal.host.pci import Function
from hal.host.scan import Scan, word
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_NVIDIA = "10de"
_AMD = "1002"


def find_gpus(scan: Scan) -> None:
    """Add the GPUs in the order of their addresses."""
    number = 0
    for address in sorted(scan.functions):
        function = scan.functions[address]
        if not is_gpu(function.vendor, function.class_code) or address in scan.taken:
            continue
        facts = scan.facts(function)
        aliases = [*scan.take(address)]
        if not function.driver:
            facts["uuid"] = Attribute(source="sysfs", absent=Absence.DRIVER_NOT_BOUND)
        elif function.vendor == _NVIDIA:
            _ask_nvidia(scan, function, facts)
        elif function.vendor == _AMD:
            _ask_amd(scan, function, facts)
        uuid = facts.get("uuid")
        if uuid is not None and isinstance(uuid.value, str):
            aliases.append("uuid:" + uuid.value)
        memory = facts.get("memory_bytes")
        scan.add(
            id=None,
            else_id=f"pci/{address}",
            kind=Kind.GPU,
            name=f"gpu{number}",
            location=scan.locate(function),
            attributes=facts,
            aliases=aliases,
            capacity={"memory_bytes": memory.value} if memory is not None and isinstance(memory.value, int) else None,
        )
        number += 1


def _ask_nvidia(scan: Scan, function: Function, facts: dict[str, Attribute]) -> None:
    """The NVIDIA driver's file in proc, readable by all, tells model and UUID without its library."""
    source = "proc:driver/nvidia"
    if scan.host.proc is None:
        return
    text = scan.host.proc.read(f"driver/nvidia/gpus/{function.address}/information")
    if not isinstance(text, str):
        facts["uuid"] = text.attribute(source)
        return
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        value = value.strip()
        if key.strip() == "Model" and value:
            facts["model"] = Attribute(value, source)
        elif key.strip() == "GPU UUID" and word(value) is not None and "?" not in value:
            facts["uuid"] = Attribute(value, source)
    facts.setdefault("uuid", Attribute(source=source, absent=Absence.NOT_REPORTED))


def _ask_amd(scan: Scan, function: Function, facts: dict[str, Attribute]) -> None:
    """The amdgpu driver's files in sysfs (kernel documentation, gpu/amdgpu/driver-misc)."""
    tree = scan.tree
    facts["uuid"] = tree.text(function.path, "unique_id")
    facts["model"] = tree.text(function.path, "product_name")
    facts["serial"] = tree.text(function.path, "serial_number")
    facts["memory_bytes"] = tree.count(function.path, "mem_info_vram_total")
