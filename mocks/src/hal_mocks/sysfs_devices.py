"""NVMe drives, DPU cards and NVIDIA's own files as the kernel shows them."""

from __future__ import annotations

from hal_mocks.graph import Dpu, Host, Nvme
from hal_mocks.sysfs_files import Files
from hal_mocks.sysfs_pci import vital_product_data

_DPU_MODES = {"dpu": "DPU mode", "nic": "NIC mode", "restricted": "DPU mode"}
_NVIDIA_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


def add_nvidia(files: Files, host: Host, whole: Host) -> None:
    """Add what NVIDIA's driver shows of its GPUs: ``/proc/driver/nvidia`` and the nodes, which have no class.

    A GPU keeps its number, that of ``whole``, when others vanish.
    """
    numbers = {gpu.name: number for number, gpu in enumerate(whole.gpus)}
    for gpu in host.gpus:
        function = host.function(gpu.pci) if gpu.pci else None
        if function is None or function.driver != "nvidia":
            continue
        minor = numbers[gpu.name]
        text = f"Model: \t\t {gpu.model}\nGPU UUID: \t {gpu.uuid}\nBus Location: \t {gpu.pci}\nDevice Minor: \t {minor}"
        files.file(f"proc/driver/nvidia/gpus/{gpu.pci}/information", text)
        for name in (f"nvidia{minor}", *_NVIDIA_NODES):
            files.entries[f"dev/{name}"] = b""


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


def _is_network(host: Host, address: str) -> bool:
    function = host.function(address)
    return function is not None and function.class_code.startswith("02")


def add_dpu(files: Files, dpu: Dpu, host: Host, paths: dict[str, str]) -> None:
    """Add what the host sees of a card: vital product data, and the RShim files if it is let near them."""
    data = vital_product_data(dpu.generation, dpu.psid, dpu.serial)
    for address in dpu.pci:
        if address in paths:
            files.file(f"{paths[address]}/vpd", data)
    ports = [address for address in dpu.pci if _is_network(host, address)]
    for index, address in enumerate(ports):  # the card's virtual functions, shared among its ports
        most = dpu.max_vfs // len(ports) + (index < dpu.max_vfs % len(ports))
        files.files(paths[address], {"sriov_totalvfs": most, "sriov_numvfs": 0})
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
