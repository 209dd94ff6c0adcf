"""The broker's core as a scheduler of the trace: claims, grants and releases on virtual time, journal in memory."""

from __future__ import annotations

from collections.abc import Sequence

from hal.broker import command as c
from hal.broker.allocation.scoring import POLICIES
from hal.broker.journal.memory import MemoryStore
from hal.broker.ledger import Ledger
from hal.model.attributes import known
from hal.model.claim import FRACTION, Claim, Constraint, Locality, Request, Share
from hal.model.device import Device, Location
from hal.model.kind import Kind
from tests.trace.cluster import Place
from tests.trace.openb import WHOLE, Machine, Task

FOREVER_SECONDS = 3e8


class VirtualClock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        """Return the seconds."""
        return self.seconds


class Broker:
    """Places tasks by :func:`hal.broker.core.decide`, under one of the allocator's policies."""

    def __init__(self, machines: Sequence[Machine], policy: str) -> None:
        self.clock = VirtualClock()
        self.ledger = Ledger(MemoryStore(), self.clock)
        self.ledger.state.policy = POLICIES[policy]
        self.number = {machine.name: number for number, machine in enumerate(machines)}
        devices = [device for machine in machines for device in _gpus(machine)]
        self.gpu = {device.id: int(device.name[3:]) for device in devices}
        self.ledger.execute(c.Begin(boot_id="trace"))
        self.ledger.execute(c.Observe(devices=tuple(devices), complete=True))

    def place(self, task: Task) -> Place | None:
        """Claim, and return what was granted."""
        answer = self.ledger.execute(c.ClaimDevices(claim=claim_of(task)))
        if isinstance(answer, c.Refused):
            return None
        if not isinstance(answer, c.Granted):
            raise AssertionError(f"{task}: {answer}")
        devices = answer.lease.devices
        (node,) = {device.node for device in devices}
        return self.number[node], tuple(self.gpu[device.id] for device in devices)

    def end(self, task: Task) -> None:
        """Release, with the proof that a real agent would bring."""
        lease = self.ledger.state.leases[task.name]
        self.ledger.execute(c.Release(lease=lease.id))
        self.ledger.execute(c.ProveReleased(lease=lease.id, fence=lease.fence))


def claim_of(task: Task) -> Claim:
    """Return what a task asks of the broker: whole GPUs of one machine, or a part of a shared one."""
    if task.milli < WHOLE:
        request = Request(kind=Kind.GPU, share=Share.SHARED, capacity={FRACTION: task.milli})
        return Claim(id=task.name, requests=(request,), ttl_seconds=FOREVER_SECONDS)
    together = (Constraint(same=Locality.NODE.value),) if task.gpus > 1 else ()
    request = Request(kind=Kind.GPU, count=task.gpus)
    return Claim(id=task.name, requests=(request,), constraints=together, ttl_seconds=FOREVER_SECONDS)


def _gpus(machine: Machine) -> list[Device]:
    return [
        Device(
            id=f"{machine.name}/gpu{gpu}",
            kind=Kind.GPU,
            name=f"gpu{gpu}",
            driver="trace",
            location=Location(node=machine.name),
            attributes={"model": known(machine.model, "trace")},
            allocatable=True,
        )
        for gpu in range(machine.gpus)
    ]
