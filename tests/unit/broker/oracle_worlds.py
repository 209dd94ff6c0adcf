"""Small data centers and claims at random. Each selector is made with the Python function that says what it means."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hal.model.attributes import known
from hal.model.claim import FRACTION, Claim, Constraint, Gang, Gather, Locality, Request, Share
from hal.model.device import Device, Location
from hal.model.health import Condition, Presence, Severity, Status
from hal.model.kind import Kind
from tests.unit.broker.oracle_values import Predicate

SLICES = 8
PROFILES = {"1g": (1, tuple(range(7))), "2g": (2, (0, 2, 4)), "3g": (4, (0, 4)), "7g": (8, (0,))}
"""Like an H100's: slices of memory, and where a partition may start."""


def _size(test: Callable[[Any], bool]) -> Predicate:
    return lambda device: test(device.value("size")) if device.value("size") is not None else None


SELECTORS: dict[str, Predicate] = {
    "size >= 2": _size(lambda size: size >= 2),
    "size <= 2": _size(lambda size: size <= 2),
    "size != 2": _size(lambda size: size != 2),
    "size == 1": _size(lambda size: size == 1),
    'colour == "red"': lambda d: d.value("colour") == "red",
    'size < 3 and colour == "red"': lambda d: d.value("size") in (1, 2) and d.value("colour") == "red",
    "numa == 0": lambda d: d.location.numa_node == 0,
    'node == "n0"': lambda d: d.location.node == "n0",
}


def profiles_of(devices: tuple[Device, ...]) -> dict[str, dict[str, tuple[int, tuple[int, ...]]]]:
    """Return how each device may be parted."""
    return {device.id: PROFILES for device in devices if device.value("mig_mode") == "enabled"}


def made_of(devices: tuple[Device, ...]) -> dict[str, int]:
    """Return the slices that parts take which exist."""
    found = {}
    for device in devices:
        profile, start = device.value("mig_profile"), device.value("mig_start")
        if isinstance(start, int):
            found[device.id] = ((1 << PROFILES[str(profile)][0]) - 1) << start
    return found


_TABLE = tuple(f"{name}:{size}:{','.join(map(str, starts))}" for name, (size, starts) in PROFILES.items())


def random_devices(rng: random.Random) -> tuple[Device, ...]:
    """One to four nodes with one to eight devices each, that seldom look quite alike."""
    found: list[Device] = []
    alike = rng.random() < 0.3
    for n in range(rng.choice([1, 2, 2, 3, 3, 4])):
        found += _node(rng if not alike else random.Random(rng.getrandbits(1)), f"n{n}", rng)
    return tuple(found)


def _node(rng: random.Random, node: str, dice: random.Random) -> list[Device]:
    rack, domain = dice.choice(["r0", "r0", "r1", None]), dice.choice(["d0", "d0", "d1", None])
    upper, lower = "0000:10:00.0", ("0000:11:00.0", "0000:12:00.0")
    here: list[Device] = []
    for name in (upper, *lower):
        if rng.random() < 0.85:
            where = Location(node=node, rack=rack, pci_path=("pci0000:00",), pci_address=name)
            here.append(Device(id=f"{node}/{name}", kind=Kind.SWITCH, name=name, driver="sysfs", location=where))
    kinds = rng.choice([[Kind.GPU], [Kind.GPU, Kind.RNIC], [Kind.GPU, Kind.GPU, Kind.RNIC, Kind.DPU]])
    for i in range(rng.choice([1, 2, 3, 4, 4, 5, 6, 8])):
        switch = rng.choice([*lower, None])
        path = ("pci0000:00", *((upper,) if rng.random() < 0.5 else ()), *((switch,) if switch else ()))
        attributes: dict[str, Any] = {"size": known(rng.choice([1, 2, 3]), "test")}
        if rng.random() < 0.9:
            attributes["colour"] = known(rng.choice(["red", "blue"]), "test")
        if domain is not None and rng.random() < 0.9:
            attributes["link_domain"] = known(domain, "test")
        kind = rng.choice(kinds)
        if kind is Kind.GPU and rng.random() < 0.5:
            attributes["mig_mode"] = known(rng.choice(["enabled", "enabled", "disabled"]), "test")
            attributes["partition_placements"] = known(_TABLE, "test")
        parents = [d.id for d in here if d.kind in (Kind.DPU, Kind.GPU) and not d.value("mig_profile")]
        device_id = f"{node}/d{i}"
        here.append(
            Device(
                id=device_id,
                kind=kind,
                name=f"d{i}",
                driver="fake",
                location=Location(node=node, rack=rack, numa_node=rng.choice([0, 0, 1, 1, None]), pci_path=path),
                attributes=attributes,
                capacity={"memory_bytes": rng.choice([40, 80])} if rng.random() < 0.9 else {},
                parent=rng.choice(parents) if parents and rng.random() < 0.12 else None,
                allocatable=rng.random() < 0.96,
                presence=Presence.MISSING if rng.random() < 0.02 else Presence.PRESENT,
                conditions=_conditions(dice, device_id),
            )
        )
        if here[-1].value("mig_mode") == "enabled" and rng.random() < 0.2:
            here.append(_part(rng, here[-1]))
    return here


def _part(rng: random.Random, whole: Device) -> Device:
    """A part of a GPU that somebody made before."""
    profile = rng.choice(["1g", "2g", "3g"])
    attributes = {"mig_profile": known(profile, "test"), "mig_start": known(rng.choice(PROFILES[profile][1]), "test")}
    return Device(
        id=f"{whole.id}p",
        kind=Kind.GPU,
        name=f"{whole.name}p",
        driver="fake",
        location=whole.location,
        attributes={**attributes, "size": known(1, "test")},
        parent=whole.id,
        allocatable=True,
    )


def _conditions(rng: random.Random, device_id: str) -> tuple[Condition, ...]:
    if rng.random() > 0.08:
        return ()
    return (
        Condition(
            device=device_id,
            type=rng.choice(["Hot", "Worn"]),
            severity=rng.choice([Severity.WARN, Severity.DEGRADED, Severity.FATAL]),
            status=rng.choice([Status.TRUE, Status.TRUE, Status.UNKNOWN]),
            evidence="it was seen",
            source="fake",
        ),
    )


ALL = frozenset(
    (
        *("where", "tolerate", "capacity", "shared", "profile", "alternatives", "all"),
        *("pairwise", "distinct", "attribute", "wish", "gang", "link-domain"),
    )
)
"""What a claim can use besides counts of a kind in the same place."""


def random_claim(rng: random.Random, claim_id: str, features: frozenset[str] = ALL) -> Claim:
    """One claim of one to three requests; ``features`` says what it may use."""

    def dare(feature: str, chance: float) -> bool:
        return rng.random() < chance and feature in features

    many = dare("gang", 0.25)
    selective = 0.15 if many else 0.35

    def choice(count: int | None = None, **fields: Any) -> Request:
        fields["kind"] = rng.choice([Kind.GPU, Kind.GPU, Kind.GPU, Kind.GPU, Kind.RNIC, Kind.DPU])
        few = [1, 1, 1, 1, 2] if many else [1, 1, 1, 2, 2, 3]
        fields["count"] = count if count is not None else "all" if dare("all", 0.06) else rng.choice(few)
        if dare("where", selective):
            fields["where"] = rng.choice(list(SELECTORS))
        if dare("tolerate", 0.1):
            fields["tolerate"] = (rng.choice(["Hot", "Worn"]),)
        if dare("shared", 0.12):
            shares = ({FRACTION: 500}, {FRACTION: 300}, {"memory_bytes": 30}, {"memory_bytes": 50, FRACTION: 100})
            fields["share"], fields["capacity"] = Share.SHARED, rng.choice(shares)
        elif dare("profile", 0.12):
            fields["kind"], fields["profile"] = Kind.GPU, rng.choice(list(PROFILES))
        elif dare("capacity", 0.12):
            fields["capacity"] = rng.choice([{"memory_bytes": 50}, {"memory_bytes": 30}, {FRACTION: 1000}])
        return Request(**fields)

    levels = [level for level in _PLACES if level in features or level != "link-domain"]
    pairwise = dare("pairwise", 0.2)
    count = rng.choice([1, 1] if many else [1, 2, 2, 3]) if pairwise else None
    requests = []
    for i in range(2 if pairwise else rng.choice([1, 1, 1, 2] if many else [1, 1, 2, 2, 3])):
        others = tuple(
            choice(count, cost=float(rng.choice([1, 2, 4])))
            for _ in range(rng.choice([1, 1, 2]) if dare("alternatives", 0.15) else 0)
        )
        requests.append(choice(count, name=f"q{i}", or_else=others))
    names = [request.name for request in requests]
    constraints = [Constraint(same=rng.choice(levels), pairwise=True)] if pairwise else []
    for _ in range(rng.choice([0, 0, 0, 1] if many else [0, 0, 1, 1, 2])):
        what = rng.choice(["size", "colour"]) if dare("attribute", 0.25) else rng.choice(levels)
        field = "distinct" if dare("distinct", 0.2) else "same"
        some = tuple(rng.sample(names, rng.randint(1, len(names)))) if rng.random() < 0.5 else ()
        weight = float(rng.choice([1, 2, 4])) if dare("wish", 0.25) else None
        constraints.append(Constraint(**{field: what}, requests=some, weight=weight))
    fields: dict[str, Any] = {}
    if many:
        fields["replicas"] = rng.choice([2, 2, 3, 4])
        if rng.random() < 0.25:
            fields["max_replicas"] = fields["replicas"] + rng.choice([1, 2])
        if rng.random() < 0.7:
            how = rng.choice(list(Gather))
            most = rng.choice([None, None, 1, 2]) if how is not Gather.ONE else None
            over = rng.choice([Locality.NODE, Locality.RACK, Locality.RACK, Locality.LINK_DOMAIN])
            fields["gang"] = Gang(how=how, over=over, most=most)
    return Claim(id=claim_id, requests=tuple(requests), constraints=tuple(constraints), **fields)


_PLACES = ["node", "node", "numa", "pci-switch", "pci-switch", "rack", "rack", "link-domain"]
