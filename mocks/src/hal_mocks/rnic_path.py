"""How one mock connection reaches its peer: addresses, and whether packets would arrive now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from hal.errors import InvalidArgument
from hal_mocks.dpu_state import Card, find_card
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from hal_mocks.rnic_files import sessions_folder
from hal_mocks.rnic_link import Place, is_reachable, places_of

ACK_TIMEOUT_SECONDS = 4.096e-6 * 2**14
"""Local ack timeout 14, what most software sets (IBTA: 4.096 us times 2**timeout)."""

RETRIES = 7
_MAGIC = "rnic-mock-1"
_ENCODER = msgspec.msgpack.Encoder()


class Address(msgspec.Struct, frozen=True, array_like=True):
    """What an endpoint's opaque address says."""

    magic: str
    device: str
    session: str
    queue: int
    tag: int
    port: int


_DECODER = msgspec.msgpack.Decoder(Address)


def encode_address(device: str, session: str, queue: int, tag: int, port: int) -> bytes:
    """Return an endpoint's address as bytes."""
    return _ENCODER.encode(Address(_MAGIC, device, session, queue, tag, port))


def decode_address(raw: bytes, device: str) -> Address:
    """Return what an address says, or raise :class:`~hal.errors.InvalidArgument`."""
    try:
        address = _DECODER.decode(raw)
    except (msgspec.DecodeError, TypeError):
        address = None
    if address is None or address.magic != _MAGIC or "/" in address.session or not address.session:
        raise InvalidArgument(
            "these bytes are no endpoint's address",
            device=device,
            during="connect",
            hint="carry endpoint.address whole",
        )
    return address


class _Boot(NamedTuple):
    card: Card
    number: int


class Generations:
    """Changes whenever the machine's faults or the state of one of the cards change. For NICs without a card the
    machine's own control page does; looking here costs a call.
    """

    __slots__ = ("_cards", "_control")

    def __init__(self, machine: Machine, cards: Sequence[Card]) -> None:
        self._control = machine.state.control
        self._cards = tuple(card.generation for card in cards)

    def __getitem__(self, index: int) -> int:
        # Each of them only grows, so their sum stays the same only if all do.
        total: int = self._control[0]
        for page in self._cards:
            total += page[1]
        return total


class Route:
    """The way between two NICs of one machine."""

    def __init__(self, machine: Machine, own: Place, peer: Place) -> None:
        self.machine = machine
        self.own = own
        self.peer = peer
        cards = [find_card(machine, place.card) for place in (own, peer) if place.card is not None]
        self._boots = tuple(_Boot(card, card.state().boots) for card in cards)
        self.generations = Generations(machine, cards) if cards else machine.state.control

    @classmethod
    def to(cls, machine: Machine, own: Place, address: Address) -> Route:
        """Return the route to an address, or raise ``InvalidArgument`` if no cable could lead there."""
        peer = places_of(machine).get(address.device)
        if peer is None or peer.fabric != own.fabric:
            why = "is not on this machine" if peer is None else f"is on {peer.fabric}, this NIC on {own.fabric}"
            raise InvalidArgument(
                f"{address.device} {why}",
                device=own.id,
                during="connect",
                hint="both ends need one rack and one link layer",
            )
        return cls(machine, own, peer)

    def session_of(self, address: Address) -> Path:
        """Return the folder of the peer's session."""
        return sessions_folder(self.machine, address.device) / address.session

    def is_up(self) -> bool:
        """True if packets arrive now."""
        return is_reachable(self.machine, self.own) and is_reachable(self.machine, self.peer)

    def was_rebooted(self) -> bool:
        """True if a DPU that carries one of the NICs has booted since: its queue pairs are forgotten."""
        return any(boot.card.state().boots != boot.number for boot in self._boots)

    def is_degraded(self) -> bool:
        """True if the link of either side runs below its rate, which costs symbol errors."""
        return any(
            fault.type is FaultType.LINK_DEGRADED
            for place in (self.own, self.peer)
            for fault in self.machine.faults_of(place.id)
        )

    def clear_generation(self) -> int:
        """Return the generation in which nothing can happen to the route until another one begins, or -1."""
        generation = self.generations[0]
        machine = self.machine
        watched = [place.id for place in (self.own, self.peer)]
        watched += [place.card for place in (self.own, self.peer) if place.card is not None]
        if any(machine.faults_of(device_id) for device_id in watched) or machine._scheduled or not self.is_up():
            return -1
        return generation
