"""RDMA NICs and network interfaces as the kernel shows them."""

from __future__ import annotations

from hal_mocks.graph import Nic, Rnic, RnicPort
from hal_mocks.profile_identity import grouped
from hal_mocks.sysfs_files import Files

_GENERATION = {10: "SDR", 20: "DDR", 40: "QDR", 56: "FDR", 100: "EDR", 200: "HDR", 400: "NDR", 800: "XDR"}
_COUNTERS = (
    "symbol_error",
    "link_error_recovery",
    "link_downed",
    "port_rcv_errors",
    "port_xmit_wait",
    "local_link_integrity_errors",
    "excessive_buffer_overrun_errors",
    "port_xmit_data",
    "port_rcv_data",
)
_VERBS_ABI, _MAD_ABI = 6, 5
_RDMA_MAJOR, _FIRST_UVERBS, _FIRST_ISSM = 231, 192, 64
_MOST_PORTS = 2
_ARPHRD_ETHER, _ARPHRD_INFINIBAND = 1, 32


class PortView:
    """A port as its faults make it look: ``up``, and the rate that is left."""

    def __init__(self, up: bool, rate_gbps: float) -> None:
        self.up = up
        self.rate_gbps = rate_gbps


def add_rnic(files: Files, rnic: Rnic, index: int, paths: dict[str, str], views: list[PortView]) -> None:
    """Add an RDMA device, and its network interface unless that belongs to somebody else."""
    soft = not rnic.pci
    above = "sys/devices/virtual" if soft else paths[rnic.pci]
    path = f"{above}/infiniband/{rnic.name}"
    attributes: dict[str, str | bytes | int] = {
        "node_type": "1: CA",
        "node_guid": grouped(rnic.node_guid),
        "sys_image_guid": grouped(rnic.node_guid),
        "node_desc": rnic.name,
        "fw_ver": rnic.firmware,
    }
    if not soft:  # a soft one has none of these
        attributes |= {"hca_type": rnic.hca_type, "board_id": rnic.board_id, "hw_rev": 0}
    files.device(path, "class/infiniband", attributes, {"NAME": rnic.name})
    if not soft:
        files.link(f"{path}/device", above)
    for port, view in zip(rnic.ports, views, strict=True):
        _add_port(files, rnic, port, f"{path}/ports/{port.number}", view, counted=not soft)
    _add_doors(files, rnic, above, index)
    if rnic.netdev and not soft:
        port = rnic.ports[0]
        infiniband = port.link_layer == "InfiniBand"
        address = _ipoib_address(index, rnic) if infiniband else rnic.mac
        _add_netdev(files, above, rnic.netdev, address, views[0], infiniband, index)


def _add_doors(files: Files, rnic: Rnic, above: str, index: int) -> None:
    """Add what user space opens: ``uverbs`` for data, ``umad`` and ``issm`` for management (ib_uverbs, ib_umad)."""
    files.file("sys/class/infiniband_verbs/abi_version", _VERBS_ABI)
    files.file("sys/class/infiniband_mad/abi_version", _MAD_ABI)
    _add_door(files, above, "infiniband_verbs", f"uverbs{index}", _FIRST_UVERBS + index, rnic, {"abi_version": 1})
    for port in rnic.ports:
        number = index * _MOST_PORTS + port.number - 1
        for name, first in ((f"umad{number}", 0), (f"issm{number}", _FIRST_ISSM)):
            _add_door(files, above, "infiniband_mad", name, first + number, rnic, {"port": port.number})


def _add_door(
    files: Files, above: str, family: str, name: str, minor: int, rnic: Rnic, facts: dict[str, str | bytes | int]
) -> None:
    path = f"{above}/{family}/{name}"
    numbers: dict[str, str | int] = {"MAJOR": _RDMA_MAJOR, "MINOR": minor, "DEVNAME": f"infiniband/{name}"}
    files.device(path, f"class/{family}", {"ibdev": rnic.name, **facts}, numbers)
    if rnic.pci:
        files.link(f"{path}/device", above)


def _add_port(files: Files, rnic: Rnic, port: RnicPort, path: str, view: PortView, counted: bool) -> None:
    down = "2: Polling" if port.link_layer == "InfiniBand" else "3: Disabled"
    files.files(
        path,
        {
            "state": "4: ACTIVE" if view.up else "1: DOWN",
            "phys_state": "5: LinkUp" if view.up else down,
            "rate": rate_text(view.rate_gbps),
            "link_layer": port.link_layer,
            "lid": f"{port.lid:#x}",
            "lid_mask_count": 0,
            "sm_lid": "0x1" if port.lid else "0x0",
            "sm_sl": 0,
            "cap_mask": "0xa651e848",
            "pkeys/0": "0xffff",
        },
    )
    for index, gid in enumerate(port.gids):
        files.file(f"{path}/gids/{index}", gid)
        files.file(f"{path}/gid_attrs/types/{index}", port.gid_types[index])
        files.file(f"{path}/gid_attrs/ndevs/{index}", rnic.netdev)
    if counted:
        files.files(f"{path}/counters", dict.fromkeys(_COUNTERS, 0))


def rate_text(rate_gbps: float) -> str:
    """Return a rate as the kernel prints it (``400 Gb/sec (4X NDR)``)."""
    generation = _GENERATION.get(round(rate_gbps))
    return f"{rate_gbps:g} Gb/sec (4X {generation})" if generation else f"{rate_gbps:g} Gb/sec"


def _ipoib_address(index: int, rnic: Rnic) -> str:
    digits = f"0000{0x1000 + index:04x}fe80000000000000{rnic.node_guid}"
    return ":".join(digits[at : at + 2] for at in range(0, 40, 2))


def add_nic(files: Files, nic: Nic, index: int, paths: dict[str, str], view: PortView) -> None:
    """Add a network interface without RDMA."""
    above = paths[nic.pci] if nic.pci else "sys/devices/virtual"
    _add_netdev(files, above, nic.name, nic.mac, view, False, index)


def _add_netdev(
    files: Files, above: str, name: str, address: str, view: PortView, infiniband: bool, index: int
) -> None:
    path = f"{above}/net/{name}"
    files.device(
        path,
        "class/net",
        {
            "address": address,
            "operstate": "up" if view.up else "down",
            "carrier": int(view.up),
            "speed": round(view.rate_gbps * 1000) if view.up else -1,
            "mtu": 2044 if infiniband else 1500,
            "type": _ARPHRD_INFINIBAND if infiniband else _ARPHRD_ETHER,
            "ifindex": index + 2,
            "dev_port": 0,
        },
        {"INTERFACE": name, "IFINDEX": index + 2},
    )
    if not above.startswith("sys/devices/virtual"):
        files.link(f"{path}/device", above)
