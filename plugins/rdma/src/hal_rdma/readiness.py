"""Whether RDMA works here: one line with the cause and what mends it, from a few files, in well under 50 ms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.drivers.contract import Cause, HostRoot, Readiness
from hal.errors import DriverError
from hal.host.tree import HostTree
from hal_rdma.ports import RDMA
from hal_rdma.transport import FORCED
from hal_rdma.verbs.binding import why_no_binding

if TYPE_CHECKING:
    from pathlib import Path

SOFTWARE = "HAL_RDMA_SOFTWARE"
_INSTALL = "apt install python3-pyverbs ibverbs-providers, or libucx0 for a NIC that UCX knows"


def judge(hosts: Sequence[HostRoot], environ: Mapping[str, str]) -> Readiness:
    """Say whether there is a NIC to find, and if so, what stands between it and data."""
    if environ.get(SOFTWARE, "").strip():
        return Readiness(cause=Cause.READY, detail=f"software NICs of {SOFTWARE}")
    for host in hosts:
        if _lists_nics(host):
            if host.root is None:
                return _data_path(host, environ)
            detail = f"{host.node} is a recorded tree: its NICs can be looked at, not opened"
            return Readiness(cause=Cause.READY, detail=detail)
    return _why_none(hosts)


def _lists_nics(host: HostRoot) -> bool:
    if host.root is None:
        return bool(_names(host.path("sys", RDMA)))
    try:
        with HostTree(host.root) as tree:  # which may be a snapshot in one file
            return bool(tree.sys.names(RDMA))
    except DriverError:
        return False


def _why_none(hosts: Sequence[HostRoot]) -> Readiness:
    for host in hosts:
        if host.path("sys", RDMA).is_dir():
            return Readiness(
                cause=Cause.NO_HARDWARE,
                detail=f"/sys/{RDMA} is empty: RDMA is loaded, and no device has come",
                remedy="plug a NIC in and modprobe its module, or: rdma link add rxe0 type rxe netdev eth0",
            )
        if host.path("sys", "module", "ib_core").is_dir():
            return Readiness(
                cause=Cause.NO_HARDWARE,
                detail=f"ib_core is loaded, but there is no /sys/{RDMA} in here",
                remedy="start the container with the host's /sys",
            )
    adapters = sum(_adapters(host) for host in hosts)
    if adapters:
        return Readiness(
            cause=Cause.NO_DRIVER,
            detail=f"there is no /sys/{RDMA}, but {adapters} network functions that may do RDMA: a module is missing",
            remedy="modprobe mlx5_ib (or the module of your vendor)",
        )
    return Readiness(
        cause=Cause.NO_DRIVER,
        detail=f"there is no /sys/{RDMA}: no RDMA module is loaded",
        remedy=f"modprobe the NIC's module (mlx5_ib, or rdma_rxe for software), or name software NICs in {SOFTWARE}",
    )


def _adapters(host: HostRoot) -> int:
    """Count functions that are InfiniBand controllers, or Ethernet ones of the vendor whose NICs all do RDMA."""
    count = 0
    folder = host.path("sys", "bus", "pci", "devices")
    for name in _names(folder):
        code = _read(folder / name / "class")
        if code.startswith("0x0207") or (code.startswith("0x0200") and _read(folder / name / "vendor") == "0x15b3"):
            count += 1
    return count


def _data_path(host: HostRoot, environ: Mapping[str, str]) -> Readiness:
    """A machine with NICs is ready to be looked at, whatever the way to their data; that is told beside it."""
    why, remedy = why_no_device_file(host)
    if why:
        return Readiness(cause=Cause.READY, detail=f"NICs can be looked at, not opened: {why}", remedy=remedy)
    if environ.get(FORCED):
        return Readiness(cause=Cause.READY, detail=f"{FORCED}={environ[FORCED]}")
    why_no_verbs = why_no_binding()
    if why_no_verbs:
        return Readiness(cause=Cause.READY, detail=f"not by verbs: {why_no_verbs}", remedy=_INSTALL)
    return Readiness(cause=Cause.READY)


def why_no_device_file(host: HostRoot, rdma_name: str = "") -> tuple[str, str]:
    """Return why verbs' device file cannot be opened and what mends it, or two empty texts."""
    folder = host.path("dev", "infiniband")
    files = [name for name in _names(folder) if name.startswith("uverbs")]
    if rdma_name:
        ours = uverbs_of(host, rdma_name)
        files = [ours] if ours in files else []
    if not files:
        if not host.path("sys", "class", "infiniband_verbs").is_dir():
            return "ib_uverbs is not loaded", "modprobe ib_uverbs"
        what = "the device has no file in /dev/infiniband" if rdma_name else "there is no /dev/infiniband/uverbs*"
        return what, "in a container: --device /dev/infiniband; else: udevadm trigger"
    if not any(os.access(folder / name, os.R_OK | os.W_OK) for name in files):
        return (
            f"/dev/infiniband/{files[0]} may not be opened by this user",
            "join the group rdma, or: chmod 666 /dev/infiniband/uverbs*",
        )
    return "", ""


def uverbs_of(host: HostRoot, rdma_name: str) -> str:
    """Return the name of the verbs file of an RDMA device (``uverbs0``), or an empty text."""
    folder = host.path("sys", "class", "infiniband_verbs")
    for name in _names(folder):
        if name.startswith("uverbs") and _read(folder / name / "ibdev") == rdma_name:
            return name
    return ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
