"""KFD's topology and processes: what the compute half of the driver tells, by node.

A GPU is a node; a GPU that is divided is one node for each partition. Links are those that KFD lists between nodes:
type 11 is XGMI, type 2 PCI Express (HSA's ``HSA_IOLINKTYPE``). Weight of XGMI is 15 for each hop.
"""

from __future__ import annotations

import msgspec

from hal.host.tree import Tree
from hal.interfaces.gpu import GpuProcess
from hal_amd import parse

TOPOLOGY = "class/kfd/kfd/topology/nodes"
PROCESSES = "class/kfd/kfd/proc"
XGMI = 11
_HOP = 15
_LOCAL_HEAPS = (1, 2)  # HSA_HEAPTYPE: the GPU's own memory, seen by the processor or not


class IoLink(msgspec.Struct, frozen=True, kw_only=True):
    """One way from a node to another; bandwidth in bytes a second, 0 where KFD does not tell."""

    to: int
    type: int
    hops: int
    bandwidth: float


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or partition of one. ``ordinal`` counts the GPUs that ROCm sees, in its order."""

    number: int
    ordinal: int
    gpu_id: int
    address: str
    part: int
    properties: dict[str, int]
    links: tuple[IoLink, ...]
    memory_bytes: int | None

    @property
    def unique_id(self) -> str | None:
        """The number that ROCm names it by, None where it has none."""
        return parse.unique_id(f"{self.properties.get('unique_id', 0):x}")


def read_nodes(tree: Tree) -> list[Node]:
    """Return the nodes that are GPUs; none where there is no KFD, or a container may not see them."""
    found: list[Node] = []
    for number in sorted(int(name) for name in tree.names(TOPOLOGY) if name.isdecimal()):
        folder = f"{TOPOLOGY}/{number}"
        gpu_id = tree.number(f"{folder}/gpu_id")
        text = tree.read(f"{folder}/properties")
        if not isinstance(gpu_id, int) or gpu_id == 0 or not isinstance(text, str):
            continue
        properties = parse.properties(text)
        where = parse.place(properties)
        if where is None:
            continue
        found.append(
            Node(
                number=number,
                ordinal=len(found),
                gpu_id=gpu_id,
                address=where[0],
                part=where[1],
                properties=properties,
                links=_links(tree, folder),
                memory_bytes=_memory(tree, folder),
            )
        )
    return found


def _links(tree: Tree, folder: str) -> tuple[IoLink, ...]:
    found = []
    for kind in ("io_links", "p2p_links"):
        for name in tree.names(f"{folder}/{kind}"):
            text = tree.read(f"{folder}/{kind}/{name}/properties")
            told = parse.properties(text) if isinstance(text, str) else {}
            if "node_to" in told and "type" in told:
                found.append(
                    IoLink(
                        to=told["node_to"],
                        type=told["type"],
                        hops=max(1, told.get("weight", 0) // _HOP),
                        bandwidth=told.get("max_bandwidth", 0) * 1e6,
                    )
                )
    return tuple(found)


def _memory(tree: Tree, folder: str) -> int | None:
    total = 0
    for name in tree.names(f"{folder}/mem_banks"):
        text = tree.read(f"{folder}/mem_banks/{name}/properties")
        told = parse.properties(text) if isinstance(text, str) else {}
        if told.get("heap_type") in _LOCAL_HEAPS:
            total += told.get("size_in_bytes", 0)
    return total or None


def processes(tree: Tree, proc: Tree | None, parts: dict[int, str | None]) -> list[GpuProcess]:
    """Return who holds memory or a queue on some nodes, by pid; ``parts`` maps their GPU ids to ids of partitions.

    KFD lists every process that opened it, for every GPU; one with neither memory nor a queue there does not use it.
    """
    found: list[GpuProcess] = []
    for pid in sorted(int(name) for name in tree.names(PROCESSES) if name.isdecimal()):
        folder = f"{PROCESSES}/{pid}"
        queued = {tree.number(f"{folder}/queues/{queue}/gpuid") for queue in tree.names(f"{folder}/queues")}
        name = proc.line(f"{pid}/comm") if proc is not None else ""
        for gpu_id, part in parts.items():
            used = tree.number(f"{folder}/vram_{gpu_id}")
            if gpu_id in queued or (isinstance(used, int) and used > 0):
                found.append(
                    GpuProcess(
                        pid=pid,
                        name=name if isinstance(name, str) else "",
                        memory_bytes=used if isinstance(used, int) else None,
                        partition=part,
                    )
                )
    return found
