"""What samples and events say: conditions with evidence, XIDs with their place, and a GPU whose driver hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from hal.drivers.contract import Reports
from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded
from hal.interfaces.deadline import Deadline
from hal.model.event import Event, EventType
from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_mocks.faults import FaultType
from hal_nvidia import asking, health
from hal_nvidia import sampling as s
from hal_nvidia.board import Board
from hal_nvidia.driver import NvidiaDriver
from plugins.nvidia.tests.nvidia_machines import SOON, NvidiaMachine, devices_of


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaMachine:
    return NvidiaMachine("dgx-h100", tmp_path, monkeypatch)


@pytest.fixture
def driver(machine: NvidiaMachine) -> Iterator[NvidiaDriver]:
    driver = machine.driver()
    devices_of(driver)
    yield driver
    driver.close()


def sampled(driver: NvidiaDriver, machine: NvidiaMachine, gpu: int = 0) -> dict[str, Condition]:
    return {c.type: c for c in driver.sample([machine.uuids[gpu]], Deadline.after(SOON))}


def test_a_healthy_machine_has_nothing_to_say(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    assert driver.sample(machine.uuids, Deadline.after(SOON)) == []


def test_an_uncorrectable_error_is_a_condition_that_waits_for_a_reset(
    machine: NvidiaMachine, driver: NvidiaDriver
) -> None:
    machine.inject(0, FaultType.ECC_UNCORRECTABLE)
    found = sampled(driver, machine)["UncorrectableEcc"]
    assert (found.severity, found.action, found.code, found.latched) == (
        Severity.CRITICAL,
        Action.DRAIN_RESET,
        48,
        True,
    )
    assert "wait for a reset" in found.evidence
    gpu = driver.open(machine.uuids[0], OpenGuard(), Deadline.after(SOON))
    assert gpu.row_remapping().pending
    assert gpu.ecc().volatile["dram"].uncorrected >= 1
    assert sampled(driver, machine, 1) == {}


def test_a_narrow_pcie_link_is_degraded(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    machine.inject(0, FaultType.LINK_DEGRADED, width=8)
    found = sampled(driver, machine)["LinkDegraded"]
    assert (found.radius, found.severity) == (Radius.LINK, Severity.DEGRADED)
    assert "x8" in found.evidence
    assert "x16" in found.evidence


def test_nvlinks_that_were_up_and_are_down_are_named(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    fault = machine.inject(0, FaultType.LINK_DOWN)
    assert "18 of 18 NVLinks are down" in sampled(driver, machine)["NvlinkDown"].evidence
    links = devices_of(driver)[machine.uuids[0]].links
    assert {link.state for link in links if link.type == "nvlink"} == {"down"}
    machine.machine.heal(id=fault.id)
    assert sampled(driver, machine) == {}


def test_an_xid_between_two_samples_is_not_missed_and_is_latched(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    fault = machine.inject(0, FaultType.XID, code=95)
    first = sampled(driver, machine)["XidError"]
    assert (first.code, first.latched, first.expires_at) == (95, True, None)
    machine.machine.heal(id=fault.id)
    assert sampled(driver, machine)["XidError"].first_seen_at == first.first_seen_at, "latched until a repair"


def test_an_xid_of_a_program_is_forgotten_after_a_while() -> None:
    board = Board("GPU-x", "0000:01:00.0")
    health.remember_xid(board, "GPU-x", 31, "", now=100.0)
    assert [c.code for c in health.remembered(board, 100.0 + health.XID_SECONDS - 1)] == [31]
    assert health.remembered(board, 100.0 + health.XID_SECONDS + 1) == []


@pytest.mark.parametrize(("value", "action"), [(1, Action.RESET), (2, Action.REBOOT), (4, Action.DRAIN_RESET)])
def test_the_drivers_recommendation_is_a_condition(value: int, action: Action) -> None:
    (found,) = health.judge(Board("GPU-x", "0000:01:00.0"), {s.RECOVERY_ACTION: value}, 1.0)
    assert (found.type, found.action) == ("RecoveryAction", action)


def test_no_recommendation_is_no_condition() -> None:
    assert health.judge(Board("GPU-x", "0000:01:00.0"), {s.RECOVERY_ACTION: 0}, 1.0) == []


def test_an_event_names_its_gpu_and_its_xid(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    assert isinstance(driver, Reports)
    events = driver.events(Deadline.after(SOON))
    machine.inject(5, FaultType.XID, code=48)
    event = next(event for event in events if event.type is EventType.CONDITION)
    assert event.subject == machine.uuids[5]
    assert "XID 48" in event.detail


def test_a_gpu_that_is_lost_ends_no_others_events(machine: NvidiaMachine, driver: NvidiaDriver) -> None:
    events = driver.events(Deadline.after(SOON))
    machine.inject(1, FaultType.FALLEN_OFF_BUS)
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if event.subject == machine.uuids[1]:
            break
    machine.inject(2, FaultType.XID, code=31)
    later = next(event for event in events if event.subject == machine.uuids[2] and "XID 31" in event.detail)
    assert later.type is EventType.CONDITION


def test_events_end_at_their_deadline(driver: NvidiaDriver) -> None:
    assert list(islice(driver.events(Deadline.after(0.05)), 10)) == []


class Hanging:
    """A binding whose calls about one GPU's temperature do not return until they are let go."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self.go_on = threading.Event()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nvml, name)

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802 - NVML's own name
        if handle is self._handle:
            self.calls += 1
            self.go_on.wait(60)
        return self._nvml.nvmlDeviceGetTemperature(handle, sensor)  # type: ignore[no-any-return]


def test_a_gpu_that_hangs_costs_one_thread_and_no_other_gpus_answer(
    machine: NvidiaMachine, driver: NvidiaDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", (1.0, 1.0))
    machine.inject(7, FaultType.LINK_DEGRADED, width=4)
    board = driver.boards.get(machine.uuids[2])
    assert board is not None
    hanging = Hanging(machine.nvml, board.handle)
    board.nvml = hanging
    board.rearm()
    for _ in range(3):
        found = driver.sample(machine.uuids, Deadline.after(SOON))
        assert {(c.device, c.type, c.status) for c in found} == {
            (machine.uuids[2], "NoAnswer", Status.UNKNOWN),
            (machine.uuids[7], "LinkDegraded", Status.TRUE),
        }
    assert hanging.calls == 1, "who hangs is not asked again"
    with pytest.raises(DeadlineExceeded) as caught:
        driver.manage(machine.uuids[2], "look", lambda board: None, Deadline.after(SOON))
    assert caught.value.hint
    hanging.go_on.set()
    deadline = Deadline.after(SOON)
    while board.stuck is not None and not board.stuck.finished:
        deadline.check(during="waiting for the call that hung")
    assert {c.type for c in driver.sample(machine.uuids, Deadline.after(SOON))} == {"LinkDegraded"}
