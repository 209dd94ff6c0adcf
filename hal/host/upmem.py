"""UPMEM ranks (``class/dpu_rank``) and the DIMMs that hold them."""

from __future__ import annotations

from math import prod

from hal.host.missing import Missing
from hal.host.numa import Place
from hal.host.scan import Scan, word
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_CLASS = "class/dpu_rank"
_VPD_BYTES, _VPD_HEADER_BYTES, _VPD_RANKS, _VPD_VERSION = 2048, 16, 4, 0x4000


class _Rank:
    __slots__ = ("dimm", "facts", "index", "name", "place")

    def __init__(
        self, name: str, dimm: str | None, index: int | None, place: Place, facts: dict[str, Attribute]
    ) -> None:
        self.name = name
        self.dimm = dimm
        self.index = index
        self.place = place
        self.facts = facts


def find_ranks(scan: Scan) -> None:
    """Add the DIMMs, then the ranks, each with its DIMM as parent."""
    tree = scan.tree
    ranks: list[_Rank] = []
    for name in sorted(tree.names(_CLASS), key=_number):
        if scan.expired():
            break
        path = tree.resolve(f"{_CLASS}/{name}")
        if path is not None:
            ranks.append(_read_rank(scan, name, path))
    dimms: dict[str, str] = {}
    for rank in ranks:
        if rank.dimm is not None and rank.dimm not in dimms:
            dimms[rank.dimm] = _add_dimm(scan, rank.dimm, f"dimm{len(dimms)}", rank, ranks)
    for rank in ranks:
        own = None if rank.dimm is None or rank.index is None else f"upmem-{rank.dimm}-{rank.index}"
        dpus, mram = rank.facts["dpus"].value, rank.facts["mram_bytes"].value
        capacity: dict[str, int] = {}
        if isinstance(dpus, int):
            capacity["dpus"] = dpus
            if isinstance(mram, int):
                capacity["memory_bytes"] = dpus * mram
        scan.add(
            id=own,
            else_id=f"upmem/{rank.name}",
            kind=Kind.UPMEM,
            name=rank.name,
            location=scan.locate(None, rank.place),
            attributes=rank.facts,
            aliases=("rank:" + rank.name,),
            capacity=capacity,
            parent=dimms.get(rank.dimm) if rank.dimm is not None else None,
        )


def _number(name: str) -> tuple[int, str]:
    digits = name[8:]
    return (int(digits) if digits.isdecimal() and len(digits) < 9 else -1, name)


def _read_rank(scan: Scan, name: str, path: str) -> _Rank:
    tree = scan.tree
    place = scan.placement.place_folder(name, path, ("device",))
    facts = scan.facts(None, place)
    serial = tree.line(path + "/serial_number")
    facts["serial"] = (
        Attribute(serial, "sysfs:serial_number") if isinstance(serial, str) else serial.attribute("sysfs:serial_number")
    )
    index = tree.count(path, "rank_index")
    facts["rank_index"] = index
    facts["model"] = tree.text(path, "part_number")
    facts["firmware"] = tree.text(path, "mcu_version")
    facts["channel"] = tree.count(path, "channel_id")
    facts["owned"] = tree.count(path, "is_owned")
    facts["usage_count"] = tree.count(path, "usage_count")
    facts["safe_mode"] = tree.text(path, "mode")
    interfaces, each = tree.count(path, "nb_ci"), tree.count(path, "nb_dpus_per_ci")
    facts["control_interfaces"], facts["dpus_per_ci"] = interfaces, each
    if (
        isinstance(interfaces.value, int)
        and isinstance(each.value, int)
        and 0 < interfaces.value * each.value < 1 << 16
    ):
        facts["dpus"] = Attribute(interfaces.value * each.value, "sysfs:nb_ci*nb_dpus_per_ci")
    else:
        facts["dpus"] = (
            each
            if not each.known
            else interfaces
            if not interfaces.known
            else Attribute(source="sysfs:nb_ci", absent=Absence.MALFORMED)
        )
    _mask_disabled(tree, path, facts)
    facts["mram_bytes"] = tree.count(path, "mram_size")
    facts["clock_hz"] = _clock(tree, path)
    return _Rank(name, word(serial), index.value if isinstance(index.value, int) else None, place, facts)


def _mask_disabled(tree: Tree, path: str, facts: dict[str, Attribute]) -> None:
    """Take the processing units that are disabled for good off ``dpus``, if the DIMM's data can be read."""
    all_units, index = facts["dpus"].value, facts["rank_index"].value
    data = tree.read_bytes(path + "/dimm_vpd", _VPD_BYTES)
    if not isinstance(all_units, int) or all_units > 64 or not isinstance(index, int):
        return
    if isinstance(data, Missing):
        facts["disabled_dpus"] = data.attribute("sysfs:dimm_vpd")
        return
    mask = _disabled_mask(data, index)
    if mask is None or mask >> all_units:
        facts["disabled_dpus"] = Attribute(source="sysfs:dimm_vpd", absent=Absence.MALFORMED)
        return
    disabled = tuple(dpu for dpu in range(all_units) if mask >> dpu & 1)
    facts["disabled_dpus"] = Attribute(disabled, "sysfs:dimm_vpd")
    if disabled:
        facts["dpus"] = Attribute(all_units - len(disabled), "sysfs:nb_ci*nb_dpus_per_ci-dimm_vpd")


def _disabled_mask(data: bytes, index: int) -> int | None:
    """Return the mask of a rank in ``struct dpu_vpd_header`` (UPMEM SDK, ``dpu_vpd_structures.h``, version 0x4000).

    Sixteen bytes (``UPMV``, version, size, ranks, repairs), then for each of four ranks three masks of 64 bits, of
    which the first is that of disabled units: bit ``control interface * units per interface + unit``.
    """
    if not 0 <= index < _VPD_RANKS or len(data) < _VPD_HEADER_BYTES + 24 * _VPD_RANKS:
        return None
    if data[:4] != b"UPMV" or int.from_bytes(data[4:8], "little") != _VPD_VERSION:
        return None
    start = _VPD_HEADER_BYTES + 24 * index
    return int.from_bytes(data[start : start + 8], "little")


def _clock(tree: Tree, path: str) -> Attribute:
    """Return the clock of the cores: the driver gives that of the chip in MHz and what it is divided by."""
    frequency = tree.count(path, "fck_frequency")
    if not isinstance(frequency.value, int) or not 0 < frequency.value < 1 << 20:
        return frequency if not frequency.known else Attribute(source=frequency.source, absent=Absence.MALFORMED)
    division = tree.number(path + "/clock_division")
    if isinstance(division, int) and division > 0:
        return Attribute(frequency.value * 1_000_000 // division, "sysfs:fck_frequency/clock_division")
    return Attribute(frequency.value * 1_000_000, "sysfs:fck_frequency")


def _add_dimm(scan: Scan, serial: str, name: str, first: _Rank, ranks: list[_Rank]) -> str:
    mine = [rank for rank in ranks if rank.dimm == serial]
    sizes: list[int] = []
    for rank in mine:  # what is on the module, with the units that are disabled
        counts = [rank.facts[name].value for name in ("control_interfaces", "dpus_per_ci", "mram_bytes")]
        whole = [count for count in counts if isinstance(count, int)]
        if len(whole) == len(counts) and rank.facts["dpus"].known:
            sizes.append(prod(whole))
    facts = {
        "serial": first.facts["serial"],
        "model": first.facts["model"],
        "channel": first.facts["channel"],
        "numa_node": first.place[1],
        "ranks": Attribute(len(mine), "sysfs:class/dpu_rank"),
    }
    return scan.add(
        id="dimm-" + serial,
        else_id=f"dimm/{name}",
        kind=Kind.MEMORY,
        name=name,
        location=scan.locate(None, first.place),
        attributes=facts,
        aliases=("serial:" + serial,),
        capacity={"memory_bytes": sum(sizes)} if sizes else None,
    )
