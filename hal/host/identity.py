"""What PCI numbers mean: vendors, GPUs, BlueField functions. Facts of the PCI ID list."""

from __future__ import annotations

VENDORS = {
    "1000": "Broadcom",
    "1002": "AMD",
    "1022": "AMD",
    "102b": "Matrox",
    "10b5": "PLX",
    "10de": "NVIDIA",
    "10ee": "Xilinx",
    "11f8": "Microchip",
    "1344": "Micron",
    "144d": "Samsung",
    "14e4": "Broadcom",
    "15b3": "NVIDIA (Mellanox)",
    "15b7": "SanDisk",
    "19e5": "Huawei",
    "1a03": "ASPEED",
    "1af4": "Red Hat (virtio)",
    "1ae0": "Google",
    "1b36": "Red Hat (QEMU)",
    "1b4b": "Marvell",
    "1c5c": "SK hynix",
    "1cc1": "ADATA",
    "1d0f": "Amazon",
    "1da3": "Habana Labs",
    "1dd8": "AMD Pensando",
    "1e0f": "KIOXIA",
    "8086": "Intel",
}

GPU_VENDORS = frozenset({"10de", "1002", "8086", "1ed5", "1da3"})
"""Who makes GPUs. A VGA of a BMC (1a03, 102b) or of a hypervisor (1234, 1af4, 15ad, 1b36) is none."""

_GPU_CLASSES = ("0300", "0302", "0380")
_PROCESSING = "1200"
_PROCESSING_VENDORS = frozenset({"10de", "1002", "8086", "1da3"})

BLUEFIELD = {
    "a2d2": ("nic", "BlueField"),
    "a2d3": ("nic", "BlueField"),
    "a2d6": ("nic", "BlueField-2"),
    "a2d9": ("nic", "BlueField-3 Lx"),
    "a2dc": ("nic", "BlueField-3"),
    "a2df": ("nic", "BlueField-4"),
    "c2d2": ("management", "BlueField"),
    "c2d3": ("management", "BlueField-2"),
    "c2d4": ("management", "BlueField-3 Lx"),
    "c2d5": ("management", "BlueField-3"),
    "c2d6": ("management", "BlueField-4"),
    "a2d4": ("crypto", "BlueField-2"),
    "a2d5": ("crypto", "BlueField-2"),
    "a2da": ("crypto", "BlueField-3"),
    "a2db": ("crypto", "BlueField-3"),
    "c2d1": ("auxiliary", ""),
}
"""Functions of 15b3 that belong to a BlueField: what they are for, and which generation they tell of."""


RNICS = {
    ("15b3", "1013"): "NVIDIA ConnectX-4",
    ("15b3", "1015"): "NVIDIA ConnectX-4 Lx",
    ("15b3", "1017"): "NVIDIA ConnectX-5",
    ("15b3", "1019"): "NVIDIA ConnectX-5 Ex",
    ("15b3", "101b"): "NVIDIA ConnectX-6",
    ("15b3", "101d"): "NVIDIA ConnectX-6 Dx",
    ("15b3", "101f"): "NVIDIA ConnectX-6 Lx",
    ("15b3", "1021"): "NVIDIA ConnectX-7",
    ("15b3", "1023"): "NVIDIA ConnectX-8",
    ("15b3", "a2d6"): "NVIDIA BlueField-2",
    ("15b3", "a2dc"): "NVIDIA BlueField-3",
    ("15b3", "a2df"): "NVIDIA BlueField-4",
    ("8086", "1591"): "Intel E810-C",
    ("8086", "1592"): "Intel E810-C",
    ("8086", "1593"): "Intel E810-C",
}
"""What people call RDMA NICs: the kernel's ``hca_type`` is a number (``MT4129``), or the name of a driver."""


def is_bluefield(vendor: str, device: str) -> bool:
    """True if a PCI function belongs to a BlueField."""
    return vendor == "15b3" and device in BLUEFIELD


def is_gpu(vendor: str, class_code: str) -> bool:
    """True if a PCI function is a GPU, or a processing accelerator that is used like one.

    ``class_code`` has six hexadecimal digits.
    """
    if class_code[:4] in _GPU_CLASSES:
        return vendor in GPU_VENDORS
    return class_code[:4] == _PROCESSING and vendor in _PROCESSING_VENDORS
