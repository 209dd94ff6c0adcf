"""How long host discovery takes in a process that has done it before: machines of 40 and of 320 devices."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.rows import Row, best

_GOALS_MS = {40: 3.0, 320: 12.0}
_UNIT = 20
_UNCORE = ("0b00", "0998", "09a2", "09a4", "09a6", "3258", "3259")


def machine(folder: Path, units: int) -> str:
    """Write a machine of ``units`` NUMA nodes, each with 20 devices in the mix of a large server; return its root.

    CPUs, memory, a switch with a GPU and an RDMA NIC, an NVMe drive, an Ethernet NIC of two ports, the six ports of
    bridges above them, and seven functions of the processor itself, which have no link.
    """
    from hal.testing.trees import FakeTree

    tree = FakeTree(folder)
    for unit in range(units):
        distances = [10 if one == unit else 21 for one in range(units)]
        tree.numa(unit, cpus=f"{unit * 8}-{unit * 8 + 7}", distances=distances)
        functions = _Functions(tree, unit)
        functions.switch()
        functions.drive()
        functions.ethernet()
        functions.uncore()
    tree.beside("proc/cpuinfo", "processor\t: 0\nmodel name\t: Benchmark CPU")
    return tree.root


class _Functions:
    def __init__(self, tree: Any, unit: int) -> None:
        self.tree = tree
        self.unit = unit

    def add(self, address: str, parent: str, ids: str, code: str, driver: str = "", **more: Any) -> str:
        vendor, device = ids.split(":")
        domain = f"{self.unit:04x}:"
        parent = parent if parent.startswith("pci") else domain + parent
        self.tree.pci(
            domain + address, parent=parent, vendor=vendor, device=device, class_code=code, driver=driver,
            numa_node=self.unit, **more,
        )  # fmt: skip
        return domain + address

    def port(self, address: str, parent: str, role: str, width: int = 16) -> None:
        self.add(address, parent, "1000:c030", "060400", "pcieport", role=role, speed_gts=32.0, width=width)

    def bridge(self, bus: str) -> str:
        return f"pci{self.unit:04x}:{bus}"

    def switch(self) -> None:
        unit, wide = self.unit, {"speed_gts": 32.0, "width": 16}
        self.port("10:01.0", self.bridge("10"), "root-port")
        self.port("11:00.0", "10:01.0", "switch-upstream")
        self.port("12:00.0", "11:00.0", "switch-downstream")
        self.port("12:01.0", "11:00.0", "switch-downstream")
        gpu = self.add("13:00.0", "12:00.0", "10de:2330", "030200", "nvidia", iommu_group=unit, **wide)
        self.tree.beside(
            f"proc/driver/nvidia/gpus/{gpu}/information",
            f"Model: \t\t NVIDIA H100 80GB HBM3\nGPU UUID: \t GPU-00000000-0000-0000-0000-{unit + 1:012x}",
        )
        nic = self.add("14:00.0", "12:01.0", "15b3:1021", "020700", "mlx5_core", iommu_group=100 + unit, **wide)
        self.tree.netdev(f"ib{unit}", pci=nic, mac=f"02:00:00:00:00:{unit:02x}")
        self.tree.rdma(f"mlx5_{unit}", node_guid=f"a088:c203:00ab:{unit:04x}", pci=nic, netdev=f"ib{unit}")

    def drive(self) -> None:
        self.port("60:01.0", self.bridge("60"), "root-port", 4)
        drive = self.add(
            "61:00.0", "60:01.0", "144d:a80a", "010802", "nvme", iommu_group=200 + self.unit, speed_gts=16.0, width=4
        )
        self.tree.nvme(f"nvme{self.unit}", pci=drive, serial=f"BENCH{self.unit:08d}")

    def ethernet(self) -> None:
        self.port("80:01.0", self.bridge("80"), "root-port", 8)
        for number in range(2):
            nic = self.add(
                f"81:00.{number}", "80:01.0", "8086:1593", "020000", "ice", iommu_group=300 + 2 * self.unit + number,
                speed_gts=16.0, width=8,
            )  # fmt: skip
            name = f"ens{self.unit}f{number}"
            self.tree.netdev(name, pci=nic, mac=f"02:00:00:01:{self.unit:02x}:{number:02x}", speed_mbps=25000)

    def uncore(self) -> None:
        for number, device in enumerate(_UNCORE):
            self.add(f"00:{number:02x}.0", self.bridge("00"), f"8086:{device}", "088000", iommu_group=400 + number)


def run() -> Iterator[Row]:
    from hal.drivers.contract import HostRoot
    from hal.host.driver import discover_host

    took: dict[int, float] = {}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # as sysfs is: in memory, not on a disk
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        for count, goal in _GOALS_MS.items():
            host = HostRoot(node="bench", root=machine(Path(scratch) / str(count), count // _UNIT))
            found = discover_host(host)
            if len(found.devices) != count or found.problems:
                raise AssertionError(f"{len(found.devices)} devices instead of {count}; {found.problems}")
            took[count] = best(lambda host=host: discover_host(host), repeat=41)
            yield Row(
                name=f"discovery of {count} devices",
                measured=f"{took[count] * 1e3:.2f} ms, {took[count] / count * 1e6:.1f} us a device",
                peer=f"goal: {goal:.0f} ms",
                ratio=took[count] * 1e3 / goal,
                goal="at most 1x",
                met=took[count] * 1e3 <= goal,
                includes="opening and reading a recorded sysfs, in memory as the kernel's own is; making the devices",
            )
    growth = took[320] / 320 / (took[40] / 40)
    yield Row(
        name="discovery, growth from 40 to 320 devices",
        measured=f"{took[320] / 320 * 1e6:.1f} us a device",
        peer=f"{took[40] / 40 * 1e6:.1f} us a device",
        ratio=growth,
        goal="at most 1.2x",
        met=growth <= 1.2,
        includes="the two runs above: linear is 1",
    )
