"""UPMEM ranks as UPMEM's driver shows them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hal_mocks.graph import UpmemDimm, UpmemRank
from hal_mocks.sysfs_files import Files

_RANK_MAJOR = 241
_VPD_RANKS = 4


def upmem_vpd(ranks: Sequence[UpmemRank]) -> bytes:
    """Return the vital product data of an UPMEM DIMM: which DPUs of each rank are disabled, and no repairs.

    ``struct dpu_vpd_header`` of UPMEM's SDK, version 0x4000: 16 bytes, then three masks of 64 bits for each
    of four ranks.
    """
    masks = {rank.index: sum(1 << dpu for dpu in set(rank.disabled)) for rank in ranks}
    each = b"".join(struct.pack("<QQQ", masks.get(index, 0), 0, 0) for index in range(_VPD_RANKS))
    size = struct.calcsize("<4sIHBxHH") + len(each)
    return struct.pack("<4sIHBxHH", b"UPMV", 0x4000, size, len(ranks), 0, 0) + each


def add_upmem_rank(files: Files, dimm: UpmemDimm, rank: UpmemRank, vpd: bytes) -> None:
    """Add a rank with the attributes of UPMEM's driver; ``vpd`` is that of its DIMM."""
    number = int("".join(filter(str.isdigit, rank.name)) or 0)
    above = f"sys/devices/platform/dpu_region_mem.{number}"
    files.file(f"{above}/numa_node", dimm.numa_node)
    path = f"{above}/dpu_rank/{rank.name}"
    division = 2
    files.device(
        path,
        "class/dpu_rank",
        {
            "is_owned": 0,
            "usage_count": 0,
            "mode": "perf",
            "rank_id": number,
            "rank_index": rank.index,
            "rank_count": len(dimm.ranks),
            "channel_id": dimm.channel,
            "slot_index": dimm.slot,
            "nb_ci": rank.control_interfaces,
            "nb_dpus_per_ci": rank.dpus_per_ci,
            "mram_size": rank.mram_bytes,
            "fck_frequency": rank.clock_hz * division // 1_000_000,
            "clock_division": division,
            "dpu_chip_id": {"v1A": 8, "v1B": 9}.get(rank.chip, 8),
            "backend_id": 0,
            "byte_order": "0x0",
            "part_number": dimm.part_number,
            "serial_number": dimm.serial,
            "mcu_version": "1.0",
            "debug_mode": 0,
            "signal_led": 0,
            "dimm_vpd": vpd,
        },
        {"MAJOR": _RANK_MAJOR, "MINOR": number, "DEVNAME": rank.name},
    )
    files.link(f"{path}/device", above)
