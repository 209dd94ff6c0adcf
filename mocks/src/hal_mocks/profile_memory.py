"""Persistent and CXL memory, UPMEM DIMMs and NVMe drives of a profile."""

from __future__ import annotations

from hal_mocks.graph import Dimm, Nvme, PmemNamespace, PmemRegion, UpmemDimm, UpmemRank
from hal_mocks.profile_each import Element
from hal_mocks.profile_layout import Path, Slot
from hal_mocks.profile_models import NvmeModel, PmemModel, UpmemModel, one_of, size_bytes
from hal_mocks.profile_plan import Plan
from hal_mocks.profile_schema import Mistake

PlannedNvmes = list[tuple[Element, NvmeModel, Slot]]
PlannedRegions = list[tuple[Element, PmemModel, list[Slot]]]
_NVM_EXPRESS, _CXL_MEMORY = "010802", "050210"


def plan_nvmes(plan: Plan) -> PlannedNvmes:
    """Put the drives into slots."""
    found: PlannedNvmes = []
    for element in plan.elements("nvme", "nvme{i}"):
        model = plan.model(element, "nvme", NvmeModel)
        found.append((element, model, plan.put(element, model, [plan.function(element, model, _NVM_EXPRESS, "nvme")])))
    return found


def make_nvmes(planned: PlannedNvmes) -> tuple[Nvme, ...]:
    """Return the drives, their addresses being known."""
    found: list[Nvme] = []
    for element, model, slot in planned:
        size = element.value("size")
        found.append(
            Nvme(
                name=element.name,
                pci=slot.addresses[0],
                model=model.title,
                serial=element.text("serial"),
                size_bytes=size_bytes(model.size if size is None else size, element.at("size")),
            )
        )
    return tuple(found)


def plan_regions(plan: Plan) -> PlannedRegions:
    """Put the CXL devices of every region into slots; NVDIMMs need none."""
    found: PlannedRegions = []
    for element in plan.elements("pmem", "region{i}"):
        model = plan.model(element, "pmem", PmemModel)
        slots: list[Slot] = []
        if model.pci:
            for number in range(element.value("dimms")):
                function = plan.function(element, model, _CXL_MEMORY, "cxl_pci")
                slots.append(plan.put(element, model, [function], first=number == 0))
        else:
            plan.check_numa(element, element.whole("numa") or 0)
        found.append((element, model, slots))
    return found


def make_regions(plan: Plan, planned: PlannedRegions) -> tuple[PmemRegion, ...]:
    """Return the regions with their modules and namespaces."""
    spaces = _namespaces(plan, {element.name: number for number, (element, _, _) in enumerate(planned)})
    numa_of = {function.address: function.numa_node for function in plan.layout.functions}
    next_module = {"nmem": 0, "mem": 0}
    found: list[PmemRegion] = []
    for element, model, slots in planned:
        count: int = element.value("dimms")
        stem = "mem" if slots else "nmem"
        capacity = size_bytes(model.capacity, element.at("model"))
        size = element.value("size")
        total = capacity * count if size is None else size_bytes(size, element.at("size"))
        if not 0 < total <= capacity * count:
            raise Mistake(element.at("size"), f"{count} x {capacity} bytes cannot make a region of {total}")
        mine = spaces.get(element.name, [])
        used = sum(space.size_bytes for space, _ in mine)
        if used > total:
            raise Mistake(mine[-1][1], f"the namespaces of {element.name} need {used} bytes, it has {total}")
        found.append(
            PmemRegion(
                name=element.name,
                numa_node=numa_of[slots[0].addresses[0]] if slots else element.whole("numa") or 0,
                set_cookie=_cookie(element, model),
                size_bytes=total,
                persistence_domain=model.persistence_domain,
                media=model.media,
                dimms=tuple(
                    Dimm(
                        name=f"{stem}{next_module[stem] + number}",
                        id=model.vendor,
                        serial="",
                        capacity_bytes=capacity,
                        media=model.media,
                        firmware=model.firmware,
                        locked=element.value("locked"),
                        encrypted=element.value("encrypted"),
                        pci=slots[number].addresses[0] if slots else "",
                    )
                    for number in range(count)
                ),
                granule_bytes=model.granule,
                namespaces=tuple(space for space, _ in mine),
            )
        )
        next_module[stem] += count
    return tuple(found)


def _cookie(element: Element, model: PmemModel) -> str:
    cookie = element.text("cookie")
    if cookie and model.persistence_domain == "none":
        raise Mistake(element.at("cookie"), "a volatile region has no interleave set cookie", "leave cookie out")
    digits = cookie.removeprefix("0x")
    if cookie and not (1 <= len(digits) <= 16 and all(digit in "0123456789abcdef" for digit in digits)):
        raise Mistake(element.at("cookie"), f"{cookie!r} is no interleave set cookie", "0x and up to 16 hex digits")
    return f"0x{digits}" if cookie else ""


def _namespaces(plan: Plan, regions: dict[str, int]) -> dict[str, list[tuple[PmemNamespace, Path]]]:
    found: dict[str, list[tuple[PmemNamespace, Path]]] = {}
    names: set[str] = set()
    for index, table in enumerate(plan.profile.namespace):
        path: Path = ("namespace", index)
        if table.region not in regions:
            raise Mistake((*path, "region"), f"unknown region {table.region!r}", one_of(table.region, regions))
        mine = found.setdefault(table.region, [])
        name = table.name or f"namespace{regions[table.region]}.{len(mine)}"
        if name in names:
            raise Mistake((*path, "name"), f"a second namespace is called {name!r}")
        names.add(name)
        size = size_bytes(table.size, (*path, "size"))
        if not size:
            raise Mistake((*path, "size"), "a namespace holds at least one byte")
        mine.append((PmemNamespace(name=name, uuid=table.uuid, mode=table.mode, size_bytes=size), (*path, "size")))
    return found


def make_upmem(plan: Plan) -> tuple[tuple[UpmemDimm, ...], tuple[UpmemRank, ...]]:
    """Return the UPMEM DIMMs and their ranks."""
    disabled = _disabled(plan)
    dimms: list[UpmemDimm] = []
    ranks: list[UpmemRank] = []
    for element in plan.elements("upmem", "dimm{i}"):
        model = plan.model(element, "upmem", UpmemModel)
        numa = element.whole("numa") or 0
        plan.check_numa(element, numa)
        units = model.control_interfaces * model.dpus_per_ci
        mine: list[UpmemRank] = []
        for index in range(model.ranks):
            name = f"dpu_rank{len(ranks) + index}"
            off, path = disabled.pop(name, ((), ()))
            if any(dpu >= units for dpu in off):
                raise Mistake((*path[:2], "dpus"), f"{name} has processing units 0 to {units - 1}")
            mine.append(
                UpmemRank(
                    name=name,
                    dimm=element.name,
                    index=index,
                    control_interfaces=model.control_interfaces,
                    dpus_per_ci=model.dpus_per_ci,
                    mram_bytes=size_bytes(model.mram, element.path),
                    wram_bytes=size_bytes(model.wram, element.path),
                    iram_bytes=size_bytes(model.iram, element.path),
                    tasklets=model.tasklets,
                    clock_hz=model.clock_hz,
                    chip=model.chip,
                    disabled=off,
                )
            )
        channel, slot = element.whole("channel"), element.whole("slot")
        dimms.append(
            UpmemDimm(
                name=element.name,
                serial=element.text("serial"),
                part_number=model.part_number,
                numa_node=numa,
                channel=element.number // 2 if channel is None else channel,
                slot=element.number % 2 if slot is None else slot,
                ranks=tuple(rank.name for rank in mine),
            )
        )
        ranks += mine
    for name, (_, path) in disabled.items():
        raise Mistake(path, f"unknown rank {name!r}", one_of(name, [rank.name for rank in ranks]))
    return tuple(dimms), tuple(ranks)


def _disabled(plan: Plan) -> dict[str, tuple[tuple[int, ...], Path]]:
    found: dict[str, tuple[tuple[int, ...], Path]] = {}
    for index, table in enumerate(plan.profile.disabled):
        path: Path = ("disabled", index, "rank")
        if table.rank in found:
            raise Mistake(path, f"rank {table.rank!r} is named twice")
        found[table.rank] = (tuple(sorted(set(table.dpus))), path)
    return found
