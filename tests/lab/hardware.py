"""The guest's hardware, as QEMU's command line and as what the checks expect to see."""

from __future__ import annotations

from pathlib import Path

MIB = 1 << 20
NVDIMM_NODES = (0, 1, 0)
"""The NUMA node of each NVDIMM; each makes up a region, which the kernel numbers by its own order."""

NODE_MIB = 640
NVDIMM_BYTES = 256 * MIB
LABEL_BYTES = 128 << 10
CXL_BYTES = 256 * MIB
NVME_BYTES = 64 * MIB

CXL_SERIAL = 0x4C41_4200_0000_0001

FAR_NVME = "LABNVME1"
"""Serial number of the NVMe behind the bridge that belongs to NUMA node 1."""

HOT_NVME = "LABNVME2"
"""Serial number of the NVMe that is unplugged and plugged."""

FAR_PORT = "port1"
"""QEMU's name of the root port above the first NVMe: where AER errors are injected."""

# As wide and as fast as what is plugged in: QEMU's own port has 32 lanes, and would rightly be called narrow.
_PORT = "x-speed=2_5,x-width=1"

# The backing file holds the label area too: without room for it the namespace ends off a 2 MiB boundary, and devdax
# refuses it as misaligned.
IMAGES = {
    "nvdimm0": NVDIMM_BYTES + LABEL_BYTES,
    "nvdimm1": NVDIMM_BYTES + LABEL_BYTES,
    "nvdimm2": NVDIMM_BYTES + LABEL_BYTES,
    "nvme1": NVME_BYTES,
    "nvme2": NVME_BYTES,
    "cxl": CXL_BYTES,
    "cxl-label": 2 * MIB,
}

# In the order in which they are loaded; there is no udev in the guest that would do it.
MEMORY_MODULES = ("nfit", "nd_pmem", "dax_pmem", "device_dax")
MODULES = (
    *MEMORY_MODULES, "virtio_net", "dummy", "nvme", "cxl_acpi", "cxl_pci",
    "cxl_mem", "cxl_port", "cxl_pmem", "ib_uverbs", "rdma_rxe",
)  # fmt: skip


def hot_nvme() -> dict[str, object]:
    """Return the arguments of QMP's ``device_add`` for the NVMe that comes and goes."""
    return {"driver": "nvme", "id": "hot", "serial": HOT_NVME, "drive": "drive2", "bus": "port2"}


def arguments(images: Path) -> list[str]:
    """Return QEMU's arguments for processors, memory and devices; ``images`` holds :data:`IMAGES`."""
    total = 2 * NODE_MIB
    lines = [
        # 5-level page tables would cost every emulated access another step.
        "-cpu max,la57=off -smp 2,sockets=2",
        f"-M q35,nvdimm=on,cxl=on,cxl-fmw.0.targets.0=cxl0,cxl-fmw.0.size=4G -m {total}M,slots=4,maxmem=6G",
    ]
    for node in (0, 1):
        lines += [
            f"-object memory-backend-ram,id=ram{node},size={NODE_MIB}M",
            f"-numa node,nodeid={node},cpus={node},memdev=ram{node}",
        ]
    for index, node in enumerate(NVDIMM_NODES):
        size = NVDIMM_BYTES + LABEL_BYTES
        lines += [
            f"-object memory-backend-file,id=pmem{index},share=on,mem-path={images}/nvdimm{index},size={size}",
            f"-device nvdimm,id=nvdimm{index},memdev=pmem{index},label-size={LABEL_BYTES},node={node},"
            f"uuid={f'{index + 1}' * 8}-0000-4000-8000-000000000000",
        ]
    lines += [
        f"-drive if=none,id=drive1,file={images}/nvme1,format=raw",
        f"-drive if=none,id=drive2,file={images}/nvme2,format=raw",
        "-device pxb-pcie,id=far,bus_nr=64,bus=pcie.0,numa_node=1",
        f"-device pcie-root-port,id={FAR_PORT},bus=far,chassis=1,slot=1,{_PORT}",
        f"-device nvme,serial={FAR_NVME},drive=drive1,bus={FAR_PORT}",
        f"-device pcie-root-port,id=port2,bus=pcie.0,chassis=2,slot=2,{_PORT}",
        "-device " + ",".join(f"{name}={value}" for name, value in hot_nvme().items()).removeprefix("driver="),
        "-netdev user,id=net0,restrict=on -device virtio-net-pci,netdev=net0,romfile=,bus=pcie.0",
        "-device pxb-cxl,id=cxl0,bus_nr=128,bus=pcie.0 -device cxl-rp,id=cxlport,port=0,bus=cxl0,chassis=3,slot=3",
        f"-object memory-backend-file,id=cxlmem,share=on,mem-path={images}/cxl,size={CXL_BYTES}",
        f"-object memory-backend-file,id=cxllabel,share=on,mem-path={images}/cxl-label,size={IMAGES['cxl-label']}",
        f"-device cxl-type3,id=cxlmem0,bus=cxlport,memdev=cxlmem,lsa=cxllabel,sn={CXL_SERIAL:#x}",
    ]
    return " ".join(lines).split(" ")


def make_images(folder: Path) -> None:
    """Create the images anew, all zeros and sparse."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in IMAGES.items():
        path = folder / name
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
