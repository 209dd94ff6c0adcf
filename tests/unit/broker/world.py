"""Small data centers for the broker's tests."""

from __future__ import annotations

import msgspec

from hal.broker import command as c
from hal.broker.core import decide
from hal.broker.decisions.leases import newest_fence
from hal.broker.state import State
from hal.model.attributes import known
from hal.model.claim import Claim, Constraint, Locality, Request
from hal.model.device import Device, Location
from hal.model.health import Condition, Severity, Status
from hal.model.kind import Kind

GIB = 1 << 30


def device(
    id: str,
    kind: Kind = Kind.GPU,
    node: str = "n0",
    *,
    numa: int | None = 0,
    switch: str | None = None,
    rack: str | None = "r0",
    parent: str | None = None,
    allocatable: bool = True,
    conditions: tuple[Condition, ...] = (),
    driver: str = "fake",
    **attributes: object,
) -> Device:
    return Device(
        id=id,
        kind=kind,
        name=id.rpartition("/")[2],
        driver=driver,
        location=Location(
            node=node, rack=rack, numa_node=numa, pci_path=("pci0000:00", switch) if switch else ("pci0000:00",)
        ),
        attributes={name: known(value, "test") for name, value in attributes.items()},
        parent=parent,
        allocatable=allocatable,
        conditions=conditions,
    )


def condition(device_id: str, severity: Severity = Severity.FATAL, status: Status = Status.TRUE, **fields) -> Condition:
    return Condition(
        device=device_id,
        type="Broken",
        severity=severity,
        status=status,
        evidence=fields.pop("evidence", "it broke"),
        source=fields.pop("source", "fake"),
        **fields,
    )


def server(node: str, pairs: int = 8, rack: str = "r0") -> list[Device]:
    """Like a DGX: each switch has a GPU and a NIC, half of them on each NUMA node."""
    found: list[Device] = []
    for i in range(pairs):
        numa, switch = int(i >= pairs / 2), f"0000:{i:02x}:00.0"
        found.append(
            Device(
                id=f"{node}/switch{i}",
                kind=Kind.SWITCH,
                name=switch,
                driver="sysfs",
                location=Location(node=node, rack=rack, numa_node=numa, pci_address=switch, pci_path=("pci0000:00",)),
            )
        )
        for kind, name in ((Kind.GPU, "gpu"), (Kind.RNIC, "mlx5_")):
            found.append(
                device(f"{node}/{name}{i}", kind, node, numa=numa, switch=switch, rack=rack, memory_bytes=80 * GIB)
            )
    return found


def run(state: State, command: c.AnyCommand, now: float = 1000.0) -> c.Answer:
    records, answer = decide(state, command, now)
    for record in records:
        state.apply(record)
    return answer


def state_of(devices, now: float = 1000.0) -> State:
    state = State()
    run(state, c.Begin(boot_id="boot-1"), now)
    run(state, c.Observe(devices=tuple(devices), complete=True), now)
    return state


def claim(
    id: str, kind: Kind | str = Kind.GPU, count: int = 1, where: str = "", same: str | None = None, **fields
) -> Claim:
    requests = fields.pop("requests", None) or (Request(kind=Kind(kind), count=count, where=where),)
    constraints = fields.pop("constraints", None) or ((Constraint(same=Locality(same)),) if same else ())
    return Claim(id=id, requests=requests, constraints=constraints, **fields)


def request(kind: Kind | str, count: int = 1, where: str = "", name: str = "") -> Request:
    return Request(kind=Kind(kind), count=count, where=where, name=name)


def grant(state: State, wanted: Claim, now: float = 1000.0):
    answer = run(state, c.ClaimDevices(claim=wanted), now)
    assert isinstance(answer, c.Granted), answer
    return answer.lease


def prepared(state: State, lease_id: str, now: float = 1000.0):
    """Have a lease's devices prepared, as the agent would."""
    run(state, c.MarkPrepared(lease=lease_id, fence=newest_fence(state.leases[lease_id])), now)
    return state.leases[lease_id]


def give_back(state: State, lease, now: float = 1000.0) -> None:
    run(state, c.Release(lease=lease.id), now)
    run(state, c.ProveReleased(lease=lease.id, fence=lease.fence), now)


def queued(state: State, wanted: Claim, now: float = 1000.0) -> c.Queued:
    answer = run(state, c.ClaimDevices(claim=wanted), now)
    assert isinstance(answer, c.Queued), answer
    return answer


def refused(state: State, wanted: Claim, now: float = 1000.0) -> str:
    answer = run(state, c.ClaimDevices(claim=wanted), now)
    assert isinstance(answer, c.Refused), answer
    return answer.reason


def ids(lease) -> tuple[str, ...]:
    return tuple(device.id for device in lease.devices)


def changed(device: Device, **fields) -> Device:
    return msgspec.structs.replace(device, **fields)


def pump(state: State, now: float = 1000.0) -> list[str]:
    """Serve the queue as the ledger does, and return the claims that were granted."""
    granted = []
    for _ in range(1000):
        records, answer = decide(state, c.Schedule(), now)
        for record in records:
            state.apply(record)
        if isinstance(answer, c.Granted):
            granted.append(answer.lease.id)
        if not records:
            return granted
    raise AssertionError("the queue never comes to rest")


def leave(state: State, lease_id: str, now: float = 1000.0) -> list[str]:
    """End a lease as its holder and the agent would, and serve the queue."""
    give_back(state, state.leases[lease_id], now)
    return pump(state, now)
