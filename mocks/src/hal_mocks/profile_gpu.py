"""GPUs of a profile: models, MIG geometry, NVLink."""

from __future__ import annotations

from hal_mocks.graph import Gpu, MigProfile, NvLink
from hal_mocks.profile_each import Element, text_for
from hal_mocks.profile_layout import Slot
from hal_mocks.profile_models import GpuModel, one_of, size_bytes
from hal_mocks.profile_plan import Plan
from hal_mocks.profile_schema import Mistake

Planned = list[tuple[Element, GpuModel, Slot | None]]


def plan_gpus(plan: Plan) -> Planned:
    """Put the GPUs that sit on PCI into slots; an integrated one needs none."""
    found: Planned = []
    for element in plan.elements("gpu", "gpu{i}"):
        model = plan.model(element, "gpu", GpuModel)
        slot = plan.put(element, model, [plan.function(element, model)]) if model.pci else None
        found.append((element, model, slot))
    return found


def make_gpus(plan: Plan, planned: Planned) -> tuple[Gpu, ...]:
    """Return the GPUs, their addresses being known."""
    names = [element.name for element, _, _ in planned]
    meshed = [element.name for element, _, _ in planned if element.value("nvlink") == "mesh"]
    found: list[Gpu] = []
    for element, model, slot in planned:
        memory = element.value("memory")
        found.append(
            Gpu(
                name=element.name,
                uuid=element.text("uuid"),
                pci=slot.addresses[0] if slot else "",
                model=model.title,
                architecture=model.architecture,
                compute_capability=model.compute_capability,
                memory_bytes=size_bytes(model.memory if memory is None else memory, element.at("memory")),
                multiprocessors=model.multiprocessors,
                power_limit_watts=model.power_watts,
                memory_bandwidth_bytes_per_second=model.memory_bandwidth,
                serial=element.text("serial"),
                nvlinks=_nvlinks(element, model, names, meshed),
                mig=_mig(plan, element, model),
                coherent=bool(element.value("coherent")),
            )
        )
    return tuple(found)


def _mig(plan: Plan, element: Element, model: GpuModel) -> tuple[MigProfile, ...]:
    if not model.mig:
        return ()
    return tuple(
        MigProfile(
            name=name,
            compute_slices=entry.compute,
            memory_slices=entry.slices,
            memory_bytes=size_bytes(entry.memory, ("model", "mig", model.mig, name, "memory")),
            placements=entry.at,
        )
        for name, entry in plan.library.mig(model.mig, element.at("model")).items()
    )


def _nvlinks(element: Element, model: GpuModel, names: list[str], meshed: list[str]) -> tuple[NvLink, ...]:
    """Return the links: all to the switch, spread evenly over the other meshed GPUs, or as they are listed."""
    wanted = element.value("nvlink")
    where = element.at("nvlink")
    if wanted == "none":
        return ()
    if not model.nvlinks:
        raise Mistake(where, f"model {element.text('model')!r} has no NVLink", 'nvlink = "none"')
    if wanted == "switch":
        peers = {"switch": model.nvlinks}
    elif wanted == "mesh":
        others = [name for name in meshed if name != element.name]
        each = model.nvlinks // max(1, len(others))
        peers = {name: each for name in others if each}
    else:
        peers = {text_for(peer, element.index, where): links for peer, links in wanted.items()}
        if sum(peers.values()) > model.nvlinks or any(links < 1 for links in peers.values()):
            raise Mistake(where, f"the model has {model.nvlinks} links to give away, each peer at least one")
        for peer in peers:
            if peer != "switch" and (peer not in names or peer == element.name):
                raise Mistake((*where, peer), f"unknown NVLink peer {peer!r}", one_of(peer, ["switch", *names]))
    return tuple(
        NvLink(peer=peer, links=links, bandwidth_bytes_per_second=links * model.nvlink_bandwidth)
        for peer, links in peers.items()
    )
