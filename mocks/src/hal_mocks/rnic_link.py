"""The cable of a mock RDMA NIC: where it sits in the graph, what its faults make of the link, and flap damping."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import msgspec

from hal.interfaces.rnic import Gid, LinkLayer, PhysicalState, Port, PortState
from hal_mocks.base import GONE, write_whole
from hal_mocks.dpu_state import card_of_rnic, is_up
from hal_mocks.faults import FLAP_SECONDS, Fault, FaultType
from hal_mocks.graph import Host, Rnic, RnicPort
from hal_mocks.machine import Machine, device_not_found

LANES = 4
LANE_GBPS = {1: 2.5, 2: 5.0, 3: 10.0, 4: 14.0625, 5: 25.0, 6: 50.0, 7: 100.0, 8: 200.0}
"""Data rate of one lane by generation: SDR, DDR, QDR, FDR, EDR, HDR, NDR, XDR (IBTA roadmap)."""

PENALTY, SUPPRESS, REUSE, HALF_LIFE_SECONDS, CEILING = 1000.0, 2500.0, 750.0, 900.0, 12_000.0
"""Damping as of route flaps (RFC 2439); the ceiling is what decays to ``REUSE`` in an hour."""

_REMEMBERED_DOWNS = 64
_MUTE = (*GONE, FaultType.HANG)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A NIC in the graph: its host, its device id, and the card (a DPU) whose fate it shares."""

    host: Host
    rnic: Rnic
    id: str
    card: str | None

    @property
    def fabric(self) -> tuple[str, str]:
        """What two NICs must have in common to talk: the rack (or the host, outside of racks) and the link layer."""
        return (self.host.rack or self.host.name, self.rnic.ports[0].link_layer)


class LinkHistory(msgspec.Struct, frozen=True):
    """When the link went down: the last times, how often since a reset, and how much of each fault is counted."""

    downs: tuple[float, ...] = ()
    count: int = 0
    seen: dict[str, int] = {}


_PLACES: WeakKeyDictionary[Machine, dict[str, Place]] = WeakKeyDictionary()
_DECODER = msgspec.json.Decoder(LinkHistory)


def rnic_id(rnic: Rnic) -> str:
    """Return the device id: the node GUID, whatever its punctuation."""
    return "rnic-" + rnic.node_guid.replace(":", "").lower()


def places_of(machine: Machine) -> dict[str, Place]:
    """Return all RDMA NICs of a machine by device id, in the graph's order."""
    places = _PLACES.get(machine)
    if places is None:
        places = _PLACES[machine] = {
            rnic_id(rnic): Place(
                host=host, rnic=rnic, id=rnic_id(rnic), card=card_of_rnic(machine, rnic.name, host.name)
            )
            for host in machine.graph.hosts
            for rnic in host.rnics
        }
    return places


def place_of(machine: Machine, device_id: str) -> Place:
    """Return one NIC, or raise :class:`~hal.errors.DeviceNotFound`."""
    place = places_of(machine).get(device_id)
    if place is None:
        raise device_not_found(device_id)
    return place


def card_is_up(machine: Machine, place: Place) -> bool:
    """True unless the NIC sits on a DPU that is down."""
    return place.card is None or is_up(machine, place.card)


def is_reachable(machine: Machine, place: Place) -> bool:
    """True if packets get in and out: the device answers, its card is up, its link is up."""
    faults = machine.faults_of(place.id)
    if faults and (any(fault.type in _MUTE for fault in faults) or link_is_down(faults, machine.clock.now())):
        return False
    return card_is_up(machine, place)


def link_is_down(faults: Sequence[Fault], now: float) -> bool:
    """True if one of the faults keeps the link down now; a flapping one is down in the first half of each period."""
    return any(fault.type in (FaultType.LINK_DOWN, FaultType.FLAP) and fault.holds_down(now) for fault in faults)


def rate_left_gbps(port: RnicPort, faults: Sequence[Fault]) -> float:
    """Return the link's rate under its faults: lanes and generation as given, half of it if nothing is."""
    rate = port.rate_gbps
    for fault in faults:
        if fault.type is FaultType.LINK_DEGRADED:
            lane = LANE_GBPS.get(fault.generation, port.rate_gbps / LANES)
            lanes = fault.width or LANES
            left = lane * lanes if fault.width or fault.generation else port.rate_gbps / 2
            rate = min(rate, left)
    return rate


def ports_of(machine: Machine, place: Place) -> tuple[Port, ...]:
    """Return the ports as they are now."""
    faults = machine.faults_of(place.id)
    down = (bool(faults) and link_is_down(faults, machine.clock.now())) or not card_is_up(machine, place)
    return tuple(_port(place.rnic, port, faults, down) for port in place.rnic.ports)


def _port(rnic: Rnic, port: RnicPort, faults: Sequence[Fault], down: bool) -> Port:
    layer = LinkLayer(port.link_layer)
    # A cut InfiniBand cable leaves the port looking for a partner; an Ethernet port reports its netdev's state.
    without_link = PhysicalState.POLLING if layer is LinkLayer.INFINIBAND else PhysicalState.DISABLED
    default_type = "IB/RoCE v1"
    types = (*port.gid_types, *([default_type] * (len(port.gids) - len(port.gid_types))))
    return Port(
        number=port.number,
        state=PortState.DOWN if down else PortState.ACTIVE,
        physical_state=without_link if down else PhysicalState.LINK_UP,
        link_layer=layer,
        rate_gbps=rate_left_gbps(port, faults),
        max_rate_gbps=port.rate_gbps,
        lid=port.lid,
        gids=tuple(
            Gid(index=index, gid=gid, type=types[index], netdev=rnic.netdev) for index, gid in enumerate(port.gids)
        ),
    )


def observe(machine: Machine, device_id: str) -> LinkHistory:
    """Return the link's history up to now, counting what its faults have done since somebody last looked."""
    path = machine.state.device(device_id) / "link.json"
    history = _DECODER.decode(path.read_bytes()) if path.exists() else LinkHistory()
    fresh = _advance(history, machine, device_id)
    if fresh is history:
        return history
    with machine.state.locked("rnic.lock"):
        history = _DECODER.decode(path.read_bytes()) if path.exists() else LinkHistory()
        fresh = _advance(history, machine, device_id)
        write_whole(path, msgspec.json.encode(fresh))
    return fresh


def forget_count(machine: Machine, device_id: str) -> None:
    """Let ``link_downed`` start again at zero, as after a reset; damping keeps its memory."""
    history = observe(machine, device_id)
    with machine.state.locked("rnic.lock"):
        path = machine.state.device(device_id) / "link.json"
        write_whole(path, msgspec.json.encode(msgspec.structs.replace(history, count=0)))


def _advance(history: LinkHistory, machine: Machine, device_id: str) -> LinkHistory:
    now = machine.clock.now()
    downs, count, seen = history.downs, history.count, history.seen
    for fault in machine.state.faults():
        if fault.device != device_id or fault.type not in (FaultType.LINK_DOWN, FaultType.FLAP) or fault.onset_at > now:
            continue
        # Ids are given again after a heal; the onset tells the faults apart.
        key = f"{fault.id}@{fault.onset_at}"
        end = now if fault.duration_seconds is None else min(now, fault.onset_at + fault.duration_seconds)
        period = fault.seconds or FLAP_SECONDS
        happened = 1 if fault.type is FaultType.LINK_DOWN else 1 + int((end - fault.onset_at) // period)
        known = seen.get(key, 0)
        if happened <= known:
            continue
        first = max(known, happened - _REMEMBERED_DOWNS)
        downs = tuple(sorted((*downs, *(fault.onset_at + index * period for index in range(first, happened)))))
        count += happened - known
        seen = {**seen, key: happened}
    if seen is history.seen:
        return history
    return LinkHistory(downs=downs[-_REMEMBERED_DOWNS:], count=count, seen=seen)


def damping(downs: Sequence[float], now: float) -> tuple[float, bool]:
    """Return the penalty that a link's downs amount to at ``now``, and whether the link is suppressed for flapping.

    Each down adds 1000; the sum halves in 15 minutes. Suppressed from 2500 on until it has decayed to 750.
    """
    penalty, suppressed, last = 0.0, False, now
    for at in downs:
        penalty = penalty * 0.5 ** ((at - last) / HALF_LIFE_SECONDS) if penalty else 0.0
        suppressed = suppressed and penalty > REUSE
        penalty = min(penalty + PENALTY, CEILING)
        suppressed = suppressed or penalty >= SUPPRESS
        last = at
    if penalty:
        penalty *= 0.5 ** ((now - last) / HALF_LIFE_SECONDS)
    return penalty, suppressed and penalty > REUSE
