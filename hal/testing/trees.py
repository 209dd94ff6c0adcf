"""Write a small sysfs of your own: for tests of host discovery and of drivers that read sysfs.

::

    tree = FakeTree(tmp_path)
    tree.numa(0, cpus="0-3")
    tree.pci("0000:17:00.0", parent="pci0000:16", vendor="10de", device="2330", class_code="030200", numa_node=0)
    tree.fifo("bus/pci/devices/0000:17:00.0/numa_node")  # the kernel hangs there
    HostRoot(node="n0", root=tree.root)

Paths are relative to the sysfs. The layout and the file names are the kernel's (Documentation/ABI/*/sysfs-*).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from hal.testing.pci_bytes import pci_config, pci_vpd

Text = str | int | bytes


class FakeTree:
    """A folder that stands for a machine's ``/``, filled by what a test asks for."""

    def __init__(self, folder: Path | str) -> None:
        self.root = str(folder)
        self.sys = os.path.join(self.root, "sys")
        os.makedirs(self.sys, exist_ok=True)
        self._pci: dict[str, str] = {}

    # ---- plain files -------------------------------------------------------------------------------------------

    def write(self, path: str, value: Text) -> None:
        """Write one attribute; text and numbers get a newline as the kernel gives them."""
        where = self._make_room(path)
        with open(where, "wb") as file:
            file.write(value if isinstance(value, bytes) else f"{value}\n".encode())

    def link(self, path: str, target: str) -> None:
        """Make a relative link between two paths of the sysfs."""
        where = self._make_room(path)
        os.symlink(posixpath.relpath(target, posixpath.dirname(path) or "."), where)

    def folder(self, path: str) -> None:
        """Make an empty folder, in place of whatever was there."""
        os.makedirs(self._make_room(path), exist_ok=True)

    def fifo(self, path: str) -> None:
        """Put a pipe without a writer in place of an attribute: whoever reads it the plain way hangs."""
        os.mkfifo(self._make_room(path))

    def garbage(self, path: str) -> None:
        """Put bytes that are no UTF-8 in place of an attribute."""
        self.write(path, b"\xff\xfe\x80garbage\n")

    def unreadable(self, path: str) -> None:
        """Make an attribute that nobody may read (empty and of mode 000, which discovery believes even as root)."""
        self.write(path, b"")
        os.chmod(os.path.join(self.sys, path), 0)

    def remove(self, path: str) -> None:
        """Take a file, a link or a folder with all in it away."""
        where = os.path.join(self.sys, path)
        if os.path.islink(where) or not os.path.isdir(where):
            if os.path.lexists(where):
                os.unlink(where)
        else:
            import shutil

            shutil.rmtree(where)

    def beside(self, path: str, value: Text) -> None:
        """Write a file outside sysfs (``proc/cpuinfo``, ``dev/rshim0/misc``)."""
        self.write(posixpath.join("..", path), value)

    def _make_room(self, path: str) -> str:
        where = os.path.join(self.sys, path)
        os.makedirs(os.path.dirname(where), exist_ok=True)
        if os.path.islink(where) or os.path.isfile(where) or (os.path.lexists(where) and not os.path.isdir(where)):
            os.unlink(where)
        elif os.path.isdir(where):
            import shutil

            shutil.rmtree(where)
        return where

    # ---- devices -----------------------------------------------------------------------------------------------

    def device(
        self,
        path: str,
        subsystem: str,
        attributes: Mapping[str, Text],
        *,
        uevent: Mapping[str, str | int] | None = None,
        driver: str = "",
        name: str = "",
    ) -> str:
        """Make a device folder and its entry in ``class/…`` or ``bus/…/devices``; return its path."""
        os.makedirs(os.path.join(self.sys, path), exist_ok=True)
        for key, value in attributes.items():
            self.write(f"{path}/{key}", value)
        lines = dict(uevent or {})
        if driver:
            lines = {"DRIVER": driver, **lines}
        self.write(f"{path}/uevent", "\n".join(f"{key}={value}" for key, value in lines.items()))
        entry = name or posixpath.basename(path)
        listing = f"{subsystem}/devices" if subsystem.startswith("bus/") else subsystem
        if f"{listing}/{entry}" != path:
            self.link(f"{listing}/{entry}", path)
        self.link(f"{path}/subsystem", subsystem)
        if driver:
            home = f"{subsystem}/drivers/{driver}"
            os.makedirs(os.path.join(self.sys, home), exist_ok=True)
            self.link(f"{path}/driver", home)
        return path

    def numa(
        self, node: int, *, cpus: str = "", memory_bytes: int = 64 << 30, distances: Sequence[int] = (10,)
    ) -> None:
        """Make a NUMA node; ``cpus`` is a kernel list (``0-3,8-11``)."""
        base = f"devices/system/node/node{node}"
        self.write(f"{base}/cpulist", cpus)
        self.write(f"{base}/distance", " ".join(str(distance) for distance in distances))
        self.write(f"{base}/meminfo", f"Node {node} MemTotal:       {memory_bytes >> 10} kB\nNode {node} MemFree: 1 kB")

    def pci(
        self,
        address: str,
        *,
        parent: str = "pci0000:00",
        vendor: str,
        device: str,
        class_code: str,
        numa_node: int | None = None,
        local_cpus: str = "",
        subsystem_vendor: str = "0000",
        subsystem_device: str = "0000",
        driver: str = "",
        speed_gts: float = 0.0,
        max_speed_gts: float = 0.0,
        width: int = 0,
        max_width: int = 0,
        role: str = "endpoint",
        serial: str = "",
        iommu_group: int | None = None,
    ) -> str:
        """Make a PCI function below a bridge (its address) or a host bridge (``pci0000:16``); return its path.

        ``class_code`` has six hexadecimal digits. ``serial`` is written into the vital product data. A link speed of
        0 means that the function has no PCI Express link.
        """
        above = self._pci.get(parent, f"devices/{parent}")
        path = self._pci[address] = f"{above}/{address}"
        link = (speed_gts, width, max_speed_gts or speed_gts, max_width or width) if speed_gts else None
        attributes: dict[str, Text] = {
            "vendor": f"0x{vendor}",
            "device": f"0x{device}",
            "class": f"0x{class_code}",
            "subsystem_vendor": f"0x{subsystem_vendor}",
            "subsystem_device": f"0x{subsystem_device}",
            "revision": "0x00",
            "config": pci_config(vendor, device, class_code, role, link=link),
        }
        if numa_node is not None:
            attributes["numa_node"] = numa_node
        if local_cpus:
            attributes["local_cpulist"] = local_cpus
        if speed_gts:
            attributes["current_link_speed"] = f"{speed_gts} GT/s PCIe"
            attributes["max_link_speed"] = f"{max_speed_gts or speed_gts} GT/s PCIe"
            attributes["current_link_width"] = width
            attributes["max_link_width"] = max_width or width
        if serial:
            attributes["vpd"] = pci_vpd({"PN": "FAKE", "SN": serial})
        uevent = {
            "PCI_CLASS": f"{int(class_code, 16):X}",
            "PCI_ID": f"{vendor}:{device}".upper(),
            "PCI_SUBSYS_ID": f"{subsystem_vendor}:{subsystem_device}".upper(),
            "PCI_SLOT_NAME": address,
        }
        self.device(path, "bus/pci", attributes, uevent=uevent, driver=driver)
        if iommu_group is not None:
            os.makedirs(os.path.join(self.sys, f"kernel/iommu_groups/{iommu_group}"), exist_ok=True)
            self.link(f"{path}/iommu_group", f"kernel/iommu_groups/{iommu_group}")
        return path

    def path_of(self, address: str) -> str:
        """Return where a PCI function's folder is."""
        return self._pci[address]

    def netdev(
        self, name: str, *, pci: str = "", mac: str = "02:00:00:00:00:01", speed_mbps: int = 0, operstate: str = "up"
    ) -> str:
        """Make a network interface of a PCI function, or a virtual one."""
        above = self._pci[pci] if pci else "devices/virtual"
        attributes: dict[str, Text] = {"address": mac, "operstate": operstate, "mtu": 1500}
        if speed_mbps:
            attributes["speed"] = speed_mbps
        path = self.device(f"{above}/net/{name}", "class/net", attributes, uevent={"INTERFACE": name})
        if pci:
            self.link(f"{path}/device", above)
        return path

    def rdma(
        self,
        name: str,
        *,
        node_guid: str,
        pci: str = "",
        netdev: str = "",
        link_layer: str = "InfiniBand",
        state: str = "4: ACTIVE",
        rate: str = "400 Gb/sec (4X NDR)",
        gids: Mapping[str, str] | None = None,
        firmware: str = "28.39.1002",
        model: str = "MT4129",
        board_id: str = "MT_0000000838",
        ports: int = 1,
        counters: bool = True,
    ) -> str:
        """Make an RDMA device. ``node_guid`` as the kernel prints it (``a088:c203:00ab:5f40``); ``gids`` maps a GID to
        its type (``IB/RoCE v1``, ``RoCE v2``).
        """
        above = self._pci[pci] if pci else "devices/virtual"
        path = f"{above}/infiniband/{name}"
        attributes: dict[str, Text] = {
            "node_guid": node_guid,
            "sys_image_guid": node_guid,
            "node_type": "1: CA",
            "fw_ver": firmware,
            "board_id": board_id,
        }
        if pci:
            attributes["hca_type"] = model
        for port in range(1, ports + 1):
            base = f"ports/{port}"
            attributes |= {
                f"{base}/state": state,
                f"{base}/phys_state": "5: LinkUp",
                f"{base}/rate": rate,
                f"{base}/link_layer": link_layer,
                f"{base}/lid": "0x1",
            }
            for index, (gid, kind) in enumerate((gids or {f"fe80:0000:0000:0000:{node_guid}": "IB/RoCE v1"}).items()):
                attributes[f"{base}/gids/{index}"] = gid
                attributes[f"{base}/gid_attrs/types/{index}"] = kind
                if netdev:
                    attributes[f"{base}/gid_attrs/ndevs/{index}"] = netdev
            if counters:
                attributes[f"{base}/counters/link_downed"] = 0
                attributes[f"{base}/counters/symbol_error"] = 0
        self.device(path, "class/infiniband", attributes, uevent={"NAME": name})
        if pci:
            self.link(f"{path}/device", above)
        return path

    def nvme(self, name: str, *, pci: str, model: str = "FAKE NVME", serial: str, size_bytes: int = 1 << 40) -> str:
        """Make an NVMe controller with one namespace."""
        above = self._pci[pci]
        attributes: dict[str, Text] = {
            "model": model,
            "serial": serial,
            "firmware_rev": "1.0",
            "state": "live",
            "transport": "pcie",
            "address": pci,
        }
        path = self.device(f"{above}/nvme/{name}", "class/nvme", attributes, uevent={"NVME_TRTYPE": "pcie"})
        self.link(f"{path}/device", above)
        self.device(f"{path}/{name}n1", "class/block", {"size": size_bytes // 512}, uevent={"DEVNAME": f"{name}n1"})
        return path

    def nvdimm(self, name: str, *, serial: str, bus: str = "ndbus0", id: str = "", locked: bool = False) -> str:
        """Make a persistent DIMM (``nmem0``)."""
        attributes: dict[str, Text] = {
            "nfit/serial": serial,
            "nfit/id": id or f"8680-{serial.removeprefix('0x')}",
            "state": "idle",
            "security": "locked" if locked else "disabled",
            "flags": "",
        }
        path = f"devices/platform/nfit/{bus}/{name}"
        return self.device(path, "bus/nd", attributes, uevent={"DEVTYPE": "nvdimm"}, driver="nvdimm")

    def pmem_region(
        self,
        name: str,
        *,
        set_cookie: str,
        size_bytes: int,
        dimms: Sequence[str] = (),
        numa_node: int | None = None,
        bus: str = "ndbus0",
        persistence_domain: str = "memory_controller",
        mode: str = "fsdax",
        namespace: str = "",
        uuid: str = "",
        block: str = "",
        numa_on_namespace: bool = False,
    ) -> str:
        """Make a region, and with ``namespace`` one namespace that fills it (and its block device)."""
        path = f"devices/platform/nfit/{bus}/{name}"
        attributes: dict[str, Text] = {
            "set_cookie": set_cookie,
            "size": size_bytes,
            "available_size": 0 if namespace else size_bytes,
            "persistence_domain": persistence_domain,
            "read_only": 0,
            "nstype": 2,
            "mappings": len(dimms),
            "badblocks": "",
        }
        if numa_node is not None and not numa_on_namespace:
            attributes["numa_node"] = numa_node
        for index, dimm in enumerate(dimms):
            attributes[f"mapping{index}"] = f"{dimm},0,{size_bytes // max(1, len(dimms))},{index}"
        self.device(path, "bus/nd", attributes, uevent={"DEVTYPE": "nd_pmem"}, driver="nd_region")
        if namespace:
            inner: dict[str, Text] = {"mode": mode, "size": size_bytes, "uuid": uuid}
            if numa_node is not None and numa_on_namespace:
                inner["numa_node"] = numa_node
            below = self.device(f"{path}/{namespace}", "bus/nd", inner, uevent={"DEVTYPE": "nd_namespace_pmem"})
            if block:
                self.device(f"{below}/block/{block}", "class/block", {"size": size_bytes // 512})
        return path

    def dax(self, name: str, *, above: str = "devices/platform/hmem.0", size_bytes: int, numa_node: int = 0) -> str:
        """Make a DAX device below a region's or a platform device's folder."""
        attributes: dict[str, Text] = {"size": size_bytes, "target_node": numa_node, "numa_node": numa_node}
        return self.device(f"{above}/{name}", "bus/dax", attributes, driver="device_dax")

    def cxl_memory(
        self, name: str, *, pci: str, serial: str, ram_bytes: int = 0, pmem_bytes: int = 0, numa_node: int = 0
    ) -> str:
        """Make a CXL memory device of a PCI function."""
        attributes: dict[str, Text] = {
            "serial": serial,
            "firmware_version": "1.0",
            "numa_node": numa_node,
            "ram/size": hex(ram_bytes),
            "pmem/size": hex(pmem_bytes),
        }
        return self.device(f"{self._pci[pci]}/{name}", "bus/cxl", attributes, uevent={"DEVTYPE": "cxl_memdev"})

    def cxl_region(self, name: str, *, size_bytes: int, mode: str = "ram", uuid: str = "", ways: int = 1) -> str:
        """Make a region of CXL memory."""
        attributes: dict[str, Text] = {
            "size": hex(size_bytes),
            "mode": mode,
            "uuid": uuid,
            "interleave_ways": ways,
            "commit": 1,
        }
        path = f"devices/platform/ACPI0017:00/root0/decoder0.0/{name}"
        return self.device(path, "bus/cxl", attributes, uevent={"DEVTYPE": "cxl_region"}, driver="cxl_region")

    def upmem_rank(
        self,
        name: str,
        *,
        serial: str,
        index: int,
        numa_node: int | None = None,
        channel: int = 0,
        control_interfaces: int = 8,
        dpus_per_ci: int = 8,
        mram_bytes: int = 64 << 20,
        clock_mhz: int = 350,
        part_number: str = "UPMEM-E19",
    ) -> str:
        """Make one rank of an UPMEM DIMM."""
        attributes: dict[str, Text] = {
            "is_owned": 0,
            "usage_count": 0,
            "mode": "safe",
            "rank_index": index,
            "rank_count": 2,
            "channel_id": channel,
            "nb_ci": control_interfaces,
            "nb_dpus_per_ci": dpus_per_ci,
            "mram_size": mram_bytes,
            "fck_frequency": clock_mhz,
            "dpu_chip_id": 8,
            "part_number": part_number,
            "serial_number": serial,
            "mcu_version": "v1.4",
        }
        if numa_node is not None:
            attributes["numa_node"] = numa_node
        return self.device(f"devices/platform/dpu_region_mem.0/dpu_rank/{name}", "class/dpu_rank", attributes)
