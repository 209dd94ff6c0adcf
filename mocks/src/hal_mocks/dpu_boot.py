"""How a mock DPU boots: a timeline that a seed decides once, and the console lines that go with it.

Nothing runs in the background. A boot is written down when it begins; what the card is at any time follows from that,
so all processes agree, and virtual time makes a boot instant.
"""

from __future__ import annotations

import random

import msgspec

from hal.interfaces.dpu import BOOT_TIMEOUT_SECONDS, BootState, ConsoleLine, DpuMode

PCIE_RESET_DELAY_SECONDS = 10.0
"""How long power stays away in a power cycle (rshim's default PCIE_RESET_DELAY)."""

# Simulated spans in seconds, chosen so that a healthy boot stays far below BOOT_TIMEOUT_SECONDS.
_SPANS = {BootState.ROM: (1.5, 3.0), BootState.UEFI: (6.0, 12.0), BootState.OS: (12.0, 22.0)}


class Boot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One boot: when each state is entered, in order. A boot that hangs never enters ``ready``."""

    stages: tuple[tuple[BootState, float], ...]

    @property
    def began_at(self) -> float:
        """When power came on or the reset was released: the timeout counts from here."""
        return next(at for state, at in self.stages if state is not BootState.OFF)

    @property
    def ready_at(self) -> float:
        """When the card is ready; ``inf`` if it hangs."""
        state, at = self.stages[-1]
        return at if state is BootState.READY else float("inf")

    @property
    def times_out_at(self) -> float:
        """When nobody waits any longer."""
        return self.began_at + BOOT_TIMEOUT_SECONDS

    def at(self, now: float) -> tuple[BootState, float]:
        """Return the state at a time, and when it was entered."""
        current = self.stages[0]
        for stage in self.stages:
            if stage[1] <= now:
                current = stage
        return current

    def next_change(self, now: float) -> float:
        """Return when the state changes next, or ``inf``."""
        return min((at for _, at in self.stages if at > now), default=float("inf"))


def plan_boot(seed: str, now: float, mode: DpuMode, start: BootState, *, hangs: bool) -> Boot:
    """Return the boot that begins now at ``start`` (off for a power cycle, rom for a hard reset, uefi for a soft one).

    In NIC mode the cores stay inactive: the card is ready after its ROM. One that hangs stays in its last stage but
    one.
    """
    rng = random.Random(seed)
    order = [BootState.ROM, BootState.UEFI, BootState.OS]
    if mode is DpuMode.NIC:
        order = [BootState.ROM]
    elif start is BootState.UEFI:
        order = order[1:]
    stages: list[tuple[BootState, float]] = []
    at = now
    if start is BootState.OFF:
        stages.append((BootState.OFF, at))
        at += PCIE_RESET_DELAY_SECONDS
    for state in order:
        stages.append((state, at))
        at += round(rng.uniform(*_SPANS[state]), 3)
    if hangs:
        return Boot(stages=tuple(stages[:-1] if len(order) > 1 else stages))
    stages.append((BootState.READY, at))
    return Boot(stages=tuple(stages))


def console_lines(boot: Boot, first: int, *, generation: str, image: str, serial: str) -> tuple[ConsoleLine, ...]:
    """Return what the card will have written to its console at what time, numbered from ``first``."""
    texts: dict[BootState, tuple[str, ...]] = {
        BootState.OFF: (),
        BootState.ROM: (f"{generation} boot ROM", "ddr training: pass", "loading boot stream"),
        BootState.UEFI: ("UEFI firmware starting", f"found boot image {image}", "booting from eMMC"),
        BootState.OS: (f"Linux starting on {generation} {serial}", "mlx5_core: firmware ready", "systemd: starting"),
        BootState.READY: (f"{serial} login:",),
    }
    lines: list[ConsoleLine] = []
    for index, (state, entered_at) in enumerate(boot.stages):
        left_at = boot.stages[index + 1][1] if index + 1 < len(boot.stages) else entered_at + 1.0
        said = texts[state]
        for position, text in enumerate(said):
            at = entered_at + (left_at - entered_at) * position / len(said)
            since = at - boot.stages[0][1]
            lines.append(ConsoleLine(number=first + len(lines), at=at, text=f"[{since:9.3f}] {text}"))
    return tuple(lines)
