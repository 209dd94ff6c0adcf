"""Processors and NUMA nodes as the kernel shows them, and what ``/proc`` says about them."""

from __future__ import annotations

from hal_mocks.graph import Host, Numa
from hal_mocks.sysfs_files import Files

_WORD_BITS = 32


def add_numa(files: Files, host: Host) -> None:
    """Add CPUs and NUMA nodes, and what ``/proc`` says about them."""
    cpus = sorted(cpu for node in host.numa for cpu in cpus_of(node.cpus))
    everything = cpu_list(cpus) if cpus else "0"
    files.files("sys/devices/system/cpu", dict.fromkeys(("online", "possible", "present"), everything))
    nodes = cpu_list([node.id for node in host.numa])
    files.files("sys/devices/system/node", dict.fromkeys(("online", "possible"), nodes))
    width = -(-(max(cpus, default=0) + 1) // _WORD_BITS)
    for node in host.numa:
        total = node.memory_bytes >> 10
        lines = (("MemTotal", total), ("MemFree", total), ("MemUsed", 0))
        files.files(
            f"sys/devices/system/node/node{node.id}",
            {
                "cpulist": node.cpus,
                "cpumap": cpu_mask(cpus_of(node.cpus), width),
                "distance": " ".join(map(str, node.distances)),
                "meminfo": "\n".join(f"Node {node.id} {name + ':':<15} {value:>8} kB" for name, value in lines),
            },
        )
        _add_cpus(files, node, width)
    model = f"model name\t: {host.cpu_model}\n" if host.cpu_model else ""
    files.file("proc/cpuinfo", "".join(f"processor\t: {cpu}\n{model}\n" for cpu in cpus).encode())
    total = sum(node.memory_bytes for node in host.numa) >> 10
    files.file("proc/meminfo", _meminfo(total))


def _meminfo(total: int) -> str:
    """Return ``/proc/meminfo`` of a machine whose memory is free: the lines that programs look for."""
    free = ("MemTotal", "MemFree", "MemAvailable")
    none = ("Buffers", "Cached", "SwapCached", "Active", "Inactive", "Shmem", "Slab", "SReclaimable", "SwapTotal")
    lines = [(name, total) for name in free] + [(name, 0) for name in (*none, "SwapFree")]
    return "\n".join(f"{name + ':':<15} {value:>8} kB" for name, value in lines)


def _add_cpus(files: Files, node: Numa, width: int) -> None:
    """Add a node's processors: one package a node, two threads a core where the node has two ranges of CPUs.

    A node whose CPUs are two ranges of the same length (``0-55,112-167``) is numbered as the kernel numbers threads:
    first all cores, then the second thread of each.
    """
    cpus = cpus_of(node.cpus)
    parts = [cpus_of(part) for part in node.cpus.split(",") if part]
    cores = len(parts[0]) if len(parts) == 2 and len(parts[0]) == len(parts[1]) else len(cpus)
    package = cpu_mask(cpus, width)
    masks = [cpu_mask(cpus[core::cores], width) for core in range(cores)]
    for index, cpu in enumerate(cpus):
        core = index % cores
        files.files(
            f"sys/devices/system/cpu/cpu{cpu}/topology",
            {
                "physical_package_id": node.id,
                "core_id": core,
                "core_siblings": package,
                "thread_siblings": masks[core],
            },
        )


def cpus_of(text: str) -> list[int]:
    """Return the CPUs of a kernel list."""
    found: list[int] = []
    for part in text.split(","):
        if part:
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    return found


def cpu_list(numbers: list[int]) -> str:
    """Return numbers as a kernel list (``0-3,8``)."""
    parts: list[str] = []
    first = last = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == last + 1:
            last = number
            continue
        parts.append(f"{first}-{last}" if last > first else f"{first}")
        if number is not None:
            first = last = number
    return ",".join(parts)


def cpu_mask(cpus: list[int], words: int) -> str:
    """Return CPUs as the kernel's mask: words of 32 bits in hexadecimal, the highest first."""
    mask = sum(1 << cpu for cpu in cpus)
    parts = (f"{mask >> _WORD_BITS * word & 0xFFFF_FFFF:08x}" for word in reversed(range(words)))
    return ",".join(parts)
