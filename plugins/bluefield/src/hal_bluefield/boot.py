"""Boot state, resets and images: what restarts the card, and the proof that it is ready again."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime

import msgspec

from hal.errors import DeadlineExceeded, DeviceError, DeviceGone, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.dpu import BOOT_TIMEOUT_SECONDS, BootReport, BootState, DpuMode, Image, ResetLevel
from hal.interfaces.operation import Operation
from hal_bluefield.card import Card

BFB_MAGIC = b"Bf\x02\x13"
"""How a boot stream begins (mlxbf-bootimages' header)."""

_LOOK_SECONDS = 0.05
_LOOK_AT_MOST_SECONDS = 2.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Life(msgspec.Struct, frozen=True):
    """Which life of the card it is: what changes with every boot, as far as somebody tells."""

    entered: str = ""
    boot_id: str = ""

    def is_another_than(self, other: Life) -> bool:
        """True if something that both know differs; what one could not learn proves nothing."""
        return any(
            mine and theirs and mine != theirs
            for mine, theirs in ((self.entered, other.entered), (self.boot_id, other.boot_id))
        )


def read_boot(card: Card, step: str, deadline: Deadline) -> BootReport:
    """Return how far the card has come: by the BMC, else by rshim's log. In NIC mode UEFI is as far as it goes."""
    state, since = _state(card, step, deadline)
    if state is BootState.UEFI and card.known_mode(step, deadline) is DpuMode.NIC:
        state = BootState.READY
    return BootReport(state=state, since_at=since)


def _state(card: Card, step: str, deadline: Deadline) -> tuple[BootState, float]:
    if card.bmc is not None:
        state, _, entered = card.bmc.boot(step, deadline)
        return state, _seconds(entered)
    if card.rshim is not None:
        found = card.rshim.boot_state(step, deadline)
        if found is not None:
            return found, 0.0
    raise Unsupported(
        "nobody tells how far the card has booted: no BMC is configured and rshim's log is empty",
        device=card.id,
        during=step,
        hint="bmc in bluefield.toml",
    )


def _life(card: Card, step: str, deadline: Deadline) -> Life:
    entered = boot_id = ""
    if card.bmc is not None:
        entered = card.bmc.boot(step, deadline)[2]
    if card.shell is not None:
        try:
            result = card.shell.run(("cat", _BOOT_ID), step=step, deadline=Deadline.after(min(5.0, _left(deadline))))
            boot_id = result.out.strip() if result.code == 0 else ""
        except DeviceError:
            boot_id = ""
    return Life(entered, boot_id)


def restart(card: Card, how: Callable[[Deadline], None], step: str, deadline: Deadline | None) -> Operation[None]:
    """Do ``how`` and wait until the card is ready in another life than before."""
    limit = _limit(deadline)

    def work(operation: Operation[None]) -> None:
        before = _life(card, step, limit)
        how(limit)
        wait_ready(card, before, step, limit, operation.report)

    return Operation.spawn(card.id, step, work)


def wait_ready(card: Card, before: Life, step: str, limit: Deadline, report: Callable[[float], None]) -> None:
    """Wait until the card is ready again. That it is ready *still*, because nobody has noticed the reset, is not taken
    for an answer: its boot id or the time of its state has changed, or it was seen in another state.
    """
    pause, seconds = threading.Event(), _LOOK_SECONDS
    another = False
    steps = {state: number for number, state in enumerate(BootState)}
    while True:
        try:
            state = read_boot(card, step, limit).state
            if state is BootState.READY:
                # Another life first, then ready again: what was read before may be the last word of the old one.
                if another or (_life(card, step, limit).is_another_than(before) and _is_ready(card, step, limit)):
                    report(1.0)
                    return
            else:
                another = True
                report(steps[state] / len(steps))
        except DeviceGone:
            another = True  # a BMC that restarts with the card
        except DeadlineExceeded:
            raise _late(card, step) from None
        if limit.remaining_seconds <= seconds:
            raise _late(card, step)
        pause.wait(seconds)
        seconds = min(seconds * 1.5, _LOOK_AT_MOST_SECONDS)


def _is_ready(card: Card, step: str, limit: Deadline) -> bool:
    return read_boot(card, step, limit).state is BootState.READY


def _late(card: Card, step: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        "the card was not ready in time", device=card.id, during=step, hint="read_console(); hal-probe doctor"
    )


def reset(card: Card, level: ResetLevel, deadline: Deadline | None) -> Operation[None]:
    """Restart the card's cores: by rshim, or through its BMC from the boot ROM on."""

    def soft(limit: Deadline) -> None:
        card.need_rshim("reset").write("SW_RESET", "1", "reset", limit)

    def hard(limit: Deadline) -> None:
        card.need_bmc("reset").reset(("ForceRestart", "GracefulRestart"), "reset", limit)

    if level is ResetLevel.SOFT and card.rshim is None:
        level = ResetLevel.HARD
    if level is ResetLevel.HARD:
        card.need_bmc("reset")
    return restart(card, soft if level is ResetLevel.SOFT else hard, "reset", deadline)


def power_cycle(card: Card, deadline: Deadline | None) -> Operation[None]:
    """Take the card's power away and give it back, where its BMC can."""
    step = "power_cycle"
    bmc = card.need_bmc(step)

    def how(limit: Deadline) -> None:
        bmc.reset(("PowerCycle", "FullPowerCycle"), step, limit)

    return restart(card, how, step, deadline)


def read_image(card: Card, deadline: Deadline) -> Image:
    """Return what was pushed last from this host, else what the BMC or the card itself calls its system."""
    pushed = card.record.read().image
    if pushed is not None:
        return pushed
    if card.bmc is not None:
        try:
            version = card.bmc.image("image", deadline)
            if version:
                return Image(name=version)
        except Unsupported:
            pass
    if card.shell is not None:
        result = card.shell.run(("cat", "/etc/mlnx-release"), step="image", deadline=deadline)
        if result.code == 0 and result.out.strip():
            return Image(name=result.out.strip())
    raise Unsupported(
        "nobody tells what the card boots", device=card.id, during="image", hint="bmc or ssh in bluefield.toml"
    )


def push_image(
    card: Card, image: bytes | bytearray | memoryview | str | os.PathLike[str], deadline: Deadline | None
) -> Operation[Image]:
    """Write a boot stream to rshim's ``boot`` and wait until the card runs it."""
    step = "push_image"
    rshim, limit = card.need_rshim(step), _limit(deadline)
    if isinstance(image, str | os.PathLike):
        name = os.path.basename(os.fspath(image))
        try:
            with open(image, "rb") as file:
                data = memoryview(file.read())
        except OSError as error:
            raise InvalidArgument(
                f"{os.fspath(image)}: {error.strerror}", device=card.id, during=step, hint="the path of a .bfb file"
            ) from None
    else:
        name, data = "pushed", memoryview(image).cast("B")
    if bytes(data[: len(BFB_MAGIC)]) != BFB_MAGIC:
        raise InvalidArgument(
            "it is no boot stream: nothing was written", device=card.id, during=step, hint="a .bfb image of the vendor"
        )

    def work(operation: Operation[Image]) -> Image:
        before = _life(card, step, limit)
        rshim.push(data, step, limit, lambda done: operation.report(done / 2))
        written = Image(
            name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), installed_at=time.time()
        )
        card.record.change(lambda record: msgspec.structs.replace(record, image=written), step)
        wait_ready(card, before, step, limit, lambda done: operation.report(0.5 + done / 2))
        return written

    return Operation.spawn(card.id, step, work)


def _limit(deadline: Deadline | None) -> Deadline:
    return or_default(deadline, BOOT_TIMEOUT_SECONDS)


def _left(deadline: Deadline) -> float:
    return deadline.remaining_seconds


def _seconds(entered: str) -> float:
    try:
        return datetime.fromisoformat(entered.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0
