"""CPUs and memory, one device each per NUMA node."""

from __future__ import annotations

from hal.host.missing import Missing
from hal.host.numa import NODES
from hal.host.scan import Scan, malformed
from hal.model.attributes import Absence, Attribute
from hal.model.device import Location
from hal.model.kind import Kind


def find_nodes(scan: Scan) -> None:
    """Add the CPUs and the memory of every NUMA node; a kernel without NUMA has one node."""
    tree = scan.tree
    model = _cpu_model(scan)
    placement = scan.placement
    if not placement.cpus:
        online = tree.line("devices/system/cpu/online")
        if isinstance(online, str):
            place = Attribute(0, "single-node")
            facts = {"cpulist": Attribute(online, "sysfs:online"), "cpu_model": model, "numa_node": place}
            _add_cpus(scan, 0, facts, len(_cpus(online)))
            total = scan.host.proc.read("meminfo") if scan.host.proc is not None else Missing(Absence.NOT_REPORTED)
            _add_memory(scan, 0, {"memory_bytes": _total(total, "proc:meminfo"), "numa_node": place})
        return
    for node in sorted(placement.cpus):
        here = f"{NODES}/node{node}"
        distances, meminfo = tree.read_many(here, ("distance", "meminfo"))
        shared = {"numa_node": Attribute(node, "sysfs:node"), "numa_distances": _distances(distances)}
        cpulist = placement.cpulists[node]
        cpus = placement.cpus[node]
        if cpus or not cpulist.known:
            _add_cpus(scan, node, {**shared, "cpulist": cpulist, "cpu_model": model}, len(cpus))
        memory = _total(meminfo, "sysfs:meminfo")
        if memory.value != 0:
            _add_memory(scan, node, {**shared, "memory_bytes": memory})


def _add_cpus(scan: Scan, node: int, facts: dict[str, Attribute], count: int) -> None:
    scan.add(
        id=None,
        else_id=f"cpu/{node}",
        kind=Kind.CPU,
        name=f"cpu{node}",
        location=Location(node=scan.node, rack=scan.rack, numa_node=node),
        attributes=facts,
        capacity={"cpus": count} if count else None,
    )


def _add_memory(scan: Scan, node: int, facts: dict[str, Attribute]) -> None:
    total = facts["memory_bytes"].value
    scan.add(
        id=None,
        else_id=f"memory/{node}",
        kind=Kind.MEMORY,
        name=f"memory{node}",
        location=Location(node=scan.node, rack=scan.rack, numa_node=node),
        attributes=facts,
        capacity={"memory_bytes": total} if isinstance(total, int) else None,
    )


def _cpus(online: str) -> set[int]:
    from hal.host.numa import parse_cpulist

    return parse_cpulist(online) or set()


def _cpu_model(scan: Scan) -> Attribute:
    """Read the first processor's name; the kernel makes the file as far as it is read, so no more than that is."""
    source = "proc:cpuinfo"
    if scan.host.proc is None:
        return Attribute(source=source, absent=Absence.NOT_REPORTED)
    text = scan.host.proc.read("cpuinfo", 2048)
    if not isinstance(text, str):
        return text.attribute(source)
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return Attribute(value.strip(), source)
    return Attribute(source=source, absent=Absence.NOT_REPORTED)


def _total(text: str | Missing, source: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute(source)
    for line in text.split("\n"):
        name, colon, rest = line.partition("MemTotal:")
        if colon and not name.strip(" Node0123456789"):
            number = rest.split()[0] if rest.split() else ""
            if number.isdecimal() and len(number) < 16:
                return Attribute(int(number) << 10, source)
            return malformed(source, "MemTotal is no number")
    return Attribute(source=source, absent=Absence.NOT_REPORTED, detail="no MemTotal")


def _distances(text: str | Missing) -> Attribute:
    if not isinstance(text, str):
        return text.attribute("sysfs:distance")
    parts = text.split()
    if parts and not ("".join(parts).isdecimal() and max(map(len, parts)) < 6):
        return malformed("sysfs:distance", "not numbers")
    return Attribute(tuple(map(int, parts)), "sysfs:distance")
