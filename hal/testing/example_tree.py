"""A small machine with one device of every kind, as a sysfs: two sockets, a PCI switch, and something on each side."""

from __future__ import annotations

from pathlib import Path

from hal.testing.trees import FakeTree

GIB = 1 << 30


def one_of_each(folder: Path | str) -> FakeTree:
    """Write the machine into a folder.

    Node 0: a switch with an H100, a ConnectX-7 and an NVMe drive below it; an Ethernet NIC; a BlueField-3 with its
    rshim; an Optane region of two DIMMs. Node 1: a CXL memory device and region; an UPMEM DIMM of two ranks; a VGA of a
    BMC, which is no GPU.
    """
    tree = FakeTree(folder)
    tree.numa(0, cpus="0-3", memory_bytes=64 * GIB, distances=(10, 21))
    tree.numa(1, cpus="4-7", memory_bytes=32 * GIB, distances=(21, 10))
    tree.write("devices/system/cpu/online", "0-7")
    tree.beside("proc/cpuinfo", "processor\t: 0\nmodel name\t: Example CPU @ 2.00GHz\n")
    _write_switch(tree)
    tree.pci(
        "0000:01:00.0", parent="pci0000:00", vendor="8086", device="1593", class_code="020000", numa_node=0,
        driver="ice", speed_gts=16.0, width=8,
    )  # fmt: skip
    tree.netdev("ens1f0", pci="0000:01:00.0", mac="b4:96:91:aa:bb:01", speed_mbps=25000)
    _write_bluefield(tree)
    tree.nvdimm("nmem0", serial="0x56341200")
    tree.nvdimm("nmem1", serial="0x56341201")
    tree.pmem_region(
        "region0", set_cookie="0x1f2e3d4c5b6a7988", size_bytes=16 * GIB, dimms=("nmem0", "nmem1"), numa_node=0,
        namespace="namespace0.0", uuid="6f9619ff-8b86-d011-b42d-00c04fc964ff", block="pmem0",
    )  # fmt: skip
    tree.pci(
        "0000:c1:00.0", parent="pci0000:c0", vendor="1344", device="6400", class_code="050210", numa_node=1,
        driver="cxl_pci", speed_gts=32.0, width=8,
    )  # fmt: skip
    tree.cxl_memory("mem0", pci="0000:c1:00.0", serial="0xabcdef01", ram_bytes=128 * GIB, numa_node=1)
    region = tree.cxl_region("region1", size_bytes=128 * GIB)
    tree.dax("dax1.0", above=f"{region}/dax_region1", size_bytes=128 * GIB, numa_node=1)
    for index in range(2):
        tree.upmem_rank(f"dpu_rank{index}", serial="UP0123456789", index=index, numa_node=1)
    tree.pci("0000:c2:00.0", parent="pci0000:c0", vendor="1a03", device="2000", class_code="030000", numa_node=1)
    return tree


def _write_switch(tree: FakeTree) -> None:
    bridge = {"vendor": "1000", "device": "c030", "class_code": "060400", "driver": "pcieport", "numa_node": 0}
    tree.pci(
        "0000:15:01.0", parent="pci0000:15", vendor="8086", device="352a", class_code="060400", numa_node=0,
        driver="pcieport", role="root-port", speed_gts=32.0, width=16,
    )  # fmt: skip
    tree.pci("0000:16:00.0", parent="0000:15:01.0", role="switch-upstream", **bridge, speed_gts=32.0, width=16)  # type: ignore[arg-type]
    for index, (vendor, device, code, driver) in enumerate(
        (
            ("10de", "2330", "030200", "nvidia"),
            ("15b3", "1021", "020700", "mlx5_core"),
            ("144d", "a824", "010802", "nvme"),
        )
    ):
        port = f"0000:17:{index:02x}.0"
        tree.pci(port, parent="0000:16:00.0", role="switch-downstream", **bridge, speed_gts=32.0, width=16)  # type: ignore[arg-type]
        tree.pci(
            f"0000:{0x18 + index:02x}:00.0", parent=port, vendor=vendor, device=device, class_code=code,
            driver=driver, numa_node=0, iommu_group=40 + index, speed_gts=32.0, width=16,
        )  # fmt: skip
    tree.netdev("ib0", pci="0000:19:00.0", mac="a0:88:c2:ab:5f:40")
    tree.rdma("mlx5_0", pci="0000:19:00.0", node_guid="a088:c203:00ab:5f40", netdev="ib0")
    tree.nvme("nvme0", pci="0000:1a:00.0", serial="S4EVNX0R000001", size_bytes=3_840_755_982_336)


def _write_bluefield(tree: FakeTree) -> None:
    for function, device, code, driver in (
        (0, "a2dc", "020000", "mlx5_core"),
        (1, "a2dc", "020000", "mlx5_core"),
        (2, "c2d5", "080100", ""),
    ):
        tree.pci(
            f"0000:04:00.{function}", parent="pci0000:03", vendor="15b3", device=device, class_code=code,
            driver=driver, numa_node=0, serial="MT2312X00001", speed_gts=32.0, width=16,
        )  # fmt: skip
    tree.netdev("ens2f0np0", pci="0000:04:00.0", mac="94:6d:ae:11:22:33", speed_mbps=400000)
    tree.rdma(
        "mlx5_1", pci="0000:04:00.0", node_guid="946d:ae03:0011:2233", netdev="ens2f0np0", link_layer="Ethernet",
        gids={
            "fe80:0000:0000:0000:966d:aeff:fe11:2233": "RoCE v2",
            "0000:0000:0000:0000:0000:ffff:0a01:0203": "RoCE v2",
        },
    )  # fmt: skip
    tree.beside("dev/rshim0/misc", "DISPLAY_LEVEL 0\nBF_MODE DPU mode\nDEV_NAME pcie-0000:04:00.2")
