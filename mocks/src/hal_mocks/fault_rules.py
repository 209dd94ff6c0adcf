"""Which fault can happen to which kind of device, and faults drawn at random from a seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import msgspec

from hal.errors import UsageError
from hal.model.kind import ACCELERATORS, Kind
from hal_mocks.faults import Fault, FaultType

if TYPE_CHECKING:
    from hal_mocks.graph import Graph
    from hal_mocks.names import Named

_MODULES = ACCELERATORS | {Kind.MEMORY}
KINDS: dict[FaultType, frozenset[Kind]] = {
    FaultType.LOST: _MODULES | {Kind.NVME},
    FaultType.FALLEN_OFF_BUS: _MODULES | {Kind.NVME, Kind.NIC},
    FaultType.HANG: _MODULES | {Kind.NVME, Kind.NIC},
    FaultType.SLOW: ACCELERATORS,
    FaultType.LIE: ACCELERATORS,
    FaultType.XID: frozenset({Kind.GPU}),
    FaultType.ECC_UNCORRECTABLE: frozenset({Kind.GPU, Kind.UPMEM}),
    FaultType.LINK_DOWN: frozenset({Kind.GPU, Kind.RNIC, Kind.NIC}),
    FaultType.FLAP: frozenset({Kind.GPU, Kind.RNIC, Kind.NIC}),
    FaultType.LINK_DEGRADED: frozenset({Kind.GPU, Kind.RNIC, Kind.DPU, Kind.NIC, Kind.NVME}),
    FaultType.BAD_BLOCK: frozenset({Kind.PMEM}),
    FaultType.READ_ONLY: frozenset({Kind.PMEM}),
    FaultType.THERMAL: frozenset({Kind.DPU, Kind.PMEM, Kind.UPMEM}),
    FaultType.BOOT_HANG: frozenset({Kind.DPU}),
    FaultType.FW_FATAL: frozenset({Kind.DPU}),
    FaultType.RUN_FAULT: frozenset({Kind.UPMEM}),
}
"""To which kinds a fault can happen: those whose driver or sysfs shows it."""

_XIDS = (13, 31, 43, 48, 63, 74, 79, 94, 95, 119)
_DETAILS = frozenset(Fault.__struct_fields__) - {"id", "device", "type", "onset_at", "duration_seconds"}


def plan_fault(
    device: Named,
    type: FaultType,
    after_seconds: float,
    duration_seconds: float | None,
    details: Mapping[str, object],
) -> Fault:
    """Return a fault that is to be set, its ``onset_at`` counting from then; raises ``UsageError`` for nonsense."""
    if device.kind not in KINDS[type]:
        fitting = ", ".join(sorted(kind for kind in KINDS if device.kind in KINDS[kind]))
        raise UsageError(f"{type} does not happen to a {device.kind}", device=device.name, hint=fitting)
    unknown = sorted(set(details) - _DETAILS)
    if unknown:
        raise UsageError(f"a fault has no {unknown[0]!r}", device=device.name, hint=", ".join(sorted(_DETAILS)))
    for name, seconds in (("after_seconds", after_seconds), ("duration_seconds", duration_seconds)):
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise UsageError(f"{name} is {seconds}", device=device.name, hint="seconds, 0 or more")
    try:
        fault = msgspec.convert(
            {
                "id": 0,
                "device": device.id,
                "type": type,
                "onset_at": after_seconds,
                "duration_seconds": duration_seconds,
                **details,
            },
            Fault,
        )
    except msgspec.ValidationError as error:
        raise UsageError(str(error), device=device.name, hint="see hal_mocks.faults.Fault") from None
    if fault.type is FaultType.XID and fault.code is None:
        raise UsageError("an XID has a number", device=device.name, hint="code=79")
    if min(fault.seconds, fault.offset, fault.length, fault.generation, fault.width, fault.dpu, fault.tasklet) < 0:
        raise UsageError("seconds, offsets, lengths, generations, widths are not negative", device=device.name)
    return fault


def random_faults(
    graph: Graph,
    seed: int,
    rate_per_hour: float,
    hours: float = 1.0,
    types: Collection[FaultType] | None = None,
    heals_after_seconds: float | None = 300.0,
) -> tuple[Fault, ...]:
    """Return a schedule of faults for :meth:`~hal_mocks.machine.Machine.schedule`, the same for the same arguments.

    ``rate_per_hour`` is for each device. Onsets are a Poisson process, so they cluster as real ones do; durations are
    exponential around ``heals_after_seconds`` (None: a fault stays until it is healed).
    """
    from hal_mocks.names import devices_of

    if not 0 <= rate_per_hour <= 1e6 or not 0 <= hours <= 1e6:
        raise UsageError(f"{rate_per_hour} faults an hour for {hours} hours", hint="both 0 or more")
    rng = random.Random(seed)
    found: list[Fault] = []
    for host in graph.hosts:
        for device in sorted(devices_of(host), key=lambda one: one.id):
            fitting = [t for t in KINDS if device.kind in KINDS[t] and (types is None or t in types)]
            at = rng.expovariate(rate_per_hour / 3600) if rate_per_hour and fitting else float("inf")
            while at < hours * 3600:
                found.append(_random_fault(rng, device, rng.choice(fitting), at, heals_after_seconds))
                at += rng.expovariate(rate_per_hour / 3600)
    return tuple(sorted(found, key=lambda fault: (fault.onset_at, fault.device)))


def _random_fault(
    rng: random.Random, device: Named, type: FaultType, at: float, heals_after_seconds: float | None
) -> Fault:
    details: dict[str, object] = {}
    if type is FaultType.XID:
        details["code"] = rng.choice(_XIDS)
    elif type in (FaultType.SLOW, FaultType.FLAP):
        details["seconds"] = round(rng.uniform(0.05, 20.0), 3)
    elif type is FaultType.LINK_DEGRADED:
        details |= {"generation": rng.randint(1, 4), "width": rng.choice((1, 2, 4, 8))}
    elif type is FaultType.BAD_BLOCK:
        details |= {"offset": rng.randrange(0, 1 << 20, 256), "length": 256}
    elif type is FaultType.LIE:
        details |= {"attribute": "memory_bytes", "value": str(rng.randrange(1 << 40))}
    for_seconds = None if heals_after_seconds is None else round(rng.expovariate(1 / heals_after_seconds), 3)
    return plan_fault(device, type, round(at, 3), for_seconds, details)
