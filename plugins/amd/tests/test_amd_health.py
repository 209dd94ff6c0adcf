"""Conditions carry what was seen, and hold as long as it is seen."""

from __future__ import annotations

import pytest

from hal.interfaces.deadline import Deadline
from hal.model.health import Action, Presence, Severity
from plugins.amd.tests.amd_trees import AmdMachine

SOON = 20.0


@pytest.fixture
def machine(tmp_path):
    return AmdMachine(tmp_path)


@pytest.fixture
def driver(machine):
    driver = machine.driver()
    driver.discover(Deadline.after(SOON))
    return driver


def conditions(driver, *ids):
    return list(driver.sample(ids, Deadline.after(SOON)))


def test_gpus_that_are_well_have_no_conditions(machine, driver):
    assert conditions(driver, machine.gpu(0), machine.gpu(1)) == []


def test_uncorrectable_memory_errors_ask_for_a_reset(machine, driver):
    machine.write(0, "ras/umc_err_count", "ue: 2\nce: 7")
    (found,) = conditions(driver, machine.gpu(0))
    assert (found.type, found.severity, found.action) == ("UncorrectableEcc", Severity.DEGRADED, Action.DRAIN_RESET)
    assert found.count == 2
    assert not found.latched
    assert "2 uncorrectable" in found.evidence


def test_a_page_that_waits_to_be_retired_is_latched(machine, driver):
    machine.write(0, "ras/umc_err_count", "ue: 1\nce: 0")
    machine.write(0, "ras/gpu_vram_bad_pages", "0x00000001 : 0x00001000 : R\n0x00000002 : 0x00001000 : P\n")
    (found,) = conditions(driver, machine.gpu(0))
    assert (found.type, found.severity, found.latched) == ("UncorrectableEcc", Severity.CRITICAL, True)


def test_a_page_that_cannot_be_retired_wants_another_board(machine, driver):
    machine.write(0, "ras/gpu_vram_bad_pages", "0x00000002 : 0x00001000 : F\n")
    (found,) = conditions(driver, machine.gpu(0))
    assert (found.type, found.action) == ("PageRetirementFailed", Action.REPLACE)


def test_errors_of_other_blocks_are_told_with_their_place(machine, driver):
    machine.write(1, "ras/gfx_err_count", "ue: 3\nce: 0")
    machine.write(1, "ras/xgmi_wafl_err_count", "ue: 1\nce: 0")
    (found,) = conditions(driver, machine.gpu(0), machine.gpu(1))
    assert found.device == machine.gpu(1)
    assert found.count == 4
    assert "3 in gfx, 1 in xgmi_wafl" in found.evidence


def test_corrected_errors_are_no_condition(machine, driver):
    machine.write(0, "ras/umc_err_count", "ue: 0\nce: 100000")
    assert conditions(driver, machine.gpu(0)) == []


@pytest.mark.parametrize(("celsius", "severity"), [(100, Severity.WARN), (105, Severity.CRITICAL)])
def test_heat_is_judged_by_the_sensors_own_limits(machine, driver, celsius, severity):
    machine.tree.write(f"{machine.hwmon(0)}/temp2_input", celsius * 1000)
    (found,) = conditions(driver, machine.gpu(0))
    assert (found.type, found.severity) == ("OverTemperature", severity)
    assert "junction" in found.evidence
    assert f"{celsius} °C" in found.evidence


def test_the_hottest_place_is_the_one_that_is_told(machine, driver):
    machine.tree.write(f"{machine.hwmon(0)}/temp2_input", 101_000)
    machine.tree.write(f"{machine.hwmon(0)}/temp3_input", 110_000)
    (found,) = conditions(driver, machine.gpu(0))
    assert found.severity is Severity.CRITICAL
    assert "mem" in found.evidence


def test_a_hung_ring_is_known_by_its_dump(machine, driver):
    machine.tree.link("class/devcoredump/devcd7/failing_device", machine.path(1))
    (found,) = conditions(driver, machine.gpu(0), machine.gpu(1))
    assert (found.device, found.type) == (machine.gpu(1), "RingHang")
    assert "devcd7" in found.evidence


def test_a_narrow_link_is_told(machine, driver):
    machine.tree.write(f"{machine.tree.path_of('0000:01:00.0')}/current_link_width", 8)
    (found,) = conditions(driver, machine.gpu(0))
    assert found.type == "LinkDegraded"
    assert "x8, of x16" in found.evidence


def test_a_gpu_that_fell_off_the_bus_is_a_ghost_and_costs_only_itself(machine, driver):
    machine.fall_off(0)
    (found,) = conditions(driver, machine.gpu(0), machine.gpu(1))
    assert (found.type, found.severity, found.latched) == ("FallenOffBus", Severity.FATAL, True)
    devices = {d.id: d for d in driver.discover(Deadline.after(SOON)).devices}
    assert devices[machine.gpu(0)].presence is Presence.GHOST
    assert not devices[machine.gpu(0)].allocatable
    assert devices[machine.gpu(1)].allocatable
    assert devices[machine.gpu(1)].conditions == ()


def test_a_gpu_whose_folder_is_gone_is_lost(machine, driver):
    machine.tree.remove(machine.path(0))
    (found,) = conditions(driver, machine.gpu(0), machine.gpu(1))
    assert (found.type, found.device) == ("DeviceLost", machine.gpu(0))


def test_a_gpu_that_the_driver_lets_go_of_is_not_called_well(machine, driver):
    machine.tree.remove(f"{machine.path(0)}/driver")
    (found,) = conditions(driver, machine.gpu(0))
    assert found.type == "DriverNotBound"


def test_a_gpu_whose_files_all_fail_does_not_answer(machine, driver):
    for name in (
        "gpu_busy_percent",
        "mem_busy_percent",
        "mem_info_vram_total",
        "mem_info_vram_used",
        "pp_dpm_sclk",
        "pp_dpm_mclk",
        "pcie_replay_count",
    ):
        machine.tree.unreadable(f"{machine.path(0)}/{name}")
    found = conditions(driver, machine.gpu(0))
    assert [one.type for one in found] == ["NotAnswering"]
    assert "permission" in found[0].evidence


def test_parts_share_the_fate_of_their_gpu(tmp_path):
    machine = AmdMachine(tmp_path)
    machine.divide(0, "DPX")
    driver = machine.driver()
    ids = [d.id for d in driver.discover(Deadline.after(SOON)).devices if d.parent == machine.gpu(0)]
    machine.write(0, "ras/umc_err_count", "ue: 1\nce: 0")
    assert [(c.device, c.type) for c in conditions(driver, *ids)] == [(part, "UncorrectableEcc") for part in ids]


def test_a_part_that_is_no_more_is_lost(tmp_path):
    machine = AmdMachine(tmp_path, gpus=1)
    machine.divide(0, "DPX")
    driver = machine.driver()
    part = driver.discover(Deadline.after(SOON)).devices[-1].id
    machine.divide(0, "SPX")
    driver.discover(Deadline.after(SOON))
    (found,) = conditions(driver, part)
    assert (found.type, found.device) == ("DeviceLost", part)


def test_a_condition_remembers_since_when_it_holds(machine, driver):
    machine.write(0, "ras/umc_err_count", "ue: 1\nce: 0")
    (first,) = conditions(driver, machine.gpu(0))
    (again,) = conditions(driver, machine.gpu(0))
    assert again.first_seen_at == first.first_seen_at
    assert again.last_seen_at >= first.last_seen_at
    machine.write(0, "ras/umc_err_count", "ue: 0\nce: 0")
    assert conditions(driver, machine.gpu(0)) == []
