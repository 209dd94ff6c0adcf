"""How a mock DPU is restarted, given a new image, and cleaned of what a holder left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hal.errors import DeadlineExceeded, DeviceBusy, DeviceGone, InvalidArgument
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.dpu import BOOT_TIMEOUT_SECONDS, BootState, Buffer, Image
from hal.interfaces.operation import Operation
from hal_mocks.base import GONE
from hal_mocks.dpu_boot import PCIE_RESET_DELAY_SECONDS
from hal_mocks.dpu_flows import clear_flows
from hal_mocks.dpu_services import ServiceTable
from hal_mocks.dpu_state import Card, begin_boot
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine

BFB_MAGIC = b"Bf\x02\x13"
"""How every boot stream begins (BFB_IMGHDR_MAGIC of Mellanox's bluefield_boot.h, little-endian)."""

IMAGE_BYTES_PER_SECOND = 100e6
"""How fast an image is written: simulated, on the machine's clock."""

_CHUNK_BYTES = 1 << 20
_PATIENCE_SECONDS = BOOT_TIMEOUT_SECONDS + PCIE_RESET_DELAY_SECONDS + 30.0
# Longest nap between two looks at a booting card: somebody else may restart it meanwhile.
_NAP_SECONDS = 1.0


def restart(machine: Machine, card: Card, start: BootState, step: str, deadline: Deadline | None) -> Operation[None]:
    """Begin a boot now; the operation is done when the card is ready. A firmware fault does not outlive it."""
    deadline = or_default(deadline, _PATIENCE_SECONDS)
    _begin(machine, card, start, deadline)
    return Operation.spawn(card.id, step, lambda operation: await_ready(machine, card, operation, deadline))


def _begin(machine: Machine, card: Card, start: BootState, deadline: Deadline) -> None:
    ServiceTable(card).clear(deadline)
    clear_flows(card)
    heal_by_reset(machine, card.id, FaultType.FW_FATAL)
    begin_boot(machine, card.id, start)


def heal_by_reset(machine: Machine, dpu_id: str, *types: FaultType) -> None:
    """Take away the faults of these types that a reset mends: those without a duration of their own."""
    for fault in machine.faults_of(dpu_id):
        if fault.type in types and fault.duration_seconds is None:
            machine.heal(id=fault.id)


def await_ready(
    machine: Machine, card: Card, operation: Operation[None] | Operation[Image], deadline: Deadline, done: float = 0.0
) -> None:
    """Wait on the machine's clock until the card is ready, or the boot has taken too long.

    ``done`` is how much of the operation is behind it when the boot begins.
    """
    while True:
        boot = card.state().boot
        now = machine.clock.now()
        if boot is None or now >= boot.ready_at:
            return
        if any(fault.type in GONE for fault in machine.faults_of(card.id)):
            raise DeviceGone("lost while it booted", device=card.id, during=operation.step, hint="power-cycle the host")
        if now >= boot.times_out_at:
            raise DeadlineExceeded(
                f"not ready {BOOT_TIMEOUT_SECONDS:.0f} s after the reset: it hangs in {boot.at(now)[0]}",
                device=card.id,
                during=operation.step,
                hint="read the console, push an image, or power_cycle()",
            )
        deadline.check(device=card.id, during=operation.step)
        end = min(boot.ready_at, boot.times_out_at)
        operation.report(done + (1.0 - done) * (now - boot.stages[0][1]) / (end - boot.stages[0][1]))
        pause = min(boot.next_change(now), boot.times_out_at) - now
        machine.clock.sleep(max(1e-3, min(pause, _NAP_SECONDS, deadline.remaining_seconds)))


def push_image(
    machine: Machine, card: Card, image: Buffer | str | os.PathLike[str], deadline: Deadline | None
) -> Operation[Image]:
    """Write an image, remember it, and boot from it."""
    deadline = or_default(deadline, _PATIENCE_SECONDS)
    name = "image" if isinstance(image, Buffer) else Path(image).name
    try:
        size = memoryview(image).nbytes if isinstance(image, Buffer) else Path(image).stat().st_size
        magic = next(_chunks(image), b"")[: len(BFB_MAGIC)]
    except OSError as error:
        raise InvalidArgument(
            f"cannot read the image: {error}", device=card.id, during="push_image", hint="give a readable file"
        ) from None
    if bytes(magic) != BFB_MAGIC:
        raise InvalidArgument(
            f"{name} is no boot stream", device=card.id, during="push_image", hint="give a .bfb file, not its archive"
        )

    def work(operation: Operation[Image]) -> Image:
        digest = hashlib.sha256()
        written = 0
        with _boot_file(card):
            for chunk in _chunks(image):
                deadline.check(device=card.id, during="push_image")
                machine.clock.sleep(len(chunk) / IMAGE_BYTES_PER_SECOND)
                digest.update(chunk)
                written += len(chunk)
                operation.report(0.5 * written / max(size, written))
            pushed = Image(name=name, size_bytes=written, sha256=digest.hexdigest(), installed_at=machine.clock.now())
            with card.locked():
                card.change(image=pushed)
            _begin(machine, card, BootState.ROM, deadline)
        await_ready(machine, card, operation, deadline, done=0.5)
        operation.report(1.0)
        return pushed

    return Operation.spawn(card.id, "push_image", work)


def _chunks(image: Buffer | str | os.PathLike[str]) -> Iterator[Buffer]:
    if isinstance(image, Buffer):
        view = memoryview(image).cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]
    else:
        with open(image, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


@contextmanager
def _boot_file(card: Card) -> Iterator[None]:
    """Hold the card's boot file, which one writer at a time may open."""
    descriptor = os.open(card.folder / "boot", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DeviceBusy(
            "another image is being written", device=card.id, during="push_image", hint="wait for it to end"
        ) from None
    finally:
        os.close(descriptor)


def take_back(card: Card, fence: int, deadline: Deadline) -> None:
    """Leave nothing behind of the lease with this fence, or of earlier ones; a later one's things stay."""
    ServiceTable(card).clear(deadline, up_to_fence=fence)
    if card.state().fence <= fence:
        forget(card)


def forget(card: Card) -> None:
    """Drop flow rules, virtual functions and NVMe exposures."""
    clear_flows(card)
    with card.locked():
        state = card.state()
        if state.vf_count or state.exposures:
            card.change(vf_count=0, exposures=())


def scrub(machine: Machine, card: Card, deadline: Deadline | None) -> Operation[None]:
    """Make the card as it came: also its console log, a pending mode, and its image, which takes a reboot."""
    deadline = or_default(deadline, _PATIENCE_SECONDS)

    def work(operation: Operation[None]) -> None:
        ServiceTable(card).clear(deadline)
        forget(card)
        with card.locked():
            replaced = card.state().image is not None
            card.change(image=None, pending_mode=None)
            card.write_console(())
        if replaced:
            _begin(machine, card, BootState.ROM, deadline)
        await_ready(machine, card, operation, deadline)

    return Operation.spawn(card.id, "scrub", work)
