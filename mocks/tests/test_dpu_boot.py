"""A mock DPU that boots: states, consoles, images, faults, and its NICs' fate."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.contract import Grant
from hal.errors import (
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    DeviceNotFound,
    HardwareFault,
    InvalidArgument,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import (
    BOOT_TIMEOUT_SECONDS,
    BootState,
    DpuMode,
    ResetLevel,
)
from hal.model.attributes import Absence
from hal.model.health import Action, Health, Presence, Severity
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.dpu_boot import plan_boot
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.dpu_state import begin_boot, boot_state, is_up
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from mocks.tests.cards import BFB, SOON, graph, open_card


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "state", VirtualClock())


@pytest.fixture
def driver(machine: Machine) -> MockDpuDriver:
    return MockDpuDriver(machine)


@pytest.fixture
def dpu(machine: Machine) -> MockDpu:
    return open_card(machine)


class TestBoots:
    @given(seed=st.text(), mode=st.sampled_from(DpuMode), start=st.sampled_from(list(BootState)[:3]))
    def test_a_boot_goes_forward_and_ends_in_time(self, seed: str, mode: DpuMode, start: BootState) -> None:
        boot = plan_boot(seed, 100.0, mode, start, hangs=False)
        assert boot == plan_boot(seed, 100.0, mode, start, hangs=False)
        order = list(BootState)
        positions = [order.index(state) for state, _ in boot.stages]
        assert positions == sorted(set(positions))
        times = [at for _, at in boot.stages]
        assert times == sorted(set(times))
        assert boot.began_at < boot.ready_at < boot.times_out_at
        hung = plan_boot(seed, 100.0, mode, start, hangs=True)
        assert hung.ready_at == float("inf")
        assert hung.stages == boot.stages[: len(hung.stages)]

    def test_a_power_cycle_walks_through_all_states(self, machine: Machine, dpu: MockDpu) -> None:
        boot = begin_boot(machine, dpu.device.id, BootState.OFF)
        seen = []
        for _, at in boot.stages:
            machine.clock.sleep(at - machine.clock.now() + 1e-6)
            seen.append(dpu.boot().state)
        assert seen == list(BootState)
        report = dpu.boot()
        assert report.stage_seconds[BootState.OFF] == 10.0
        assert set(report.stage_seconds) == set(BootState) - {BootState.READY}

    def test_the_same_seed_boots_the_same_and_no_two_boots_are_alike(self, tmp_path: Path) -> None:
        spans = []
        for name in ("one", "two"):
            machine = Machine(graph(), tmp_path / name, VirtualClock())
            dpu = open_card(machine)
            for _ in range(2):
                dpu.reset(ResetLevel.HARD).wait(Deadline.after(SOON))
                spans.append(dpu.boot().stage_seconds)
        assert spans[:2] == spans[2:]
        assert spans[0] != spans[1]

    def test_a_reset_takes_the_nics_down_until_the_card_is_ready(self, machine: Machine, dpu: MockDpu) -> None:
        assert is_up(machine, dpu.device.id)
        other = f"dpu-{machine.graph.hosts[0].dpus[1].serial}"
        boot = begin_boot(machine, dpu.device.id)
        assert not is_up(machine, dpu.device.id)
        assert is_up(machine, other)
        same_machine = Machine(machine.graph, machine.state.folder, machine.clock)
        assert not is_up(same_machine, dpu.device.id), "every process sees it"
        machine.clock.sleep(boot.ready_at - machine.clock.now() - 0.001)
        assert not is_up(machine, dpu.device.id)
        machine.clock.sleep(0.002)
        assert is_up(machine, dpu.device.id)
        with pytest.raises(DeviceNotFound):
            is_up(machine, "dpu-nobody")

    def test_a_booting_card_is_busy_and_not_handed_out(
        self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu
    ) -> None:
        begin_boot(machine, dpu.device.id)
        assert boot_state(machine, dpu.device.id)[0] is BootState.ROM
        (condition,) = driver.sample([dpu.device.id], Deadline.after(SOON))
        assert condition.type == "Booting"
        assert condition.blocks_new_leases
        for verb in (dpu.flows, dpu.services, lambda: dpu.offload("crc32", b"")):
            with pytest.raises(DeviceBusy):
                verb()
        with pytest.raises(DeviceBusy):
            driver.prepare(dpu.device.id, Grant(lease="b", fence=2), Deadline.after(SOON))
        assert dpu.telemetry()["uptime_seconds"].absent is Absence.NOT_REPORTED
        machine.clock.sleep(60)
        assert driver.discover(Deadline.after(SOON)).devices[0].conditions == ()

    def test_a_boot_that_hangs_fails_after_the_timeout_on_the_machines_clock(
        self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu
    ) -> None:
        machine.inject(dpu.device.id, FaultType.BOOT_HANG)
        before = machine.clock.now()
        with pytest.raises(DeadlineExceeded, match="hangs in uefi"):
            dpu.reset(ResetLevel.HARD).wait(Deadline.after(SOON))
        assert machine.clock.now() - before == pytest.approx(BOOT_TIMEOUT_SECONDS, abs=0.01)
        (condition,) = driver.sample([dpu.device.id], Deadline.after(SOON))
        assert (condition.type, condition.severity, condition.action) == (
            "BootTimeout",
            Severity.CRITICAL,
            Action.POWER_CYCLE,
        )
        assert not is_up(machine, dpu.device.id)
        assert not any("login" in line for line in dpu.console())
        machine.heal(dpu.device.id)
        assert not is_up(machine, dpu.device.id), "the hung boot stays hung until somebody restarts the card"
        dpu.power_cycle().wait(Deadline.after(SOON))
        assert is_up(machine, dpu.device.id)

    def test_a_reset_past_its_deadline_says_so_and_goes_on(self, tmp_path: Path) -> None:
        machine = Machine(graph(), tmp_path / "state")
        dpu = open_card(machine)
        operation = dpu.reset(deadline=Deadline.after(0.05))
        with pytest.raises(DeadlineExceeded):
            operation.wait(Deadline.after(SOON))
        assert dpu.boot().state is BootState.UEFI

    def test_a_reset_can_be_awaited(self, dpu: MockDpu) -> None:
        async def main() -> None:
            await dpu.reset()

        asyncio.run(main())
        assert dpu.boot().state is BootState.READY

    def test_the_console_is_followed_while_the_card_boots(self, machine: Machine, dpu: MockDpu) -> None:
        boot = begin_boot(machine, dpu.device.id)
        assert list(dpu.console()) == ["[    0.000] BlueField-3 boot ROM"]
        stream = dpu.console(since=1, deadline=Deadline.after(SOON))
        threading.Timer(0.05, lambda: machine.clock.sleep(boot.ready_at - machine.clock.now() + 0.01)).start()
        for line in stream:
            if "login" in line:
                break
        else:
            pytest.fail("the login prompt never came")

    def test_a_restart_cuts_off_what_the_last_boot_was_about_to_say(self, machine: Machine, dpu: MockDpu) -> None:
        begin_boot(machine, dpu.device.id)
        machine.clock.sleep(1.0)
        dpu.reset(ResetLevel.HARD).wait(Deadline.after(SOON))
        assert sum("login" in line for line in dpu.console()) == 1
        numbers = [line.number for line in dpu.read_console()]
        assert numbers == list(range(len(numbers)))

    def test_an_unknown_word_is_an_error_of_the_caller(self, dpu: MockDpu) -> None:
        with pytest.raises(InvalidArgument):
            dpu.reset("gently")
        with pytest.raises(InvalidArgument):
            dpu.set_mode("toaster")


class TestImages:
    def test_an_image_comes_from_a_file_too_and_survives_a_power_cycle(self, dpu: MockDpu, tmp_path: Path) -> None:
        path = tmp_path / "new.bfb"
        path.write_bytes(BFB)
        operation = dpu.push_image(path)
        image = operation.wait(Deadline.after(SOON))
        assert (image.name, image.size_bytes) == ("new.bfb", len(BFB))
        assert image.sha256 == hashlib.sha256(BFB).hexdigest()
        assert operation.progress == 1.0
        dpu.power_cycle().wait(Deadline.after(SOON))
        assert dpu.image() == image
        assert any("found boot image new.bfb" in line for line in dpu.console())

    def test_a_missing_file_is_refused(self, dpu: MockDpu, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument):
            dpu.push_image(tmp_path / "absent.bfb")

    def test_one_image_at_a_time(self, machine: Machine, dpu: MockDpu) -> None:
        held, go = threading.Event(), threading.Event()
        first_sleep = machine.clock.sleep

        class Slow(VirtualClock):
            def sleep(self, seconds: float) -> None:
                held.set()
                assert go.wait(SOON)
                first_sleep(seconds)

            def now(self) -> float:
                return original.now()

        original = machine.clock
        machine.clock = Slow()
        first = dpu.push_image(BFB)
        assert held.wait(SOON)
        second = dpu.push_image(BFB)
        with pytest.raises(DeviceBusy):
            second.wait(Deadline.after(SOON))
        go.set()
        first.wait(Deadline.after(SOON))

    def test_an_image_brings_a_hung_card_back(self, machine: Machine, dpu: MockDpu) -> None:
        fault = machine.inject(dpu.device.id, FaultType.BOOT_HANG)
        with pytest.raises(DeadlineExceeded):
            dpu.reset().wait(Deadline.after(SOON))
        machine.heal(id=fault.id)
        dpu.push_image(BFB).wait(Deadline.after(SOON))
        assert dpu.boot().state is BootState.READY

    def test_a_scrub_brings_the_factory_image_back_and_forgets_the_console(
        self, driver: MockDpuDriver, dpu: MockDpu
    ) -> None:
        factory = dpu.image()
        dpu.push_image(BFB).wait(Deadline.after(SOON))
        dpu.set_mode(DpuMode.NIC)
        driver.scrub(dpu.device.id).wait(Deadline.after(SOON))
        assert dpu.image() == factory
        assert dpu.mode().pending is None
        assert not any("boot image image" in line for line in dpu.console())


class TestFaults:
    def test_a_firmware_fault_stops_the_card_its_nics_and_ends_with_a_reset(
        self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu
    ) -> None:
        machine.inject(dpu.device.id, FaultType.FW_FATAL, code=23)
        with pytest.raises(HardwareFault) as caught:
            dpu.flows()
        assert caught.value.code == 23
        assert not is_up(machine, dpu.device.id)
        (condition,) = driver.sample([dpu.device.id], Deadline.after(SOON))
        assert (condition.type, condition.code) == ("FirmwareFatal", 23)
        assert driver.find(dpu.device.id).health is Health.FAILED
        driver.reset(dpu.device.id).wait(Deadline.after(SOON))
        assert is_up(machine, dpu.device.id)
        assert dpu.flows() == ()

    def test_a_hot_card_reads_hot_and_is_degraded(self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu) -> None:
        cool = dpu.telemetry()["temperature_celsius"].value
        machine.inject(dpu.device.id, FaultType.THERMAL, duration_seconds=30.0)
        assert dpu.telemetry()["temperature_celsius"].value > 105
        assert driver.find(dpu.device.id).health is Health.DEGRADED
        machine.clock.sleep(31)
        assert dpu.telemetry()["temperature_celsius"].value == cool
        assert driver.find(dpu.device.id).health is Health.HEALTHY

    def test_a_lost_card_answers_nothing_and_a_reset_brings_it_back(
        self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu
    ) -> None:
        machine.inject(dpu.device.id, FaultType.LOST)
        for verb in (dpu.mode, dpu.telemetry, dpu.reset, dpu.children):
            with pytest.raises(DeviceGone):
                verb()
        assert not is_up(machine, dpu.device.id)
        assert driver.find(dpu.device.id).presence is Presence.GHOST
        driver.reset(dpu.device.id).wait(Deadline.after(SOON))
        assert driver.find(dpu.device.id).health is Health.HEALTHY

    def test_no_reset_reaches_a_card_off_the_bus(self, machine: Machine, driver: MockDpuDriver, dpu: MockDpu) -> None:
        machine.inject(dpu.device.id, FaultType.FALLEN_OFF_BUS)
        with pytest.raises(DeviceGone):
            driver.reset(dpu.device.id)

    def test_a_hung_card_costs_the_deadline(self, machine: Machine, dpu: MockDpu) -> None:
        machine.inject(dpu.device.id, FaultType.HANG)
        with pytest.raises(DeadlineExceeded):
            dpu.mode(deadline=Deadline.after(0.01))

    def test_a_lying_card_says_what_it_was_told(self, machine: Machine, dpu: MockDpu) -> None:
        machine.inject(dpu.device.id, FaultType.LIE, attribute="power_watts", value="-3")
        assert dpu.telemetry()["power_watts"].value == -3.0

    def test_a_card_lost_while_it_boots_ends_the_wait(self, machine: Machine, dpu: MockDpu) -> None:
        machine.inject(dpu.device.id, FaultType.LOST, after_seconds=5.0)
        with pytest.raises(DeviceGone):
            dpu.reset(ResetLevel.HARD).wait(Deadline.after(SOON))
