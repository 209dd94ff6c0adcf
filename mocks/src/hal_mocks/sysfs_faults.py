"""What faults do to a tree: functions vanish, links go down or slow, regions turn read-only, files turn into FIFOs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Host, PmemRegion
from hal_mocks.names import ids_of
from hal_mocks.sysfs_memory import RegionView
from hal_mocks.sysfs_network import PortView

GENERATION_GTS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""PCI Express generations in GT/s a lane."""

SHOWN = frozenset(
    {
        FaultType.FALLEN_OFF_BUS,
        FaultType.LINK_DOWN,
        FaultType.LINK_DEGRADED,
        FaultType.BAD_BLOCK,
        FaultType.READ_ONLY,
        FaultType.HANG,
        FaultType.LOST,
    }
)
"""The faults that sysfs shows. The others are known to the device's own driver only."""


def shown_faults(faults: Iterable[Fault], now: float) -> tuple[Fault, ...]:
    """Return the faults that sysfs shows now; a flapping link is a link that is down, half of the time."""
    found: list[Fault] = []
    for fault in faults:
        if fault.type is FaultType.FLAP:
            if fault.holds_down(now):
                plain = Fault(id=fault.id, device=fault.device, type=FaultType.LINK_DOWN)
                found.append(plain)
        elif fault.type in SHOWN and fault.active(now):
            found.append(msgspec.structs.replace(fault, onset_at=0.0, duration_seconds=None))
    return tuple(found)


class Faulty:
    """A host with its faults: by the name of each device, and the PCI functions that belong to it."""

    def __init__(self, host: Host, faults: Sequence[Fault]) -> None:
        ids = ids_of(host)
        self.by_name: dict[str, list[Fault]] = {}
        for fault in faults:
            if fault.device in ids:
                self.by_name.setdefault(ids[fault.device], []).append(fault)
        cards = {rnic.name: rnic.dpu for rnic in host.rnics if rnic.dpu}
        for rnic, card in cards.items():  # the NICs of a card go where it goes
            for fault in self.by_name.get(card, ()):
                if fault.type in (FaultType.FALLEN_OFF_BUS, FaultType.HANG):
                    self.by_name.setdefault(rnic, []).append(fault)
        self.host = self._without_fallen(host)

    def has(self, name: str, type: FaultType) -> bool:
        """True if a device has a fault of a type."""
        return any(fault.type is type for fault in self.by_name.get(name, ()))

    def ports(self, name: str, rates: Sequence[float]) -> list[PortView]:
        """Return a NIC's ports as they look."""
        down = self.has(name, FaultType.LINK_DOWN)
        slow = [fault for fault in self.by_name.get(name, ()) if fault.type is FaultType.LINK_DEGRADED]
        return [PortView(not down, _rate_left(rate, slow)) for rate in rates]

    def region(self, region: PmemRegion) -> RegionView:
        """Return a region as it looks."""
        name = region.name
        mine = self.by_name.get(name, ())
        gone = frozenset(dimm.name for dimm in region.dimms if self.has(dimm.name, FaultType.FALLEN_OFF_BUS))
        bad = tuple((fault.offset, fault.length) for fault in mine if fault.type is FaultType.BAD_BLOCK)
        return RegionView(self.has(name, FaultType.READ_ONLY), bad, gone)

    def _without_fallen(self, host: Host) -> Host:
        """Return the host without what fell off its bus, and with PCI links as slow as they are."""
        if not self.by_name:
            return host
        functions = functions_of(host)
        gone = {name for name in self.by_name if self.has(name, FaultType.FALLEN_OFF_BUS)}
        lost = {address for name in gone for address in functions.get(name, ())}
        rnics = {rnic.name for rnic in host.rnics}
        slow = {
            address: fault
            for name, faults in self.by_name.items()
            for fault in faults
            if fault.type is FaultType.LINK_DEGRADED and name not in rnics
            for address in functions.get(name, ())
        }
        pci = tuple(
            msgspec.structs.replace(function, **_slower(slow[function.address], function.max_speed_gts, function.width))
            if function.address in slow
            else function
            for function in host.pci
            if function.address not in lost
        )
        return msgspec.structs.replace(
            host,
            pci=pci,
            gpus=tuple(gpu for gpu in host.gpus if gpu.name not in gone),
            rnics=tuple(rnic for rnic in host.rnics if rnic.name not in gone),
            dpus=tuple(dpu for dpu in host.dpus if dpu.name not in gone),
            pmem=tuple(region for region in host.pmem if region.name not in gone),
            upmem_ranks=tuple(rank for rank in host.upmem_ranks if rank.name not in gone and rank.dimm not in gone),
            nics=tuple(nic for nic in host.nics if nic.name not in gone),
            nvmes=tuple(nvme for nvme in host.nvmes if nvme.name not in gone),
        )


def functions_of(host: Host) -> dict[str, tuple[str, ...]]:
    """Return the PCI functions of every device by its name."""
    found: dict[str, tuple[str, ...]] = {dpu.name: dpu.pci for dpu in host.dpus}
    found |= {gpu.name: (gpu.pci,) for gpu in host.gpus if gpu.pci}
    found |= {rnic.name: (rnic.pci,) for rnic in host.rnics if rnic.pci}
    found |= {nic.name: (nic.pci,) for nic in host.nics if nic.pci}
    found |= {nvme.name: (nvme.pci,) for nvme in host.nvmes}
    for region in host.pmem:
        found[region.name] = tuple(dimm.pci for dimm in region.dimms if dimm.pci)
        found |= {dimm.name: (dimm.pci,) for dimm in region.dimms if dimm.pci}
    return found


def _slower(fault: Fault, most: float, width: int) -> dict[str, float | int]:
    speed = GENERATION_GTS.get(fault.generation, most / 2 if not fault.width else most)
    return {"speed_gts": min(speed, most), "width": min(fault.width or width, width)}


def _rate_left(rate_gbps: float, faults: Sequence[Fault]) -> float:
    if not faults:
        return rate_gbps
    from hal_mocks.graph import RnicPort
    from hal_mocks.rnic_link import rate_left_gbps

    return rate_left_gbps(RnicPort(link_layer="", rate_gbps=rate_gbps), faults)
