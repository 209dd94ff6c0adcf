"""The main job on a mock rack, start to end: discover, claim, open, use, break, refuse, mend, claim again, release.

Then two tenants want the same machine: a queue, a preemption with grace, and who was pushed out comes back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from hal.agent.repair import Repair
from hal.api.ask import make_claim, pairs
from hal.api.local import LocalBroker
from hal.api.opening import open_broker
from hal.broker.command import Granted, Queued
from hal.errors import ClaimRefused, HalError
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from hal.model.tenant import Tenant
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine, open_machine

PROFILE = "rack"
GRACE_SECONDS = 1.0
WAIT_SECONDS = 30.0
"""How long the demonstration waits for what should be there at once, before it calls that a mistake."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What is done with one kind: how it is claimed, how it is broken, what takes the cause away.

    ``cause`` is what a person does before the repair; empty if the driver's reset mends it alone. ``vouched``: the
    driver has no reset, so that person's word is the repair.
    """

    kind: Kind
    where: str
    fault: FaultType
    details: dict[str, int] = {}
    count: int = 1
    same: str | None = None
    cause: str = ""
    vouched: bool = False


SCENES = (
    Scene(
        kind=Kind.GPU,
        where="memory_bytes > 70*GB",
        fault=FaultType.XID,
        details={"code": 79},
        cause="the machine was rebooted",
    ),
    Scene(
        kind=Kind.RNIC,
        where="link_layer == 'InfiniBand'",
        count=2,
        same="numa",
        fault=FaultType.LINK_DOWN,
        cause="the cable was plugged in again",
    ),
    Scene(kind=Kind.DPU, where="mode == 'dpu'", fault=FaultType.FW_FATAL),
    Scene(
        kind=Kind.PMEM,
        where="media == 'optane' and numa == 0",
        fault=FaultType.BAD_BLOCK,
        details={"offset": 0, "length": 4096},
        cause="the bad block was cleared",
        vouched=True,
    ),
    Scene(kind=Kind.UPMEM, where="dpus == 64", fault=FaultType.LOST),
)


class Worker:
    """A process of its own that opens leases by their tickets; it never talks to the broker."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hal_mocks.demo_work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> str:
        """Send one line, return the one that answers it."""
        source, sink = self._process.stdin, self._process.stdout
        if source is None or sink is None:
            raise HalError("the worker has no pipes", during="demo")
        source.write(line + "\n")
        source.flush()
        reply = sink.readline().strip()
        if not reply:
            raise HalError("the worker ended without an answer", during="demo", hint="look at its messages above")
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate("quit\n", timeout=30)


def main() -> int:
    """Run the demonstration; 0 if everything went as it must."""
    with tempfile.TemporaryDirectory(prefix="hal-demo-") as folder:
        os.environ["HAL_MACHINE"] = f"{PROFILE}?state={folder}/machine&clock=virtual"
        machine = open_machine()
        if machine is None:
            raise HalError("no mock machine", during="demo")
        hosts = len(machine.graph.hosts)
        say(f"A mock rack of {hosts} machines (HAL_MACHINE={PROFILE}). What it says of speed would be simulated.")
        say("Its time is virtual: a card that takes half a minute to boot is back at once.")
        with open_broker(state=Path(folder, "broker"), deadline_seconds=30) as broker:
            counts = broker.status().devices
            say("discover  " + ", ".join(f"{row['all']} {kind}" for kind, row in counts.items()))
            results = [play(scene, broker, machine) for scene in SCENES]
            results.append(share(broker))
            right = all(results)
            say(f"\nleases left: {len(broker.list())}; journal at revision {broker.status().revision}")
    say("Everything went as it must." if right else "SOMETHING WENT WRONG, see above.")
    return 0 if right else 1


def play(scene: Scene, broker: LocalBroker, machine: Machine) -> bool:
    """Take one kind through its life; returns whether every step answered as it must."""
    say(f"\n{scene.kind.upper()}")
    with Worker() as worker:
        lease = broker.claim(scene.kind, count=scene.count, where=scene.where, same=scene.same, ttl_seconds=300)
        device = lease.devices[0]
        say(f"  claim    {', '.join(d.name for d in lease.devices)} on {device.node}, fence {lease.fence}")
        say(f"  open     {worker.ask(lease.ticket())}, in process {worker._process.pid}")
        used = worker.ask("work")
        say(f"  use      {used}")
        machine.inject(device.id, scene.fault, **scene.details)
        say(f"  fault    {scene.fault} {scene.details or ''}".rstrip())
        failed = worker.ask("work")
        say(f"  use      {failed}")
        lease.release()
        ended = worker.ask("work")
        say(f"  release  {ended}")
    only = f"({scene.where}) and id == '{device.id}'"
    try:
        broker.claim(scene.kind, where=only).release()
        refused = ""
    except ClaimRefused as error:
        refused = error.message
    say(f"  claim    refused: {refused}")
    done = mend(scene, broker, machine, device.id)
    cause = [scene.cause] if scene.cause and not scene.vouched else []
    cleared = ", ".join(dict.fromkeys(condition.type for condition in done.cleared))
    say(f"  repair   {', then '.join([*cause, *done.steps])}; cleared: {cleared or 'nothing'}")
    with Worker() as worker:
        again = broker.claim(scene.kind, count=scene.count, where=scene.where, same=scene.same, ttl_seconds=300)
        worker.ask(again.ticket())
        reused = worker.ask("work")
        say(f"  claim    {again.devices[0].name} again, fence {again.fence}")
        say(f"  use      {reused}")
        same = again.devices[0].id == device.id and again.fence > lease.fence
        again.release()
        say("  release  done")
    return (
        (used.startswith("ok") and failed.startswith("error") and "LeaseEnded" in ended and bool(refused))
        and reused.startswith("ok")
        and same
    )


def share(broker: LocalBroker) -> bool:
    """Let two tenants want more than there is; returns whether every step answered as it must."""
    say("\nTWO TENANTS")
    broker.set_tenant(Tenant(path="physics", quota={"gpu": 16}))
    say("  quota    physics may have 16 GPUs")
    with Worker() as worker:
        train = broker.claim(whole("train", "physics/ada", grace_seconds=GRACE_SECONDS))
        worker.ask(train.ticket())
        other = broker.claim(whole("other", "physics/eve", priority=5))
        for lease in (train, other):
            nodes = ", ".join(dict.fromkeys(device.node for device in lease.devices))
            say(f"  claim    {lease.id} of {lease.lease.tenant}: 8 GPUs, each with its own NIC, on {nodes}")
        try:
            broker.claim("gpu", tenant="physics/ada")
            refused = ""
        except ClaimRefused as error:
            refused = error.message
        say(f"  claim    refused: {refused}")
        urgent = whole("urgent", "biology/bob", priority=10, preempt=True)
        answer = broker.submit([urgent])[0]
        queued = isinstance(answer, Queued)
        why = broker.queue()[0].why if queued else ""
        say(f"  queue    urgent of biology/bob, priority 10, is at place 1: {why}")
        told = broker.get("train").lease
        say(f"  notice   train is {told.state.value}, {GRACE_SECONDS:g} s to leave: {told.notice}")
        used = worker.ask("work")
        say(f"  use      {used}")
        answer = broker.wait_for("urgent", Deadline.after(WAIT_SECONDS))
        granted = isinstance(answer, Granted) and answer.lease.fence > told.fence
        won = broker.get("urgent")
        say(f"  grant    urgent, on {won.devices[0].node}, fence {won.fence}, when train was proven to have let go")
        ended = worker.ask("work")
        say(f"  use      {ended}")
    answer = broker.submit([whole("train-again", "physics/ada", wait=True)])[0]
    waits = isinstance(answer, Queued)
    broker.release("urgent")
    say("  release  urgent")
    answer = broker.wait_for("train-again", Deadline.after(WAIT_SECONDS))
    resumed = isinstance(answer, Granted)
    say(f"  grant    train-again: {broker.get('train-again').devices[0].node}, {len(train.devices)} devices as before")
    for name in ("train-again", "other"):
        broker.release(name)
    broker.remove_tenant("physics")
    say("  release  done")
    return (
        (bool(refused) and queued and told.state is LeaseState.DRAINING and used.startswith("ok"))
        and (granted and "LeaseEnded" in ended)
        and (waits and resumed)
    )


def whole(name: str, tenant: str, **words: Any) -> Claim:
    """Return the claim of a whole DGX: eight GPUs, each with the NIC on its switch."""
    return make_claim(pairs("gpu", "rnic", count=8), id=name, tenant=tenant, ttl_seconds=300, same="node", **words)


def mend(scene: Scene, broker: LocalBroker, machine: Machine, device_id: str) -> Repair:
    """Take the cause away, and repair what it left behind, as an operator would."""
    if scene.cause:
        machine.heal(device_id)
    return broker.repair(device_id, by_operator=scene.cause if scene.vouched else None)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
