"""RDMA NICs, network interfaces, NVMe drives and DPU cards as the kernel shows them."""

from __future__ import annotations

from hal_mocks.graph import Dpu, Host, Nic, Nvme, Rnic, RnicPort
from hal_mocks.profile_identity import grouped
from hal_mocks.sysfs_files import Files
from hal_mocks.sysfs_pci import vital_product_data

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
_DPU_MODES = {"dpu": "DPU mode", "nic": "NIC mode", "restricted": "DPU mode"}
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
    if rnic.netdev and not soft:
        port = rnic.ports[0]
        infiniband = port.link_layer == "InfiniBand"
        address = _ipoib_address(index, rnic) if infiniband else rnic.mac
        _add_netdev(files, above, rnic.netdev, address, views[0], infiniband, index)


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


def add_nvme(files: Files, nvme: Nvme, index: int, numa: int, paths: dict[str, str], live: bool) -> None:
    """Add an NVMe controller and its first namespace; a controller that does not answer the kernel calls dead."""
    path = f"{paths[nvme.pci]}/nvme/{nvme.name}"
    files.device(
        path,
        "class/nvme",
        {
            "model": nvme.model.ljust(40),
            "serial": nvme.serial.ljust(20),
            "firmware_rev": "1.0",
            "state": "live" if live else "dead",
            "transport": "pcie",
            "address": nvme.pci,
            "numa_node": numa,
            "cntlid": 1,
            "dev": f"240:{index}",
        },
        {"MAJOR": 240, "MINOR": index, "DEVNAME": nvme.name, "NVME_TRTYPE": "pcie"},
    )
    files.link(f"{path}/device", paths[nvme.pci])
    block = f"{path}/{nvme.name}n1"
    files.device(
        block,
        "class/block",
        {
            "size": nvme.size_bytes // 512,
            "ro": 0,
            "removable": 0,
            "dev": f"259:{index}",
            "queue/logical_block_size": 512,
            "queue/rotational": 0,
        },
        {"MAJOR": 259, "MINOR": index, "DEVNAME": f"{nvme.name}n1", "DEVTYPE": "disk"},
    )
    files.link(f"{block}/device", path)


def add_dpu(files: Files, dpu: Dpu, host: Host, paths: dict[str, str]) -> None:
    """Add what the host sees of a card: vital product data, and the RShim files if it is let near them."""
    data = vital_product_data(dpu.generation, dpu.psid, dpu.serial)
    for address in dpu.pci:
        if address in paths:
            files.file(f"{paths[address]}/vpd", data)
    if not dpu.rshim or not dpu.pci or dpu.pci[-1] not in paths:
        return
    folder = f"dev/{dpu.rshim}"
    misc = {
        "DISPLAY_LEVEL": "0 (0:basic, 1:advanced, 2:log)",
        "BOOT_MODE": "1 (0:rshim, 1:emmc, 2:emmc-boot-swap)",
        "BOOT_TIMEOUT": "150 (seconds)",
        "DROP_MODE": "0 (0:normal, 1:drop)",
        "SW_RESET": "0 (1: reset)",
        "DEV_NAME": f"pcie-{dpu.pci[-1]}",
        "DEV_INFO": f"{dpu.generation}(Rev 1)",
        "OPN_STR": dpu.psid,
        "BF_MODE": _DPU_MODES[dpu.mode],
    }
    files.file(f"{folder}/misc", "\n".join(f"{key:<16}{value}" for key, value in misc.items()))
    for name in ("boot", "console", "rshim"):
        files.file(f"{folder}/{name}", b"")
    path = f"{paths[dpu.pci[-1]]}/rshim/{dpu.rshim}"
    files.device(path, "class/rshim", {}, {"DEVNAME": f"{dpu.rshim}/rshim"})
    files.link(f"{path}/device", paths[dpu.pci[-1]])
