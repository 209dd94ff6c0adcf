"""From the tables of a profile to a host without identities: elements counted out, models looked up, slots filled."""

from __future__ import annotations

from collections.abc import Iterator

from hal_mocks.graph import Host, Quirk
from hal_mocks.profile_gpu import make_gpus, plan_gpus
from hal_mocks.profile_memory import make_nvmes, make_regions, make_upmem, plan_nvmes, plan_regions
from hal_mocks.profile_models import one_of
from hal_mocks.profile_network import make_dpus, make_nics, make_rnics, plan_dpus, plan_nics, plan_rnics
from hal_mocks.profile_plan import Plan
from hal_mocks.profile_schema import HostTable, Mistake, Profile


def build_host(profile: Profile, host: HostTable) -> Host:
    """Return the host that a profile describes; everything that identifies a device and is not given is left empty."""
    plan = Plan(profile, host)
    gpus, rnics, dpus = plan_gpus(plan), plan_rnics(plan), plan_dpus(plan)
    nics, nvmes, regions = plan_nics(plan), plan_nvmes(plan), plan_regions(plan)
    plan.add_others()
    plan.layout.assign()
    plain = make_rnics(rnics)
    cards = make_dpus(dpus, len(plain))
    dimms, ranks = make_upmem(plan)
    made = Host(
        name=host.name,
        rack=host.rack,
        cpu_model=plan.cpu_model,
        numa=plan.numa,
        pci=tuple(plan.layout.functions),
        gpus=make_gpus(plan, gpus),
        rnics=(*plain, *(rnic for _, owned in cards for rnic in owned)),
        dpus=tuple(card for card, _ in cards),
        pmem=make_regions(plan, regions),
        upmem_dimms=dimms,
        upmem_ranks=ranks,
        nics=make_nics(nics),
        nvmes=make_nvmes(nvmes),
        quirks=tuple(_quirks(profile)),
        coherent=host.coherent,
    )
    _check_names(plan, made)
    _check_references(profile, made)
    return made


def _quirks(profile: Profile) -> Iterator[Quirk]:
    for index, table in enumerate(profile.quirk):
        path = ("quirk", index, "path")
        if table.path.startswith("/") or ".." in table.path.split("/"):
            raise Mistake(path, f"{table.path!r} leaves the tree", "a path below it, such as 'sys/class/net/eth0/mtu'")
        if table.path.split("/")[0] not in ("sys", "dev", "proc", "{device}"):
            raise Mistake(
                path, f"{table.path!r} is in no part of the tree", "sys/..., dev/..., proc/... or {device}/..."
            )
        if table.path.startswith("{device}") and not table.of:
            raise Mistake(path, "{device} needs to know of which device", 'of = "gpu0"')
        where = f"{table.of}:{table.path}" if table.of else table.path
        yield Quirk(path=where, how=table.how, value=table.value)


def _check_names(plan: Plan, host: Host) -> None:
    """See that no two devices of the host share a name."""
    seen: dict[str, str] = {}
    sections = {
        "gpu": [gpu.name for gpu in host.gpus],
        "rnic": [rnic.name for rnic in host.rnics],
        "dpu": [dpu.name for dpu in host.dpus],
        "pmem": [region.name for region in host.pmem],
        "upmem": [dimm.name for dimm in host.upmem_dimms] + [rank.name for rank in host.upmem_ranks],
        "nic": [nic.name for nic in host.nics] + [rnic.netdev for rnic in host.rnics if rnic.pci],
        "nvme": [nvme.name for nvme in host.nvmes],
    }
    for section, names in sections.items():
        for name in names:
            if name in seen:
                where = next((e.at("name") for e in reversed(plan.elements(section)) if e.name == name), (section,))
                raise Mistake(where, f"two devices are called {name!r}", 'name = "...{i}"')
            if not name or not name.isprintable() or any(sign in name for sign in "/ \\") or name in (".", ".."):
                raise Mistake((section,), f"{name!r} is no name for a device", "letters, digits, _ and -")
            seen[name] = section
    for what, ids in (("uuid", [g.uuid for g in host.gpus]), ("guid", [r.node_guid for r in host.rnics])):
        given = [one for one in ids if one]
        if len(set(given)) < len(given):
            section = "gpu" if what == "uuid" else "rnic"
            raise Mistake((section, 0, what), f"two devices have the same {what}", f"leave {what} out, or one for each")


def _check_references(profile: Profile, host: Host) -> None:
    """See that NVMe drives of DPUs and interfaces of soft NICs exist."""
    drives = [nvme.name for nvme in host.nvmes]
    for index, table in enumerate(profile.dpu):
        for position, drive in enumerate(table.nvme):
            if drive not in drives:
                raise Mistake(("dpu", index, "nvme", position), f"unknown NVMe drive {drive!r}", one_of(drive, drives))
