"""What the kernel says about ACME cards: ``class/acme/<card>`` of sysfs, one attribute a file.

==========================  ===========================================================================
``serial``                  stable across reboots: the identity
``model``                   for people
``size_bytes``              the card's memory
``memory``                  the file through which it is mapped, an absolute path on that machine
``persistence_domain``      ``memory_controller`` or ``cpu_cache``
``numa_node``               -1 if the firmware does not know
``temperature_celsius``     now
``life_used_percent``       of the medium
``health``                  ``ok``, ``degraded`` or ``failed``
==========================  ===========================================================================
"""

from __future__ import annotations

import os

import msgspec

from hal.drivers.contract import HostRoot, Problem
from hal.errors import DriverError
from hal.host.tree import HostTree, Missing
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Location
from hal.model.health import Action, Condition, Presence, Severity, Status
from hal.model.kind import Kind

DRIVER = "example"
CLASS = "class/acme"
_TEXTS = ("serial", "model", "persistence_domain", "health")
_NUMBERS = ("size_bytes", "temperature_celsius", "life_used_percent")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A card as found. ``memory`` is the file to map, None if the card names none that can be used."""

    name: str
    node: str
    rack: str | None
    facts: dict[str, Attribute]
    memory: str | None

    @property
    def id(self) -> str:
        """The serial number, or the name on this node where there is none."""
        serial = self.facts["serial"].value
        return f"pmem-{serial}" if serial is not None else f"{self.node}/pmem/{self.name}"

    @property
    def size_bytes(self) -> int:
        """The size, 0 if it is not known."""
        size = self.facts["size_bytes"].value
        return size if isinstance(size, int) and size > 0 else 0


def find_cards(host: HostRoot) -> tuple[list[Card], list[Problem]]:
    """Return the cards of one machine. A file that cannot be read costs an attribute, never a card."""
    try:
        with HostTree(host.root) as tree:
            cards = [_read_card(tree, host, name) for name in tree.sys.names(CLASS)]
    except DriverError as error:
        return [], [Problem(source=DRIVER, step="discover", detail=error.message, hint=error.hint or "")]
    return cards, []


def _read_card(tree: HostTree, host: HostRoot, name: str) -> Card:
    folder = f"{CLASS}/{name}"
    facts = {"vendor": known("ACME", "class/acme")}
    facts |= {key: tree.sys.text(folder, key) for key in _TEXTS}
    facts |= {key: tree.sys.count(folder, key) for key in _NUMBERS}
    node = tree.sys.count(folder, "numa_node")
    if isinstance(node.value, int) and node.value < 0:
        node = absent(Absence.NOT_REPORTED, node.source, "the firmware does not know")
    facts["numa_node"] = node
    path = tree.sys.line(f"{folder}/memory")
    # A recorded tree comes from elsewhere: what it names must not lead out of it.
    usable = not isinstance(path, Missing) and path.startswith("/") and os.path.normpath(path) == path
    memory = os.path.join(tree.root, str(path).lstrip("/")) if usable else None
    return Card(name=name, node=host.node, rack=host.rack, facts=facts, memory=memory)


def describe(card: Card, now: float) -> Device:
    """Return a card as a device."""
    facts = dict(card.facts)
    serial, node = facts["serial"].value, facts["numa_node"].value
    health = facts.pop("health")
    for measured in ("temperature_celsius", "life_used_percent"):
        facts.pop(measured)
    facts |= {"mode": known("devdax", DRIVER), "media": known("acme", DRIVER)}
    there = card.memory is not None and card.size_bytes > 0 and os.path.exists(card.memory)
    return Device(
        id=card.id,
        kind=Kind.PMEM,
        name=card.name,
        driver=DRIVER,
        location=Location(node=card.node, rack=card.rack, numa_node=node if isinstance(node, int) else None),
        aliases=(f"acme:{card.name}", *((f"serial:{serial}",) if serial is not None else ())),
        attributes=facts,
        capacity={"memory_bytes": card.size_bytes},
        conditions=judge(card, health, there, now),
        presence=Presence.PRESENT if there else Presence.GHOST,
        allocatable=there,
    )


def judge(card: Card, health: Attribute, there: bool, now: float) -> tuple[Condition, ...]:
    """Return what the card's own word and its memory amount to. No word is not a good word."""

    def condition(type: str, severity: Severity, evidence: str, status: Status = Status.TRUE) -> Condition:
        return Condition(
            device=card.id,
            type=type,
            severity=severity,
            status=status,
            evidence=evidence,
            source="sysfs:health",
            action=Action.REPLACE if severity is Severity.FATAL else Action.NONE,
            first_seen_at=now,
            last_seen_at=now,
        )

    if not there:
        return (condition("MemoryMissing", Severity.FATAL, f"{card.name} shows no memory to map"),)
    if health.value == "ok":
        return ()
    if health.value == "degraded":
        return (condition("MediaDegraded", Severity.DEGRADED, "the card says that it is degraded"),)
    if health.value == "failed":
        return (condition("MediaFailed", Severity.FATAL, "the card says that it has failed"),)
    why = health.absent or f"it says {health.value!r}"
    return (condition("HealthUnknown", Severity.WARN, f"the card does not say how it is: {why}", Status.UNKNOWN),)
