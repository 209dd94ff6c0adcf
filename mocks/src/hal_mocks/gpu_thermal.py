"""Heat, power and clocks of a mock GPU: one thermal mass, one resistance, on the machine's clock. Simulated numbers."""

from __future__ import annotations

import math

import msgspec

STEP_SECONDS = 5.0
TIME_CONSTANT_SECONDS = 60.0
RISE_AT_LIMIT_CELSIUS = 45.0
IDLE_SHARE = 0.1
SLOWDOWN_CELSIUS = 87.0
RECOVER_CELSIUS = 82.0
IDLE_CLOCK_HZ = 345_000_000
SETTLED_SECONDS = 20 * TIME_CONSTANT_SECONDS


class Clocks(msgspec.Struct, frozen=True):
    """What an architecture's clocks reach, from the data sheets."""

    sm_max_hz: int
    memory_hz: int


CLOCKS = {
    "Turing": Clocks(1_590_000_000, 5_001_000_000),
    "Ampere": Clocks(1_410_000_000, 1_593_000_000),
    "Ada": Clocks(2_520_000_000, 9_001_000_000),
    "Hopper": Clocks(1_980_000_000, 2_619_000_000),
    "Blackwell": Clocks(2_062_000_000, 3_996_000_000),
}
OTHER_CLOCKS = Clocks(1_500_000_000, 1_500_000_000)


class Thermal(msgspec.Struct, frozen=True, kw_only=True):
    """Where the model stands at one time. ``load`` is a share of the device (0 to 1) said to be used besides ours."""

    at: float
    temperature_celsius: float = 30.0
    power_watts: float = 0.0
    energy_joules: float = 0.0
    utilization: float = 0.0
    busy_ns: int = 0
    slowed: bool = False
    load: float = 0.0
    inlet_celsius: float = 25.0
    replays: float = 0.0


def advance(state: Thermal, now: float, limit_watts: float, busy_ns: int, replays_per_second: float = 0.0) -> Thermal:
    """Return the model at ``now``: utilisation since the last look heats, the air at the inlet cools."""
    span = now - state.at
    if span <= 0:
        if state.power_watts:
            return state
        # The first look of all: nothing has been integrated yet, but a GPU that is there draws power.
        return msgspec.structs.replace(state, power_watts=power_of(state.load, state.slowed, limit_watts))
    utilization = min(1.0, state.load + max(0, busy_ns - state.busy_ns) * 1e-9 / span)
    temperature, energy, slowed = state.temperature_celsius, state.energy_joules, state.slowed
    power = power_of(utilization, slowed, limit_watts)
    left = min(span, SETTLED_SECONDS)
    while left > 0:
        step = min(left, STEP_SECONDS)
        power = power_of(utilization, slowed, limit_watts)
        target = state.inlet_celsius + RISE_AT_LIMIT_CELSIUS * power / limit_watts
        temperature = target + (temperature - target) * math.exp(-step / TIME_CONSTANT_SECONDS)
        energy += power * step
        slowed = temperature >= SLOWDOWN_CELSIUS or (slowed and temperature > RECOVER_CELSIUS)
        left -= step
    energy += power * max(0.0, span - SETTLED_SECONDS)
    return msgspec.structs.replace(
        state,
        at=now,
        temperature_celsius=temperature,
        power_watts=power,
        energy_joules=energy,
        utilization=utilization,
        busy_ns=busy_ns,
        slowed=slowed,
        replays=state.replays + replays_per_second * span,
    )


def power_of(utilization: float, slowed: bool, limit_watts: float) -> float:
    """Return the power drawn: idle, and the rest in proportion; half of the rest while slowed down by heat."""
    idle = IDLE_SHARE * limit_watts
    return idle + (limit_watts - idle) * utilization * (0.5 if slowed else 1.0)


def clock_of(state: Thermal, clocks: Clocks) -> tuple[int, tuple[str, ...]]:
    """Return the SM clock now, and why it is below the highest."""
    if state.slowed:
        return clocks.sm_max_hz // 2, ("hw-slowdown", "hw-thermal-slowdown")
    if state.utilization <= 0.0:
        return IDLE_CLOCK_HZ, ("gpu-idle",)
    if state.utilization >= 0.99:
        return int(clocks.sm_max_hz * 0.95), ("sw-power-cap",)
    return clocks.sm_max_hz, ()
