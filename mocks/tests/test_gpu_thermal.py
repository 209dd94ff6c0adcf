"""Heat, power and clocks of a mock GPU follow its work, on virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import CLOCK_EVENT_REASONS
from hal_mocks.clock import VirtualClock
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_thermal import Thermal, advance
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")
GPU = DGX.hosts[0].gpus[0].uuid


@pytest.fixture
def driver(tmp_path):
    driver = MockGpuDriver(Machine(DGX, tmp_path / "state", VirtualClock()))
    driver.boards.set_surroundings(GPU)
    return driver


def told(driver):
    with driver.open(GPU, OpenGuard(), Deadline.after(5)) as gpu:
        return {name: attribute.value for name, attribute in gpu.telemetry().items()}


def test_an_idle_gpu_is_cool_and_slow_and_says_why(driver):
    driver.machine.clock.advance(3600)
    now = told(driver)
    assert now["temperature_celsius"] == pytest.approx(29.5)
    assert now["power_watts"] == pytest.approx(70)
    assert now["clock_event_reasons"] == ("gpu-idle",)


def test_load_heats_within_minutes_and_rest_cools(driver):
    driver.boards.set_surroundings(GPU, load=1.0)
    temperatures = []
    for _ in range(10):
        driver.machine.clock.advance(30)
        temperatures.append(told(driver)["temperature_celsius"])
    assert temperatures == sorted(temperatures)
    hot = told(driver)
    assert hot["temperature_celsius"] == pytest.approx(70, abs=1)
    assert hot["power_watts"] == pytest.approx(700)
    driver.boards.set_surroundings(GPU, load=0.0)
    driver.machine.clock.advance(600)
    assert told(driver)["temperature_celsius"] < 31


def test_hot_air_slows_the_clocks_down_and_says_so(driver):
    driver.boards.set_surroundings(GPU, load=1.0, inlet_celsius=50)
    driver.machine.clock.advance(300)
    reasons, clocks, powers = set(), set(), set()
    for _ in range(20):
        driver.machine.clock.advance(10)
        now = told(driver)
        reasons |= set(now["clock_event_reasons"])
        clocks.add(now["sm_clock_hz"])
        powers.add(now["power_watts"])
    assert "hw-thermal-slowdown" in reasons
    assert reasons <= set(CLOCK_EVENT_REASONS)
    assert min(powers) < 0.6 * 700
    assert min(clocks) == now["sm_max_clock_hz"] // 2


def test_a_kernel_that_takes_time_is_seen_as_utilisation(driver):
    clock = driver.machine.clock
    with driver.open(GPU, OpenGuard(), Deadline.after(5)) as gpu:
        gpu.telemetry()
        gpu.launch(gpu.load_kernel(lambda block: clock.advance(2)), 4, 32)
        clock.advance(2)
        assert gpu.telemetry()["gpu_utilization_percent"].value == 80


@given(
    steps=st.lists(
        st.tuples(st.floats(0.001, 1e6), st.floats(0, 1), st.floats(10, 60)),
        min_size=1,
        max_size=20,
    )
)
def test_energy_never_falls_and_temperature_stays_within_reason(steps):
    state, now = Thermal(at=0.0), 0.0
    for span, load, inlet in steps:
        now += span
        before = Thermal(
            **{**{f: getattr(state, f) for f in state.__struct_fields__}, "load": load, "inlet_celsius": inlet}
        )
        state = advance(before, now, 700.0, 0)
        assert state.energy_joules >= before.energy_joules
        low, high = min(before.temperature_celsius, inlet), max(before.temperature_celsius, inlet + 45)
        assert low <= state.temperature_celsius <= high + 1e-9
        assert 70 <= state.power_watts <= 700


def test_looking_often_and_looking_once_tell_the_same():
    once = advance(Thermal(at=0.0, load=0.7), 100.0, 400.0, 0)
    often = Thermal(at=0.0, load=0.7)
    for second in range(1, 101):
        often = advance(often, float(second), 400.0, 0)
    assert often.temperature_celsius == pytest.approx(once.temperature_celsius)
    assert often.energy_joules == pytest.approx(once.energy_joules)
