"""NUMA nodes of a profile: CPUs, memory and distances."""

from __future__ import annotations

import re

from hal_mocks.graph import Numa
from hal_mocks.profile_each import elements
from hal_mocks.profile_models import size_bytes
from hal_mocks.profile_schema import HostTable, Mistake, NumaTable, Profile

_CPULIST = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")


def numa_nodes(profile: Profile, host: HostTable) -> tuple[Numa, ...]:
    """Return the nodes: cores are numbered through all nodes, then their second threads, as Linux does."""
    found = elements("numa", profile.numa, "")
    if not found:
        return (Numa(id=0, cpus="0", memory_bytes=1 << 30),)
    if len(found) > 1024:
        raise Mistake(("numa", 0, "count"), f"{len(found)} NUMA nodes; Linux knows 1024 at most")
    distances = _distances(host, len(found))
    tables: list[NumaTable] = [element.table for element in found if isinstance(element.table, NumaTable)]
    total = sum(table.cores for table in tables)
    first = 0
    nodes: list[Numa] = []
    for node, (element, table) in enumerate(zip(found, tables, strict=True)):
        cpus = element.text("cpus")
        if cpus and table.cores:
            raise Mistake(element.at("cpus"), "either cpus, or cores and threads")
        if cpus and not _CPULIST.fullmatch(cpus):
            raise Mistake(element.at("cpus"), f"{cpus!r} is no list of CPUs", "such as '0-55,112-167'")
        if not cpus and table.cores:
            ranges = [
                (first + total * thread, first + total * thread + table.cores - 1) for thread in range(table.threads)
            ]
            cpus = ",".join(f"{low}-{high}" if high > low else str(low) for low, high in ranges)
        first += table.cores
        memory = size_bytes(table.memory, element.at("memory"))
        nodes.append(Numa(id=node, cpus=cpus, memory_bytes=memory, distances=distances[node]))
    return tuple(nodes)


def _distances(host: HostTable, count: int) -> list[tuple[int, ...]]:
    if host.distances is None:
        return [tuple(10 if to == node else 21 for to in range(count)) for node in range(count)]
    path = ("host", "distances")
    if len(host.distances) != count:
        raise Mistake(path, f"distances has {len(host.distances)} rows for {count} NUMA nodes", f"{count} rows")
    for node, row in enumerate(host.distances):
        if len(row) != count:
            raise Mistake((*path, node), f"row {node} of distances has {len(row)} values for {count} NUMA nodes")
        for to, distance in enumerate(row):
            low, high = (10, 10) if to == node else (11, 254)
            if not low <= distance <= high:
                hint = "10 to itself, 11 to 254 to another node (ACPI SLIT)"
                raise Mistake((*path, node), f"distance {distance} from node {node} to node {to}", hint)
    return [tuple(row) for row in host.distances]
