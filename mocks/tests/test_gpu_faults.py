"""What goes wrong with a mock GPU, who sees it, and what mends it."""

from __future__ import annotations

import numpy as np
import pytest

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded, DeviceGone, HardwareFault, ProgramFault, UncorrectableError
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_xid import XIDS, xid
from hal.model.health import Action, Health, Presence, Radius, Severity, Status
from hal.testing.conformance import assert_error_is_for_people
from hal_mocks.clock import VirtualClock
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")
GPU, OTHER = DGX.hosts[0].gpus[0].uuid, DGX.hosts[0].gpus[1].uuid


@pytest.fixture
def machine(tmp_path):
    return Machine(DGX, tmp_path / "state", VirtualClock())


@pytest.fixture
def driver(machine):
    return MockGpuDriver(machine)


def open_gpu(driver, device=GPU):
    return driver.open(device, OpenGuard(), Deadline.after(5))


def seen(driver, device=GPU):
    return next(d for d in driver.discover(Deadline.after(5)).devices if d.id == device)


def types(driver, device=GPU):
    return {condition.type for condition in driver.sample([device], Deadline.after(5))}


def verbs(gpu):
    buffer = gpu.allocate(16)
    return (
        lambda: gpu.allocate(16),
        lambda: gpu.copy_to_device(np.zeros(16, np.uint8), buffer),
        lambda: gpu.copy_to_host(buffer),
        lambda: gpu.xp,
        lambda: gpu.stream(),
        gpu.telemetry,
        gpu.processes,
        gpu.ecc,
        gpu.partitions,
        gpu.peers,
        gpu.memory_info,
    )


def test_after_xid_79_every_call_says_that_the_device_is_gone(machine, driver):
    gpu = open_gpu(driver)
    calls = verbs(gpu)
    machine.inject(GPU, FaultType.XID, code=79)
    for call in calls:
        with pytest.raises(DeviceGone) as caught:
            call()
        assert_error_is_for_people(caught.value, GPU)
    with pytest.raises(DeviceGone):
        open_gpu(driver)
    with pytest.raises(DeviceGone):
        driver.prepare(GPU, Grant(lease="l", fence=1), Deadline.after(5))


@pytest.mark.parametrize("fault", [{"type": FaultType.XID, "code": 79}, {"type": FaultType.FALLEN_OFF_BUS}])
def test_a_reset_does_not_bring_back_what_fell_off_the_bus(machine, driver, fault):
    machine.inject(GPU, **fault)
    device = seen(driver)
    assert device.presence is Presence.MISSING
    assert device.health is Health.FAILED
    assert {c.type for c in device.conditions} == {"XidError", "FallenOffBus"}
    assert {c.action for c in device.conditions} == {Action.REBOOT}
    operation = driver.reset(GPU)
    with pytest.raises(DeviceGone):
        operation.wait()
    assert seen(driver).presence is Presence.MISSING
    machine.heal(GPU)
    assert seen(driver).health is Health.HEALTHY


def test_a_lost_gpu_comes_back_by_a_reset(machine, driver):
    machine.inject(GPU, FaultType.LOST)
    with pytest.raises(DeviceGone):
        open_gpu(driver)
    driver.reset(GPU).wait()
    assert open_gpu(driver).telemetry()["recovery_action"].value == "none"


def test_a_fault_of_one_gpu_does_not_touch_another(machine, driver):
    other = open_gpu(driver, OTHER)
    machine.inject(GPU, FaultType.XID, code=79)
    assert other.copy_to_host(other.copy_to_device(np.arange(3))).tolist() == [0, 1, 2]
    assert seen(driver, OTHER).health is Health.HEALTHY


def test_a_program_that_faults_loses_its_context_but_not_the_device(machine, driver):
    gpu, neighbour = open_gpu(driver), open_gpu(driver)
    machine.inject(GPU, FaultType.XID, code=31)
    for _ in range(2):
        with pytest.raises(ProgramFault) as caught:
            gpu.allocate(16)
        assert caught.value.code == 31
    assert gpu.telemetry()["recovery_action"].value == "restart-app"
    gpu.close()
    assert open_gpu(driver).allocate(16).nbytes == 16
    assert not any(c.blocks_new_leases for c in driver.sample([GPU], Deadline.after(5)))
    neighbour.close()


def test_a_kernel_that_raises_is_a_program_fault(driver):
    gpu = open_gpu(driver)

    def wild(block, array):
        array[10_000] = 1

    buffer = gpu.allocate(16)
    with pytest.raises(ProgramFault) as caught:
        gpu.launch(gpu.load_kernel(wild), 1, 1, (buffer,))
    assert caught.value.code == 13
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(ProgramFault):
        gpu.copy_to_host(buffer)


def test_a_kernel_that_raises_in_a_stream_is_told_when_it_is_synchronised(driver):
    gpu = open_gpu(driver)
    stream = gpu.stream()
    gpu.launch(gpu.load_kernel(lambda block: 1 / 0), 1, 1, stream=stream)
    with pytest.raises(ProgramFault):
        stream.synchronize()


@pytest.mark.parametrize("code", [62, 95, 109, 119])
def test_no_program_runs_until_the_reset_that_a_code_asks_for(machine, driver, code):
    machine.inject(GPU, FaultType.XID, code=code)
    gpu = open_gpu(driver)
    with pytest.raises(HardwareFault) as caught:
        gpu.allocate(16)
    assert caught.value.code == code
    assert gpu.telemetry()["recovery_action"].value in ("reset", "drain-reset")
    gpu.close()
    driver.reset(GPU).wait()
    assert open_gpu(driver).allocate(16).nbytes == 16
    assert seen(driver).health is Health.HEALTHY


def test_an_uncorrectable_error_is_counted_once_and_latched_until_a_reset(machine, driver):
    gpu = open_gpu(driver)
    fault = machine.inject(GPU, FaultType.ECC_UNCORRECTABLE, offset=0x1000, duration_seconds=1)
    with pytest.raises(UncorrectableError):
        gpu.allocate(16)
    machine.clock.advance(10)
    machine.heal(id=fault.id)
    for _ in range(3):
        assert gpu.ecc().volatile["dram"].uncorrected == 1
    assert gpu.row_remapping().pending
    condition = next(c for c in driver.sample([GPU], Deadline.after(5)) if c.type == "UncorrectableEcc")
    assert (condition.latched, condition.severity, condition.action) == (True, Severity.CRITICAL, Action.DRAIN_RESET)
    assert "0x1000" in condition.evidence
    gpu.close()
    driver.reset(GPU).wait()
    gpu = open_gpu(driver)
    assert not types(driver)
    rows = gpu.row_remapping()
    assert (rows.pending, rows.uncorrectable) == (False, 1)
    assert gpu.ecc().volatile["dram"].uncorrected == 0
    assert gpu.ecc().aggregate["dram"].uncorrected == 1


def test_an_error_that_came_and_went_unseen_is_counted_all_the_same(machine, driver):
    machine.inject(GPU, FaultType.ECC_UNCORRECTABLE, after_seconds=5, duration_seconds=1)
    assert not types(driver)
    machine.clock.advance(100)
    assert types(driver) == {"UncorrectableEcc"}


def test_two_errors_at_once_are_two(machine, driver):
    for count in (1, 2):
        machine.inject(GPU, FaultType.ECC_UNCORRECTABLE)
        assert open_gpu(driver).ecc().aggregate["dram"].uncorrected == count


def test_a_second_error_after_healing_the_first_is_counted_too(machine, driver):
    for count in (1, 2):
        machine.inject(GPU, FaultType.ECC_UNCORRECTABLE)
        assert open_gpu(driver).ecc().aggregate["dram"].uncorrected == count
        machine.heal(GPU)


def test_a_row_that_could_not_be_replaced_survives_the_reset(machine, driver):
    machine.inject(GPU, FaultType.XID, code=64)
    driver.reset(GPU).wait()
    (condition,) = driver.sample([GPU], Deadline.after(5))
    assert (condition.type, condition.action) == ("RowRemappingFailed", Action.REPLACE)
    assert open_gpu(driver).row_remapping().failed


def test_a_degraded_link_shows_in_attributes_telemetry_and_conditions(machine, driver):
    before = open_gpu(driver).telemetry()["pcie_replays"].value
    machine.inject(GPU, FaultType.LINK_DEGRADED, generation=3, width=8)
    machine.clock.advance(10)
    device, told = seen(driver), open_gpu(driver).telemetry()
    assert (device.value("link_speed_gts"), device.value("link_width")) == (8.0, 8)
    assert (told["pcie_speed_gts"].value, told["pcie_width"].value) == (8.0, 8)
    assert (told["pcie_max_speed_gts"].value, told["pcie_max_width"].value) == (32.0, 16)
    assert told["pcie_replays"].value > before
    assert device.health is Health.DEGRADED
    assert device.conditions[0].radius is Radius.LINK
    machine.heal(GPU)
    assert seen(driver).value("link_width") == 16


def test_nvlinks_that_are_down_are_no_way_to_a_peer_but_pcie_is(machine, driver):
    machine.inject(GPU, FaultType.LINK_DOWN)
    gpu, other = open_gpu(driver), open_gpu(driver, OTHER)
    assert all(peer.nvlinks == 0 for peer in gpu.peers())
    assert all(link.state == "down" for link in seen(driver).links)
    target = other.allocate(4)
    gpu.copy_peer(gpu.copy_to_device(np.arange(4, dtype=np.uint8)), target)
    assert other.copy_to_host(target).tolist() == [0, 1, 2, 3]


def test_a_flapping_link_is_down_half_of_the_time(machine, driver):
    machine.inject(GPU, FaultType.FLAP, seconds=10)
    gpu = open_gpu(driver)
    states = []
    for _ in range(4):
        states.append(gpu.peers()[0].nvlinks > 0)
        machine.clock.advance(5)
    assert states == [False, True, False, True]


def test_an_nvlink_error_stops_copies_between_devices_only(machine, driver):
    gpu, other = open_gpu(driver), open_gpu(driver, OTHER)
    source, target = gpu.allocate(4), other.allocate(4)
    machine.inject(GPU, FaultType.XID, code=74)
    assert gpu.copy_to_host(source).shape == (4,)
    with pytest.raises(HardwareFault) as caught:
        gpu.copy_peer(source, target)
    assert caught.value.code == 74


def test_a_lie_shows_nowhere_but_in_the_value(machine, driver):
    machine.inject(GPU, FaultType.LIE, attribute="temperature_celsius", value="20.5")
    machine.inject(GPU, FaultType.LIE, attribute="memory_bytes", value="1024")
    attribute = open_gpu(driver).telemetry()["temperature_celsius"]
    assert (attribute.value, attribute.source) == (20.5, "mock")
    device = seen(driver)
    assert (device.value("memory_bytes"), device.capacity["memory_bytes"]) == (1024, 1024)
    assert not device.conditions


def test_a_hang_keeps_the_deadline_and_is_unknown_until_a_reset(machine, driver):
    gpu = open_gpu(driver)
    machine.inject(GPU, FaultType.HANG)
    with pytest.raises(DeadlineExceeded):
        gpu.allocate(16, deadline=Deadline.after(0.01))
    with pytest.raises(DeadlineExceeded):
        gpu.telemetry(deadline=Deadline.after(0.01))
    (condition,) = driver.sample([GPU], Deadline.after(5))
    assert condition.status is Status.UNKNOWN
    assert seen(driver).presence is Presence.GHOST
    driver.reset(GPU).wait()
    assert seen(driver).health is Health.HEALTHY


def test_a_slow_gpu_takes_its_time_and_answers(machine, driver):
    gpu = open_gpu(driver)
    machine.inject(GPU, FaultType.SLOW, seconds=3)
    before = machine.clock.now()
    gpu.allocate(16)
    assert machine.clock.now() == before + 3


@pytest.mark.parametrize(
    "verb",
    [
        lambda gpu, buffer, stream: gpu.allocate(16),
        lambda gpu, buffer, stream: gpu.copy_to_device(np.zeros(16, np.uint8), buffer),
        lambda gpu, buffer, stream: gpu.copy_to_host(buffer),
        lambda gpu, buffer, stream: buffer.array,
        lambda gpu, buffer, stream: stream.record(),
    ],
)
def test_a_handle_from_before_a_reset_can_do_nothing_more(driver, verb):
    gpu = open_gpu(driver)
    buffer, stream = gpu.allocate(16), gpu.stream()
    driver.reset(GPU).wait()
    with pytest.raises(HardwareFault):
        verb(gpu, buffer, stream)
    gpu.close()
    assert open_gpu(driver).memory_info().used_bytes == 0


def test_taking_a_device_back_stops_a_holder_who_does_not(driver):
    gpu = open_gpu(driver)
    gpu.allocate(1 << 20)
    driver.unprepare(GPU, Grant(lease="l", fence=3), Deadline.after(5))
    with pytest.raises(HardwareFault):
        gpu.allocate(16)
    assert open_gpu(driver).memory_info().used_bytes == 0


def test_the_mode_of_error_correction_waits_for_a_reset(driver):
    gpu = open_gpu(driver)
    mode = gpu.set_ecc(False)
    assert (mode.current, mode.pending, mode.needs_reset) == (True, False, True)
    assert (seen(driver).value("ecc_mode"), seen(driver).value("ecc_mode_pending")) == ("enabled", "disabled")
    driver.reset(GPU).wait()
    assert not driver.boards.ecc(GPU).mode.current


def test_every_code_of_the_table_can_be_met_and_mended(machine, driver):
    for code, meaning in XIDS.items():
        machine.inject(GPU, FaultType.XID, code=code)
        found = [c for c in driver.sample([GPU], Deadline.after(5)) if c.code == code and c.type == "XidError"]
        assert [c.severity for c in found] == [meaning.severity]
        machine.heal(GPU)


def test_an_unknown_code_is_degraded_and_blames_nobody():
    meaning = xid(9999)
    assert (meaning.severity, meaning.blame) == (Severity.DEGRADED, "unknown")


@pytest.mark.parametrize(
    ("left", "words"),
    [({"generation": 3, "width": 8}, "PCIe generation 3 x8,"), ({"width": 4}, "PCIe x4,"), ({}, "the PCIe link is")],
)
def test_a_degraded_link_is_told_in_words_that_it_has(machine, driver, left, words):
    machine.inject(GPU, FaultType.LINK_DEGRADED, **left)
    (condition,) = driver.sample([GPU], Deadline.after(5))
    assert condition.evidence.startswith(words)
