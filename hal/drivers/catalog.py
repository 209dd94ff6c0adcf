"""Which of this project's plugins drives which hardware, so that the core can say what to install.

PCI ids and names are those of pci.ids; classes those of the PCI Code and ID Assignment Specification. A plugin that is
installed speaks for itself through its own table; this one only serves where none is.
"""

from __future__ import annotations

import msgspec

from hal.drivers.match import Match
from hal.model.kind import Kind


class Known(msgspec.Struct, frozen=True):
    """A plugin of this project, the kinds it drives, and the hardware it matches, most specific rows first."""

    distribution: str
    matches: tuple[Match, ...]


def _pci(vendor: str, model: str, *devices: str, kind: Kind = Kind.GPU, cls: str = "") -> Match:
    return Match(kind=kind, pci_vendor=vendor, pci_devices=devices, pci_class=cls, model=model)


KNOWN: tuple[Known, ...] = (
    Known(
        "rackhal-nvidia",
        (
            _pci("10de", "H100 80GB", "2330", "2331", "2339"),
            _pci("10de", "H200 141GB", "2335"),
            _pci("10de", "GH200", "2342"),
            _pci("10de", "B200", "2901"),
            _pci("10de", "GB200", "2941"),
            _pci("10de", "A100 40GB", "20b0", "20f1"),
            _pci("10de", "A100 80GB", "20b2", "20b5"),
            _pci("10de", "A30", "20b7"),
            _pci("10de", "L40S", "26b9"),
            _pci("10de", "L4", "27b8"),
            _pci("10de", "T4", "1eb8"),
            _pci("10de", "V100", "1db1", "1db4", "1db5", "1db6"),
            _pci("10de", "NVIDIA GPU", cls="0302"),
            _pci("10de", "NVIDIA GPU", cls="0300"),
        ),
    ),
    Known(
        "rackhal-amd",
        (
            _pci("1002", "Instinct MI300X", "74a1", "74b5"),
            _pci("1002", "Instinct MI300A", "74a0"),
            _pci("1002", "Instinct MI250X", "7408", "740c"),
            _pci("1002", "AMD accelerator", cls="1200"),
            _pci("1002", "AMD accelerator", cls="0380"),
            _pci("1002", "AMD GPU", cls="0300"),
        ),
    ),
    Known(
        "rackhal-bluefield",
        (
            _pci("15b3", "BlueField-2", "a2d6", kind=Kind.DPU),
            _pci("15b3", "BlueField-3", "a2d9", "a2dc", kind=Kind.DPU),
            _pci("15b3", "BlueField-4", "a2df", kind=Kind.DPU),
            _pci("15b3", "BlueField management", "c2d3", "c2d4", "c2d5", "c2d6", kind=Kind.DPU),
        ),
    ),
    Known(
        "rackhal-rdma",
        (
            _pci("15b3", "ConnectX-4", "1013", "1015", kind=Kind.RNIC),
            _pci("15b3", "ConnectX-5", "1017", "1019", kind=Kind.RNIC),
            _pci("15b3", "ConnectX-6", "101b", "101d", "101f", kind=Kind.RNIC),
            _pci("15b3", "ConnectX-7", "1021", kind=Kind.RNIC),
            _pci("15b3", "ConnectX-8", "1023", kind=Kind.RNIC),
            _pci("15b3", "InfiniBand adapter", kind=Kind.RNIC, cls="0207"),
            Match(kind=Kind.RNIC, subsystem="class/infiniband", model="RDMA device"),
        ),
    ),
    Known(
        "rackhal-pmem",
        (
            Match(kind=Kind.PMEM, subsystem="bus/nd/devices", model="persistent memory"),
            Match(kind=Kind.PMEM, pci_class="0502", model="CXL memory device"),
        ),
    ),
    Known("rackhal-upmem", (Match(kind=Kind.UPMEM, subsystem="class/dpu_rank", model="UPMEM rank"),)),
)

KERNEL_MODULES: dict[Kind, tuple[str, str]] = {
    Kind.GPU: ("nvidia", "install the vendor's kernel driver, then: modprobe nvidia (or amdgpu)"),
    Kind.DPU: ("mlx5_core", "modprobe mlx5_core; for the card's own side: apt install rshim && systemctl start rshim"),
    Kind.RNIC: ("mlx5_ib", "apt install rdma-core && modprobe mlx5_ib (or the module of your vendor)"),
    Kind.PMEM: ("nd_pmem", "modprobe nd_pmem dax_pmem; for CXL: modprobe cxl_pci cxl_mem"),
    Kind.UPMEM: ("dpu", "install UPMEM's driver package, then: modprobe dpu"),
}


def plugin_for(kind: Kind) -> tuple[str, ...]:
    """Return the distributions of this project that drive a kind."""
    return tuple(known.distribution for known in KNOWN if any(match.kind is kind for match in known.matches))


def drives(vendor: str, device: str, class_code: str, kind: Kind | None = None) -> tuple[str, str] | None:
    """Return (distribution, model) for a PCI function, or None if nothing of ours drives it."""
    for known in KNOWN:
        for match in known.matches:
            if kind is not None and match.kind is not kind:
                continue
            if match.fits_pci(vendor, device, class_code):
                return known.distribution, match.model
    return None
