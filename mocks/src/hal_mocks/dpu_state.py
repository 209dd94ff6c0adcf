"""What a mock DPU remembers, where all processes see it: its mode, its boot, its image, and whether it is up.

A driver whose devices share a card's fate asks :func:`is_up` before each verb::

    from hal_mocks.dpu_state import card_of_rnic, is_up

    card = card_of_rnic(machine, rnic_name, host_name)   # once, when the handle is made; None: on no card
    if card is not None and not is_up(machine, card):
        ...                                              # netdev and RDMA device are gone, ports are down

``is_up`` costs a few loads. :func:`begin_boot` starts a boot without waiting for its end (tests use it to look at a
card, or its NICs, in between): on a virtual clock ``machine.clock.advance`` finishes it.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import msgspec

from hal.interfaces.dpu import BootState, ConsoleLine, DpuMode, Image, NvmeExposure
from hal_mocks.base import write_whole
from hal_mocks.dpu_boot import Boot, console_lines, plan_boot
from hal_mocks.faults import FaultType
from hal_mocks.graph import Dpu, Host
from hal_mocks.machine import Machine, device_not_found

_PAGE_BYTES = 16
_TAKES_NICS_DOWN = frozenset({FaultType.LOST, FaultType.FALLEN_OFF_BUS, FaultType.FW_FATAL})


class CardState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that survives the process which changed it.

    ``boot`` is None as long as nobody rebooted the card, which is up since ``since`` then. ``fence`` is that of the
    latest lease: flow rules, virtual functions and exposures belong to it.
    """

    mode: DpuMode
    since: float
    fence: int = 0
    pending_mode: DpuMode | None = None
    boots: int = 0
    boot: Boot | None = None
    image: Image | None = None
    vf_count: int = 0
    exposures: tuple[NvmeExposure, ...] = ()


_ENCODER = msgspec.json.Encoder()
_STATE = msgspec.json.Decoder(CardState)
_LINES = msgspec.json.Decoder(tuple[ConsoleLine, ...])


def card_id(dpu: Dpu) -> str:
    """Return the device id of a card."""
    return f"dpu-{dpu.serial}"


class Card:
    """One card's state. ``page`` is shared memory: when it is ready (a double), and how often the state changed."""

    def __init__(self, machine: Machine, host: Host, dpu: Dpu) -> None:
        self.host = host
        self.dpu = dpu
        self.id = card_id(dpu)
        self.folder: Path = machine.state.device(self.id)
        self._machine_state = machine.state
        self._machine = weakref.ref(machine)  # which knows its cards
        descriptor = os.open(self.folder / "page", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < _PAGE_BYTES:
                os.ftruncate(descriptor, _PAGE_BYTES)
            page = mmap.mmap(descriptor, _PAGE_BYTES)
        finally:
            os.close(descriptor)
        self.ready_at = memoryview(page).cast("d")
        self.generation = memoryview(page).cast("Q")
        self._seen: tuple[int, CardState] | None = None
        self._file = self.folder / "card.json"
        with self.locked():
            if not self._file.exists():
                mode = DpuMode(dpu.mode) if dpu.privileged else DpuMode.RESTRICTED
                self.save(CardState(mode=mode, since=machine.clock.now()))

    @contextmanager
    def locked(self, part: str = "card") -> Iterator[None]:
        """Hold one part of the card (``card``, ``services``) against other threads and processes. Not to be nested."""
        with self._machine_state.locked(f"devices/{self.folder.name}/{part}.lock"):
            yield

    def state(self) -> CardState:
        """Return what the card remembers; read again only after a change."""
        generation = self.generation[1]
        seen = self._seen
        if seen is not None and seen[0] == generation:
            return seen[1]
        state = _STATE.decode(self._file.read_bytes())
        self._seen = (generation, state)
        return state

    def image(self) -> Image:
        """Return what the card boots."""
        return self.state().image or Image(name=f"factory-{self.dpu.firmware or self.dpu.generation}")

    def save(self, state: CardState) -> None:
        """Replace the state in one step; call under :meth:`locked`."""
        before = saved_mode(self.folder)
        self.generation[1] += 1  # before it, too: should we be killed in between, the others look again
        write_whole(self._file, _ENCODER.encode(state))
        self.ready_at[0] = 0.0 if state.boot is None else state.boot.ready_at
        self.generation[1] += 1
        machine = self._machine()
        if before not in (None, state.mode) and machine is not None:
            machine.changed()

    def change(self, **fields: object) -> CardState:
        """Replace some fields of the state; call under :meth:`locked`."""
        state = msgspec.structs.replace(self.state(), **fields)
        self.save(state)
        return state

    def console(self) -> tuple[ConsoleLine, ...]:
        """Return the whole console log, also the lines that are still to come."""
        path = self.folder / "console.json"
        return _LINES.decode(path.read_bytes()) if path.exists() else ()

    def write_console(self, lines: tuple[ConsoleLine, ...]) -> None:
        """Replace the console log; call under :meth:`locked`."""
        write_whole(self.folder / "console.json", _ENCODER.encode(lines))


def saved_mode(folder: Path) -> DpuMode | None:
    """Return the mode that is written down in a card's folder, or None as long as nobody has looked at the card."""
    try:
        return _STATE.decode((folder / "card.json").read_bytes()).mode
    except FileNotFoundError:
        return None


_CARDS: WeakKeyDictionary[Machine, dict[str, Card]] = WeakKeyDictionary()


def cards_of(machine: Machine) -> dict[str, Card]:
    """Return all cards of a machine by device id."""
    cards = _CARDS.get(machine)
    if cards is None:
        found = (Card(machine, host, dpu) for host in machine.graph.hosts for dpu in host.dpus)
        cards = _CARDS[machine] = {card.id: card for card in found}
    return cards


def find_card(machine: Machine, dpu_id: str) -> Card:
    """Return one card, or raise :class:`~hal.errors.DeviceNotFound`."""
    card = cards_of(machine).get(dpu_id)
    if card is None:
        raise device_not_found(dpu_id)
    return card


def card_of_rnic(machine: Machine, rnic_name: str, host_name: str) -> str | None:
    """Return the device id of the card that an RDMA NIC sits on (``Device.parent``), or None."""
    for card in cards_of(machine).values():
        if card.host.name != host_name:
            continue
        if rnic_name in card.dpu.rnics or any(
            rnic.name == rnic_name and rnic.dpu == card.dpu.name for rnic in card.host.rnics
        ):
            return card.id
    return None


def is_up(machine: Machine, dpu_id: str) -> bool:
    """True if the card's NICs work: it is ready, and neither lost nor in a firmware fault.

    False while it boots, hangs or is without power. Raises :class:`~hal.errors.DeviceNotFound` for another device.
    """
    cards = _CARDS.get(machine)
    card = cards.get(dpu_id) if cards is not None else None
    if card is None:
        card = find_card(machine, dpu_id)
    ready_at = card.ready_at[0]
    if ready_at and machine.clock.now() < ready_at:
        return False
    faults = machine.faults_of(dpu_id)
    return not faults or all(fault.type not in _TAKES_NICS_DOWN for fault in faults)


def boot_state(machine: Machine, dpu_id: str) -> tuple[BootState, float]:
    """Return how far the card has come, and since when (0: since before anybody looked)."""
    boot = find_card(machine, dpu_id).state().boot
    return (BootState.READY, 0.0) if boot is None else boot.at(machine.clock.now())


def begin_boot(machine: Machine, dpu_id: str, start: BootState = BootState.ROM) -> Boot:
    """Begin a boot and return it at once: ``off`` for a power cycle, ``rom`` for a hard reset, ``uefi`` for a soft one.

    What does not survive a reset is forgotten: virtual functions and NVMe exposures here; the caller ends services
    and flows. A power cycle makes a pending mode the current one. A card with the boot-hang fault will not be ready.
    """
    card = find_card(machine, dpu_id)
    now = machine.clock.now()
    hangs = any(fault.type is FaultType.BOOT_HANG for fault in machine.faults_of(dpu_id))
    with card.locked():
        state = card.state()
        mode, pending = state.mode, state.pending_mode
        if start is BootState.OFF and pending is not None:
            mode, pending = pending, None
        seed = f"{machine.graph.seed}/{dpu_id}/{state.boots + 1}"
        boot = plan_boot(seed, now, mode, start, hangs=hangs)
        came = tuple(line for line in card.console() if line.at <= now)
        first = came[-1].number + 1 if came else 0
        coming = console_lines(
            boot, first, generation=card.dpu.generation, image=card.image().name, serial=card.dpu.serial
        )
        card.write_console((*came, *coming))
        card.change(mode=mode, pending_mode=pending, boots=state.boots + 1, boot=boot, vf_count=0, exposures=())
    return boot


def bmc_set_mode(machine: Machine, dpu_id: str, mode: DpuMode) -> None:
    """Choose the mode of the next power cycle as the card's own controller may: also out of restricted mode."""
    card = find_card(machine, dpu_id)
    with card.locked():
        card.change(pending_mode=None if mode is card.state().mode else mode)
