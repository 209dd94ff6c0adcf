"""A machine with Instinct accelerators as files: what amdgpu and KFD of a Linux 6.8 show, and ways to break it.

Names and formats are those of the kernel's documentation; numbers are our own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from hal.drivers.contract import Context, HostRoot
from hal.testing.trees import FakeTree
from hal_amd.driver import ROOT, AmdDriver
from hal_amd.resetting import make_driver

MEMORY_BYTES = 192 << 30
COMPUTE_UNITS = 304
HIVE = 0x51_C0FF_EE00_0001
_SCLK = "0: 132Mhz\n1: 2100Mhz *"
_MCLK = "0: 900Mhz *\n1: 1300Mhz"


def metrics_table(*, energy: int = 1 << 20, content: int = 3, status: int = 0) -> bytes:
    """Return a firmware table of format 1 as ``kgd_pp_interface.h`` lays it out."""
    table = bytearray(struct.pack("<HBB", 120, 1, content).ljust(120, b"\0"))
    struct.pack_into("<Q", table, 24, energy)
    struct.pack_into("<Q", table, 112, status)
    return bytes(table)


class AmdMachine:
    """A node with some GPUs, each below a root port of its own; all of one XGMI hive if there are several."""

    def __init__(self, folder: Path, gpus: int = 2, *, xgmi: bool = True, unique: bool = True) -> None:
        self.folder = folder
        self.tree = FakeTree(folder / "machine")
        self.root = self.tree.root
        self.count = gpus
        self.unique = unique
        self.xgmi = xgmi and gpus > 1
        self.modes = ["SPX"] * gpus
        self.tree.numa(0, cpus="0-3")
        self.tree.folder("bus/pci/drivers/amdgpu")
        for number in range(gpus):
            self._add(number)
        self.renumber()

    # what is there

    def address(self, number: int) -> str:
        """Return a GPU's PCI address."""
        return f"0000:{3 + 16 * number:02x}:00.0"

    def unique_id(self, number: int) -> str:
        """Return a GPU's number."""
        return f"{0xA1B2C3D400000001 + number:016x}"

    def gpu(self, number: int) -> str:
        """Return a GPU's device id."""
        return f"GPU-{self.unique_id(number)}" if self.unique else f"n0/pci/{self.address(number)}"

    def path(self, number: int) -> str:
        """Return a GPU's folder in sysfs."""
        return self.tree.path_of(self.address(number))

    def hwmon(self, number: int) -> str:
        """Return the folder of a GPU's sensors."""
        return f"{self.path(number)}/hwmon/hwmon{number + 4}"

    def gpu_id(self, number: int, part: int = 0) -> int:
        """Return what KFD calls a GPU or a part of one."""
        return 10_000 + 100 * number + part

    def _add(self, number: int) -> None:
        tree, bus = self.tree, 2 + 16 * number
        port = f"0000:00:{number + 1:02x}.1"
        tree.pci(
            port, vendor="1022", device="14ab", class_code="060400", numa_node=0, role="root-port", driver="pcieport"
        )
        up, down = f"0000:{bus - 1:02x}:00.0", f"0000:{bus:02x}:00.0"
        link = {"speed_gts": 32.0, "width": 16}
        tree.pci(up, parent=port, vendor="1002", device="1500", class_code="060400", role="switch-upstream", **link)  # type: ignore[arg-type]
        tree.pci(down, parent=up, vendor="1002", device="1501", class_code="060400", role="switch-downstream")
        tree.pci(
            self.address(number),
            parent=down,
            vendor="1002",
            device="74a1",
            class_code="120000",
            numa_node=0,
            driver="amdgpu",
            speed_gts=64.0,
            width=16,
        )
        tree.link(f"bus/pci/drivers/amdgpu/{self.address(number)}", self.path(number))
        files: Mapping[str, str | int | bytes] = {
            "mem_info_vram_total": MEMORY_BYTES,
            "mem_info_vram_used": 1 << 30,
            "gpu_busy_percent": 42,
            "mem_busy_percent": 7,
            "pp_dpm_sclk": _SCLK,
            "pp_dpm_mclk": _MCLK,
            "pcie_replay_count": 3,
            "vbios_version": "113-M3000100-102",
            "product_name": "AMD Instinct MI300X OAM",
            "serial_number": f"PCB00{number}",
            "current_compute_partition": "SPX",
            "available_compute_partition": "SPX, DPX, QPX, CPX",
            "current_memory_partition": "NPS1",
            "gpu_metrics": metrics_table(),
            "ras/features": "feature mask: 0x1fff",
            "ras/umc_err_count": "ue: 0\nce: 2",
            "ras/gfx_err_count": "ue: 0\nce: 0",
            "ras/gpu_vram_bad_pages": b"",
            f"drm/card{number + 1}/dev": f"226:{number + 1}",
            f"drm/renderD{128 + number}/dev": f"226:{128 + number}",
        }
        for name, value in files.items():
            tree.write(f"{self.path(number)}/{name}", value)
        if self.unique:
            tree.write(f"{self.path(number)}/unique_id", self.unique_id(number))
        sensors = {
            "power1_average": 350_000_000,
            "power1_cap": 750_000_000,
            "power1_cap_default": 750_000_000,
            "power1_cap_min": 200_000_000,
            "power1_cap_max": 750_000_000,
            "freq1_input": 2_085_000_000,
            "freq2_input": 1_300_000_000,
            "temp2_input": 61_000,
            "temp2_label": "junction",
            "temp2_crit": 100_000,
            "temp2_emergency": 105_000,
            "temp3_input": 55_000,
            "temp3_label": "mem",
            "temp3_crit": 105_000,
            "temp3_emergency": 110_000,
        }
        for name, value in sensors.items():
            tree.write(f"{self.hwmon(number)}/{name}", value)
        beside = f"sys/kernel/debug/dri/{number + 1}"
        tree.beside(f"{beside}/name", f"amdgpu dev={self.address(number)} unique={self.address(number)}")
        tree.beside(f"{beside}/amdgpu_gpu_recover", 0)

    def renumber(self) -> None:
        """Write KFD's topology anew: the processor's node, and then one node for each part of each GPU."""
        tree, nodes = self.tree, "devices/virtual/kfd/kfd/topology/nodes"
        tree.folder(nodes)
        tree.link("class/kfd/kfd", "devices/virtual/kfd/kfd")
        tree.write(f"{nodes}/0/gpu_id", 0)
        tree.write(f"{nodes}/0/properties", "cpu_cores_count 4\nsimd_count 0")
        parts = [(n, p) for n, mode in enumerate(self.modes) for p in range({"SPX": 1, "DPX": 2, "CPX": 8}[mode])]
        for node, (number, part) in enumerate(parts, 1):
            count = sum(owner == number for owner, _ in parts)
            location = (3 + 16 * number) << 8 | (part << 28 if count > 1 else 0)
            lines = {
                "simd_count": COMPUTE_UNITS * 4 // count,
                "simd_per_cu": 4,
                "gfx_target_version": 90402,
                "vendor_id": 4098,
                "device_id": 29857,
                "location_id": location,
                "domain": 0,
                "drm_render_minor": 128 + number,
                "hive_id": HIVE if self.xgmi else 0,
                "unique_id": int(self.unique_id(number), 16) if self.unique else 0,
                "num_xcc": 8 // count,
            }
            folder = f"{nodes}/{node}"
            tree.write(f"{folder}/gpu_id", self.gpu_id(number, part))
            tree.write(f"{folder}/name", "ip discovery")
            tree.write(f"{folder}/properties", _lines(lines))
            bank = {
                "heap_type": 1,
                "size_in_bytes": MEMORY_BYTES // count,
                "flags": 0,
                "width": 8192,
                "mem_clk_max": 1300,
            }
            tree.write(f"{folder}/mem_banks/0/properties", _lines(bank))
            for index, (other, _) in enumerate(parts):
                if other != number and self.xgmi:
                    way = {"type": 11, "node_from": node, "node_to": index + 1, "weight": 15, "max_bandwidth": 64_000}
                    tree.write(f"{folder}/io_links/{index}/properties", _lines(way))
            way = {"type": 2, "node_from": node, "node_to": 0, "weight": 20, "max_bandwidth": 0}
            tree.write(f"{folder}/io_links/{len(parts)}/properties", _lines(way))

    # what happens to it

    def divide(self, number: int, mode: str) -> None:
        """Put a GPU into another mode."""
        self.modes[number] = mode
        self.tree.write(f"{self.path(number)}/current_compute_partition", mode)
        self.renumber()

    def compute(self, pid: int, number: int, memory_bytes: int = 1 << 20, *, part: int = 0, queue: bool = True) -> None:
        """Let a process hold memory, and a queue, on a GPU; KFD lists it for the others, too."""
        folder = f"devices/virtual/kfd/kfd/proc/{pid}"
        for other in range(self.count):
            self.tree.write(f"{folder}/vram_{self.gpu_id(other)}", 0)
        self.tree.write(f"{folder}/vram_{self.gpu_id(number, part)}", memory_bytes)
        if queue:
            self.tree.write(f"{folder}/queues/0/gpuid", self.gpu_id(number, part))
        self.tree.beside(f"proc/{pid}/comm", f"prog-{pid}")

    def end(self, pid: int) -> None:
        """Let a process end."""
        self.tree.remove(f"devices/virtual/kfd/kfd/proc/{pid}")

    def fall_off(self, number: int) -> None:
        """Let nothing answer at a GPU's address any more."""
        self.tree.write(f"{self.path(number)}/config", b"\xff" * 256)

    def write(self, number: int, name: str, value: str | int | bytes) -> None:
        """Write one of a GPU's files."""
        self.tree.write(f"{self.path(number)}/{name}", value)

    # who looks at it

    def driver(self, *, live: bool = True, **environ: str) -> AmdDriver:
        """Return a driver; ``live`` as if this were the machine on which it runs."""
        runtime = self.folder / "run"
        os.makedirs(runtime, exist_ok=True)
        variables = {"XDG_RUNTIME_DIR": str(runtime)} | ({ROOT: self.root} if live else {}) | environ
        return make_driver(Context(hosts=(HostRoot(node="n0", root=self.root),), environ=variables))


def _lines(values: Mapping[str, int]) -> str:
    return "\n".join(f"{name} {value}" for name, value in values.items())
