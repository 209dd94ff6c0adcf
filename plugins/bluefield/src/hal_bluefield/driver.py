"""The driver: finds the cards by host discovery, asks each in a thread of its own, and takes back what leases leave."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hal.drivers.contract import READY, Cause, Discovery, Grant, HostRoot, Problem, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.drivers.guard import Guard
from hal.drivers.guarded import Call
from hal.errors import DeviceError, DeviceNotFound, DriverError, Unsupported, UsageError
from hal.host.driver import discover_host
from hal.host.identity import is_bluefield
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.dpu import ResetLevel
from hal.interfaces.operation import Operation
from hal.model.device import Device
from hal.model.health import Condition, Severity, Status
from hal.model.kind import Kind
from hal_bluefield import boot
from hal_bluefield.card import Card
from hal_bluefield.config import CardConfig, load_config
from hal_bluefield.describe import DRIVER, describe
from hal_bluefield.handle import BlueField, ready_to_prepare

_MARGIN_SECONDS = 0.1


class BlueFieldDriver:
    """Drives BlueField cards; also ``Resets`` and ``Scrubs``."""

    name = DRIVER

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str]) -> None:
        self._hosts = tuple(hosts)
        self._environ = environ
        self._fences = Fences(fence_folder(environ))
        self._cards: dict[str, tuple[Card, tuple[str, ...]]] = {}

    def readiness(self) -> Readiness:
        """Say whether there is a card, and what is missing for more than a look at it."""
        try:
            config = load_config(self._environ)
        except UsageError as error:
            return Readiness(cause=Cause.BROKEN, detail=error.message, remedy=error.hint or "")
        for host in self._hosts:
            if _has_card(host):
                missing = [tool for tool in ("devlink", "ssh") if shutil.which(tool) is None]
                notes = [f"{tool} is not installed" for tool in missing]
                if not config:
                    notes.append("no BMC and no SSH configured: cards are shown, their own side is not driven")
                return msgspec.structs.replace(READY, detail="; ".join(notes))
        return Readiness(
            cause=Cause.NO_HARDWARE, detail="no BlueField among the PCI functions", remedy="hal-probe doctor dpu"
        )

    def discover(self, deadline: Deadline) -> Discovery:
        """Return all cards, asked side by side; one that does not answer in time is shown as sysfs shows it."""
        problems: list[Problem] = []
        self._find_cards(problems, deadline)
        now = time.time()
        own = Deadline.after(max(0.0, deadline.remaining_seconds - _MARGIN_SECONDS)) if deadline.timeout else deadline
        calls = {
            device_id: Call(_describing(card, rnics, now, own), device_id)
            for device_id, (card, rnics) in self._cards.items()
        }
        devices: list[Device] = []
        for device_id, call in calls.items():
            card = self._cards[device_id][0]
            if call.join(own) and call.value is not None:
                devices.append(call.value)
                continue
            why = str(call.error) if call.error is not None else "the card did not answer in time"
            problems.append(Problem(source=device_id, step="discover", detail=why, fatal=False))
            devices.append(_silent(card, why, now))
        return Discovery(devices=tuple(devices), problems=tuple(problems))

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold on the cards now."""
        for device_id in device_ids:
            self._find(device_id, "sample", deadline)
        found = {device.id: device for device in self.discover(deadline).devices}
        return [condition for device_id in device_ids for condition in found[device_id].conditions]

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Raise the fence, and end what an earlier lease has left."""
        card = self._usable(device_id, "prepare", deadline)
        card.admit("prepare", deadline)
        ready_to_prepare(card, deadline)
        self._fences.raise_to(device_id, grant, "prepare")
        card.take_back(grant.fence - 1, "prepare", deadline)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """End the lease's services, flow rules and virtual functions."""
        card = self._usable(device_id, "unprepare", deadline)
        self._fences.raise_to(device_id, grant, "unprepare")
        card.take_back(grant.fence, "unprepare", deadline)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> BlueField:
        """Open a card in this process."""
        card, rnics = self._find(device_id, "open", deadline)
        self._usable(device_id, "open", deadline)
        fresh = Card(card.device, self._host_of(card), self._config().get(_serial(card.device)), self._environ)
        return BlueField(fresh, describe(fresh, rnics, time.time(), deadline), guard)

    def close(self) -> None:
        """Close the connections to the BMCs."""
        for card, _ in self._cards.values():
            card.close()

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Restart a card from its boot ROM on, or by rshim where no BMC is configured."""
        card = self._usable(device_id, "reset", or_default(deadline))
        card.admit("reset", or_default(deadline))
        return boot.reset(card, ResetLevel.SOFT if card.bmc is None else ResetLevel.HARD, deadline)

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """End every service, flow rule and virtual function; the card's disk is not erased (push an image for that)."""
        limit = or_default(deadline, 60.0)
        card = self._usable(device_id, "scrub", limit)
        card.admit("scrub", limit)
        return Operation.spawn(device_id, "scrub", lambda _: card.take_back(1 << 63, "scrub", limit))

    def _config(self) -> dict[str, CardConfig]:
        return load_config(self._environ)

    def _find_cards(self, problems: list[Problem], deadline: Deadline) -> None:
        config = self._config()
        found: dict[str, tuple[Card, tuple[str, ...]]] = {}
        for host in self._hosts:
            try:
                seen = discover_host(host, deadline=deadline)
            except DriverError as error:
                problems.append(Problem(source=host.node, step="discover", detail=error.message, hint=error.hint or ""))
                continue
            for device in seen.devices:
                if device.kind is Kind.DPU:
                    rnics = (each.id for each in seen.devices if each.kind is Kind.RNIC and each.parent == device.id)
                    card = self._card_of(device, host, config.get(_serial(device)))
                    found[device.id] = (card, tuple(rnics))
        self._cards = found

    def _card_of(self, device: Device, host: HostRoot, config: CardConfig | None) -> Card:
        """Return the card that is known already, its connections with it: a reset under way may use them."""
        known = self._cards.get(device.id)
        if known is not None and known[0].made_of == (device, host, config):
            return known[0]
        return Card(device, host, config, self._environ)

    def _find(self, device_id: str, step: str, deadline: Deadline) -> tuple[Card, tuple[str, ...]]:
        if device_id not in self._cards:
            self._find_cards([], deadline)
        if device_id not in self._cards:
            raise DeviceNotFound("no BlueField of that id", device=device_id, during=step, hint="hal-probe list")
        return self._cards[device_id]

    def _usable(self, device_id: str, step: str, deadline: Deadline) -> Card:
        card = self._find(device_id, step, deadline)[0]
        if not card.ours:
            raise Unsupported(
                "the card is in a recorded tree: it can be looked at, not used",
                device=device_id,
                during=step,
                hint='on the machine itself; or root = "FOLDER" for the card in bluefield.toml',
            )
        return card

    def _host_of(self, card: Card) -> HostRoot:
        node = card.device.location.node
        return next(host for host in self._hosts if host.node == node)


def _describing(card: Card, rnics: Sequence[str], now: float, deadline: Deadline) -> _Describe:
    return _Describe(card, rnics, now, deadline)


class _Describe:
    """One card's description, to be called in a thread."""

    def __init__(self, card: Card, rnics: Sequence[str], now: float, deadline: Deadline) -> None:
        self._arguments = (card, rnics, now, deadline)

    def __call__(self) -> Device:
        return describe(*self._arguments)


def _serial(device: Device) -> str:
    return str(device.value("serial") or "")


def _silent(card: Card, why: str, now: float) -> Device:
    unknown = Condition(
        device=card.id,
        type="NoAnswer",
        severity=Severity.CRITICAL,
        status=Status.UNKNOWN,
        evidence=why,
        source=DRIVER,
        first_seen_at=now,
        last_seen_at=now,
    )
    return msgspec.structs.replace(
        card.device, driver=DRIVER, allocatable=card.ours, conditions=(*card.device.conditions, unknown)
    )


def _has_card(host: HostRoot) -> bool:
    return any(is_bluefield(vendor, device) for vendor, device in _functions(host))


def _functions(host: HostRoot) -> Iterator[tuple[str, str]]:
    folder = host.path("sys", "bus", "pci", "devices")
    try:
        addresses = sorted(folder.iterdir())
    except OSError:
        return
    for address in addresses:
        try:
            vendor, device = ((address / name).read_text().strip().removeprefix("0x") for name in ("vendor", "device"))
        except (OSError, DeviceError, UnicodeDecodeError):
            continue
        yield vendor, device
