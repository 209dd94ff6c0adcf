"""What devices have become since the profile described them, as far as sysfs shows it: namespaces, a card's mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hal_mocks.graph import Dpu, Host, PmemNamespace, PmemRegion

if TYPE_CHECKING:
    from hal_mocks.machine import Machine


class Made(msgspec.Struct, frozen=True):
    """Namespaces by the id of their region, modes by the id of the card; only those that somebody has looked at."""

    namespaces: dict[str, tuple[PmemNamespace, ...]] = {}
    modes: dict[str, str] = {}


NOTHING = Made()


def made_on(machine: Machine) -> Made:
    """Return what the machine's devices remember. Takes no lock, and makes no folder."""
    namespaces: dict[str, tuple[PmemNamespace, ...]] = {}
    modes: dict[str, str] = {}
    folder = machine.state.folder / "devices"
    if not folder.is_dir():
        return NOTHING
    for host in machine.graph.hosts:
        for region in host.pmem:
            from hal_mocks.pmem_region import recorded, region_id

            record = recorded(folder / region_id(region))
            if record is not None:
                namespaces[region_id(region)] = tuple(
                    PmemNamespace(
                        name=one.name,
                        uuid=one.uuid,
                        mode=str(one.mode),
                        size_bytes=one.size_bytes,
                        offset_bytes=one.offset_bytes,
                    )
                    for one in record.namespaces
                )
        for dpu in host.dpus:
            from hal_mocks.dpu_state import card_id, saved_mode

            mode = saved_mode(folder / card_id(dpu))
            if mode is not None:
                modes[card_id(dpu)] = str(mode)
    return Made(namespaces, modes)


def as_made(host: Host, made: Made) -> Host:
    """Return the host with what its devices have become."""
    if not made.namespaces and not made.modes:
        return host
    return msgspec.structs.replace(
        host,
        pmem=tuple(_region_as_made(region, made) for region in host.pmem),
        dpus=tuple(_card_as_made(dpu, made) for dpu in host.dpus),
    )


def _region_as_made(region: PmemRegion, made: Made) -> PmemRegion:
    from hal_mocks.pmem_region import region_id

    found = made.namespaces.get(region_id(region))
    return region if found is None else msgspec.structs.replace(region, namespaces=found)


def _card_as_made(dpu: Dpu, made: Made) -> Dpu:
    from hal_mocks.dpu_state import card_id

    mode = made.modes.get(card_id(dpu))
    return dpu if mode is None else msgspec.structs.replace(dpu, mode=mode)
