"""Real work on a leased device, in a process of its own: ``python -m hal_mocks.demo_work``.

It reads lines and answers each with one: ``ok ...`` or ``error TYPE: ...``. The first is a lease's ticket; then
``work`` does the kind's work with the handle that is open, as often as asked, and ``quit`` ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hal.api.held import HeldLease, open_lease
from hal.errors import HalError
from hal.interfaces.deadline import Deadline
from hal.model.kind import Kind


def compute(lease: HeldLease, gpu: Any) -> str:
    """Multiply two matrices on the GPU and bring the result home."""
    import numpy as np

    xp = gpu.xp
    a = xp.reshape(xp.arange(512 * 512, dtype=xp.float64), (512, 512)) % 7
    b = gpu.copy_to_device(np.ascontiguousarray(gpu.copy_to_host(a).T))
    trace = float(xp.trace(a @ xp.from_dlpack(b)))
    b.free()
    return f"512 x 512 matrix product, trace {trace:.0f}; {gpu.telemetry()['power_watts'].value:.0f} W"


def write_remotely(lease: HeldLease, nic: Any) -> str:
    """Write into another NIC's memory, and count in it."""
    from hal.interfaces.rnic import ALL_ACCESS

    with (
        lease.open(lease.devices[1]) as peer,
        peer.register(1 << 16, ALL_ACCESS) as target,
        nic.register(1 << 16) as local,
    ):
        here, there = nic.endpoint(), peer.endpoint()
        with here, there, here.connect(there.address) as wire, there.connect(here.address):
            local.view[:5] = b"hello"
            wire.put(local.view[:64], target.address, target.rkey).wait(Deadline.after(5))
            wire.fetch_add(target.address + 64, target.rkey, 42).wait(Deadline.after(5))
            wire.flush().wait(Deadline.after(5))
        said, count = bytes(target.view[:5]).decode(), int.from_bytes(target.view[64:72], "little")
    return f"{lease.devices[0].name} put {said!r} into {lease.devices[1].name} and counted to {count}"


def serve(lease: HeldLease, card: Any) -> str:
    """Let the card checksum and compress, as far as it can."""
    can = {offload.name for offload in card.offloads()}
    data = b"data center on a card " * 4096
    parts = [f"mode {card.mode().current}"]
    if "crc32" in can:
        crc = card.offload("crc32", data).wait(Deadline.after(5))
        parts.append(f"crc32 {bytes(crc).hex()}")
    if "sha256" in can:
        parts.append(f"sha256 {bytes(card.offload('sha256', data).wait(Deadline.after(5))).hex()[:12]}…")
    return ", ".join(parts)


def persist(lease: HeldLease, region: Any) -> str:
    """Write a record that outlives this process, and read it back the safe way."""
    spaces = [space for space in region.namespaces() if space.mode.mappable]
    with region.map(spaces[0].name) as mapping:
        before = int.from_bytes(mapping.read(0, 8), "little")
        mapping.memcpy_persist(0, (before + 1).to_bytes(8, "little"))
        now = int.from_bytes(mapping.read(0, 8), "little")
    return f"{spaces[0].name} counted {before} -> {now}, durable in the {region.region().persistence_domain} domain"


def run_program(lease: HeldLease, rank: Any) -> str:
    """Double numbers in the memory of every working DPU of the rank."""
    import numpy as np

    from hal_mocks.upmem_programs import DOUBLE

    rank.load(DOUBLE)
    units = rank.rank().dpus
    numbers = np.arange(1024, dtype="<u4")
    rank.broadcast("input", 0, numbers)
    rank.broadcast("count", 0, np.array([1024], dtype="<u4"))
    rank.launch().wait(Deadline.after(30))
    right = sum(rank.copy_from(unit, "output", 0, numbers.nbytes) == (2 * numbers).tobytes() for unit in units)
    return f"{len(units)} DPUs doubled 1024 numbers each, {right} of them rightly"


WORK: dict[Kind, Callable[[HeldLease, Any], str]] = {
    Kind.GPU: compute,
    Kind.RNIC: write_remotely,
    Kind.DPU: serve,
    Kind.PMEM: persist,
    Kind.UPMEM: run_program,
}


def answer(lease: HeldLease, handle: Any) -> str:
    """Do the kind's work and say in one line how it went."""
    try:
        return "ok " + WORK[lease.devices[0].kind](lease, handle)
    except HalError as error:
        return f"error {type(error).__name__}: {error}"


def main() -> int:
    """Answer tickets and commands until the input ends."""
    lease: HeldLease | None = None
    handle: Any = None
    for line in sys.stdin:
        command = line.strip()
        if command == "quit":
            break
        if command.startswith("{"):
            lease = open_lease(command)
            handle = lease.open(lease.devices[0])
            reply = f"ok opened {lease.devices[0].name}"
        elif lease is None:
            reply = "error UsageError: a ticket comes first"
        else:
            reply = answer(lease, handle)
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()
    if lease is not None:
        lease.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
