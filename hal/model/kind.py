"""What sorts of device there are."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """A family of devices with one interface.

    The first five have an interface and can be opened. The rest belong to the host: they are listed, placed and
    counted, and the kernel drives them.
    """

    GPU = "gpu"
    DPU = "dpu"
    RNIC = "rnic"
    PMEM = "pmem"
    UPMEM = "upmem"

    CPU = "cpu"
    MEMORY = "memory"
    NIC = "nic"
    NVME = "nvme"
    SWITCH = "switch"
    PCI = "pci"

    @property
    def is_accelerator(self) -> bool:
        """True for the five kinds that have an interface of their own."""
        return self in ACCELERATORS


ACCELERATORS: frozenset[Kind] = frozenset({Kind.GPU, Kind.DPU, Kind.RNIC, Kind.PMEM, Kind.UPMEM})
