"""Keeping a program on the CPUs and the memory that are near its devices.

The nodes come from the kernel's tree (``numa_node`` of a device, ``cpulist`` of a node), which may lie elsewhere; the
CPUs and nodes that this process may use at all (its cgroup's, its own affinity) are never exceeded.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from hal.errors import AccessDenied, Unsupported
from hal.host.numa import parse_cpulist
from hal.model.lease import AllocatedDevice

_PREFERRED, _BIND, _PREFERRED_MANY = 1, 2, 5  # linux/mempolicy.h
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237, "ppc64le": 261, "s390x": 270}
_FOLDERS = {
    "pci": "bus/pci/devices/{}",
    "nd": "bus/nd/devices/{}",
    "rdma": "class/infiniband/{}/device",
    "rank": "class/dpu_rank/{}/device",
}


class Memory(StrEnum):
    """What becomes of memory: it is taken from the near nodes alone, from them first, or from anywhere."""

    BIND = "bind"
    PREFER = "prefer"
    ANY = "no"


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """Where a program is to run: the CPUs and the memory nodes (empty: anywhere), and why it is not nearer."""

    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    memory: Memory = Memory.BIND
    why: str = ""


def root_of(environ: Mapping[str, str], node: str = "") -> Path:
    """Return the ``/`` of the machine that the drivers look at: the running one's, unless another is brought."""
    root = environ.get("HAL_SYSFS_ROOT", "")
    if root:
        return Path(root)
    if environ.get("HAL_MACHINE", ""):
        from hal.agent.drivers import find_factories

        hosts = find_factories((), environ)[1].hosts
        found = next((host for host in hosts if host.node == node and host.root), None)
        if found is not None and found.root:
            return Path(found.root)
    return Path("/")


def sysfs(root: Path) -> Path:
    """Return the ``sys`` folder of a machine; a recorded tree may begin there."""
    return root / "sys" if (root / "sys").is_dir() else root


def folder_of(device: AllocatedDevice, root: Path) -> Path | None:
    """Return a device's folder in sysfs by its aliases, None if it has none that is there."""
    for alias in device.aliases:
        space, _, name = alias.partition(":")
        if space in _FOLDERS and name and "/" not in name and name not in (".", ".."):
            path = sysfs(root) / _FOLDERS[space].format(name)
            if path.exists():
                return path
    return None


def numa_node(device: AllocatedDevice, root: Path) -> int | None:
    """Return the NUMA node of a device: its own word, or that of what it hangs from; None if nobody says."""
    folder = folder_of(device, root)
    if folder is None:
        return None
    folder, top = folder.resolve(), sysfs(root).resolve()
    while folder != top and top in folder.parents:
        node = _number(folder / "numa_node")
        if node is not None and node >= 0:
            return node
        folder = folder.parent
    return None


def choose(
    devices: Iterable[AllocatedDevice],
    root: Path,
    cpus: Collection[int] | None = None,
    nodes: Collection[int] | None = None,
    memory: Memory = Memory.BIND,
) -> Binding:
    """Return the CPUs and memory nodes near all of the devices.

    ``cpus`` and ``nodes`` are what may be used, this process's own unless given. A machine of one node needs no
    binding, and a device of which nobody knows where it is forbids one.
    """
    cpus = os.sched_getaffinity(0) if cpus is None else set(cpus)
    nodes = allowed_nodes() if nodes is None else set(nodes)
    near: set[int] = set()
    for device in devices:
        node = numa_node(device, root)
        if node is None:
            return Binding(why=f"nobody says at which NUMA node {device.name} is", memory=memory)
        near.add(node)
    wanted = {cpu for node in near for cpu in _cpus_of(node, root)}
    names = ", ".join(map(str, sorted(near)))
    if not wanted & set(cpus):
        return Binding(why=f"none of the CPUs of NUMA node {names} may be used here", memory=memory)
    here = near & set(nodes)
    why = "" if here else f"no memory of NUMA node {names} may be used here"
    return Binding(cpus=tuple(sorted(wanted & set(cpus))), nodes=tuple(sorted(here)), memory=memory, why=why)


def apply(binding: Binding) -> None:
    """Bind this process, and what it will start. Raises ``AccessDenied`` or ``Unsupported`` if it cannot be done."""
    if binding.cpus:
        try:
            os.sched_setaffinity(0, binding.cpus)
        except OSError as error:
            raise AccessDenied(
                f"the CPUs cannot be chosen: {error.strerror}", during="bind", hint="--numa no"
            ) from error
    if binding.nodes and binding.memory is not Memory.ANY:
        modes = (_BIND,) if binding.memory is Memory.BIND else (_PREFERRED_MANY, _PREFERRED)
        _set_policy(modes, binding.nodes)


def _set_policy(modes: Sequence[int], nodes: Sequence[int]) -> None:
    """Set the memory policy of this process, which it keeps when it becomes another program (set_mempolicy(2))."""
    call = _SET_MEMPOLICY.get(platform.machine())
    if call is None:
        raise Unsupported(f"memory cannot be bound on {platform.machine()}", during="bind", hint="--numa no")
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    libc = ctypes.CDLL(None, use_errno=True)
    for mode in modes:
        chosen = nodes[:1] if mode == _PREFERRED else nodes
        mask = (ctypes.c_ulong * (max(nodes) // bits + 1))()
        for node in chosen:
            mask[node // bits] |= 1 << (node % bits)
        # The kernel reads one bit less than it is told.
        if libc.syscall(call, mode, ctypes.byref(mask), len(mask) * bits + 1) == 0:
            return
    error = os.strerror(ctypes.get_errno())
    raise AccessDenied(f"memory cannot be bound to nodes {list(nodes)}: {error}", during="bind", hint="--numa no")


def allowed_nodes() -> set[int]:
    """Return the memory nodes that this process may use."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    words = (line.partition(":")[2].strip() for line in lines if line.startswith("Mems_allowed_list:"))
    return parse_cpulist(next(words, "")) or set()


def _cpus_of(node: int, root: Path) -> set[int]:
    try:
        text = (sysfs(root) / f"devices/system/node/node{node}/cpulist").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return parse_cpulist(text.strip()) or set()


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None
