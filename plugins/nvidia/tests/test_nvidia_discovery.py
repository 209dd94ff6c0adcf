"""What the driver finds: the GPUs that the mock drivers find, one lost among live ones, older drivers, no driver."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Context, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceGone, DeviceNotFound, Unsupported
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence
from hal.model.device import Device
from hal.model.health import Health, Presence
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_nvidia import hal_drivers
from hal_nvidia.library import Library
from plugins.nvidia.tests.nvidia_machines import SOON, NvidiaMachine, devices_of

SHARED = (
    "vendor",
    "model",
    "uuid",
    "architecture",
    "compute_capability",
    "memory_bytes",
    "multiprocessors",
    "power_limit_watts",
    "coherent",
    "serial",
    "link_speed_gts",
    "link_width",
    "link_max_speed_gts",
    "link_max_width",
    "ecc_mode",
    "mig_mode",
    "partition_placements",
    "pci_vendor",
    "pci_device",
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaMachine:
    return NvidiaMachine("dgx-h100", tmp_path, monkeypatch)


def wiring(device: Device) -> dict[tuple[object, ...], float | None]:
    return {
        (link.peer, link.lanes, link.state, link.detail): link.bandwidth_bytes_per_second
        for link in device.links
        if link.type == "nvlink"
    }


@pytest.mark.parametrize("profile", ["dgx-h100", "dgx-a100", "gb200-tray"])
def test_nvml_and_the_mock_driver_tell_the_same_gpus(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = NvidiaMachine(profile, tmp_path, monkeypatch)
    found = devices_of(machine.driver())
    here = [d for d in MockGpuDriver(machine.machine).describe() if d.location.node == machine.host.name]
    mocks = {device.id: MockGpuDriver(machine.machine).find(device.id) for device in here}
    assert found.keys() == mocks.keys()
    for device_id, mock in mocks.items():
        real = found[device_id]
        assert {name: real.value(name) for name in SHARED} == {name: mock.value(name) for name in SHARED}
        assert real.name == mock.name
        assert real.capacity == mock.capacity
        assert real.location.pci_address == mock.location.pci_address
        assert real.allocatable

        one, other = wiring(real), wiring(mock)
        assert one.keys() == other.keys()
        for wire, bandwidth in one.items():
            assert bandwidth == pytest.approx(other[wire], rel=1e-4), "NVML tells whole megabytes a second"


def test_a_lost_gpu_is_a_ghost_with_a_reason_and_the_others_go_on(machine: NvidiaMachine) -> None:
    driver = machine.driver()
    before = devices_of(driver)
    fault = machine.inject(3, FaultType.LOST)
    lost = machine.uuids[3]
    found = devices_of(driver)
    assert found.keys() == before.keys()
    assert found[lost].presence is Presence.GHOST
    assert found[lost].health is Health.FAILED
    assert not found[lost].allocatable
    assert found[lost].value("model") == before[lost].value("model"), "what it has told is remembered"
    assert [c.type for c in found[lost].conditions] == ["DeviceLost"]
    for verb in (
        lambda: driver.prepare(lost, Grant(lease="a", fence=1), Deadline.after(SOON)),
        lambda: driver.open(lost, OpenGuard(), Deadline.after(SOON)),
        lambda: driver.partitions(lost),
    ):
        with pytest.raises(DeviceGone):
            verb()
    driver.unprepare(lost, Grant(lease="a", fence=2), Deadline.after(SOON))
    live = [device for device in found.values() if device.id != lost]
    assert all(device.health is Health.HEALTHY and device.allocatable for device in live)
    sampled = driver.sample(machine.uuids, Deadline.after(SOON))
    assert [(c.device, c.type) for c in sampled] == [(lost, "DeviceLost")]
    machine.machine.heal(id=fault.id)
    assert devices_of(driver)[lost].presence is Presence.PRESENT


def test_an_opened_gpu_that_is_lost_fails_in_every_verb(machine: NvidiaMachine) -> None:
    driver = machine.driver()
    gpu = driver.open(machine.uuids[0], OpenGuard(), Deadline.after(SOON))
    other = driver.open(machine.uuids[1], OpenGuard(), Deadline.after(SOON))
    machine.inject(0, FaultType.FALLEN_OFF_BUS)
    for verb in (gpu.telemetry, gpu.ecc, gpu.power_limit, gpu.processes, gpu.row_remapping):
        with pytest.raises(DeviceGone) as caught:
            verb()
        assert caught.value.device == machine.uuids[0]
        assert caught.value.hint
    assert other.telemetry()["power_watts"].known
    assert len(other.peers()) == len(machine.uuids) - 2, "the way to a lost GPU is not told"


def test_a_gpu_that_was_lost_before_anybody_looked_hides_no_other(machine: NvidiaMachine) -> None:
    machine.inject(2, FaultType.FALLEN_OFF_BUS)
    found = machine.driver().discover(Deadline.after(SOON))
    live = [device for device in found.devices if device.presence is Presence.PRESENT]
    assert len(live) == 7
    (ghost,) = [device for device in found.devices if device.presence is Presence.GHOST]
    assert (ghost.health, ghost.allocatable) == (Health.FAILED, False)
    assert [condition.type for condition in ghost.conditions] == ["DeviceLost"]


def test_a_gpu_without_a_name_gets_it_back_with_its_answer(machine: NvidiaMachine) -> None:
    fault = machine.inject(2, FaultType.LOST)
    driver = machine.driver()
    assert len(devices_of(driver)) == 8
    machine.machine.heal(id=fault.id)
    assert devices_of(driver).keys() == set(machine.uuids)


@pytest.mark.parametrize("branch", [470])
def test_what_an_older_driver_lacks_is_absent_and_nothing_else_is(
    branch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = NvidiaMachine("dgx-h100", tmp_path, monkeypatch, branch)
    driver = machine.driver()
    found = devices_of(driver)
    assert found.keys() == set(machine.uuids)
    device = found[machine.uuids[0]]
    assert device.value("model")
    assert str(device.value("driver_version")).startswith(str(branch))
    for attribute in device.attributes.values():
        assert attribute.known or attribute.absent in (Absence.UNSUPPORTED, Absence.NOT_REPORTED)
    told = driver.open(device.id, OpenGuard(), Deadline.after(SOON)).telemetry()
    assert told["power_watts"].known
    assert told["clock_event_reasons"].known, "older drivers have the same under an older name"
    if branch < 565:
        assert told["recovery_action"].absent is Absence.UNSUPPORTED
    assert driver.sample(machine.uuids, Deadline.after(SOON)) == []


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        ("driver-not-loaded", Cause.NO_DRIVER),
        ("version-mismatch", Cause.VERSION_MISMATCH),
        ("no-permission", Cause.NO_PERMISSION),
    ],
)
def test_readiness_names_the_one_thing_in_the_way(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch, word: str, cause: Cause
) -> None:
    monkeypatch.setenv("HAL_MOCK_NVML_INIT", word)
    driver = machine.driver()
    readiness = driver.readiness()
    assert (readiness.cause, bool(readiness.detail), bool(readiness.remedy)) == (cause, True, True)
    assert "\n" not in readiness.detail
    monkeypatch.delenv("HAL_MOCK_NVML_INIT")
    assert driver.readiness().ready, "asked again it looks again"


def test_no_library_and_no_binding_are_told_apart() -> None:
    (factory,) = hal_drivers()
    here = Context(hosts=(HostRoot(node="n"),), environ={})
    program = textwrap.dedent("""
        import sys
        from hal.drivers.contract import Context, HostRoot
        from hal_nvidia import hal_drivers
        if sys.argv[1:] == ["none"]:
            sys.modules["pynvml"] = None
        (factory,) = hal_drivers()
        ready = factory.create(Context(hosts=(HostRoot(node="n"),), environ={})).readiness()
        sys.stdout.write(ready.cause + ": " + ready.detail)
    """)
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}

    def told(*arguments: str) -> str:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout

    assert told("none").startswith("no-binding")
    assert factory.create(here).name == "nvidia"
    if Library().readiness().cause is Cause.NO_LIBRARY:  # a machine with a driver tells of something else
        assert told().startswith("no-library: libnvidia-ml.so.1")


def test_a_recorded_tree_is_not_asked_of_nvml(machine: NvidiaMachine, tmp_path: Path) -> None:
    (factory,) = hal_drivers()
    driver = factory.create(Context(hosts=(HostRoot(node="n", root=str(tmp_path)),), environ=machine.environ))
    readiness = driver.readiness()
    assert not readiness.ready
    assert readiness.detail == "NVML answers for the running machine, not for a tree"
    with pytest.raises(Unsupported):
        driver.open("GPU-x", OpenGuard(), Deadline.after(SOON))


def test_an_unknown_gpu_is_not_found(machine: NvidiaMachine) -> None:
    with pytest.raises(DeviceNotFound, match="GPU-none"):
        machine.driver().sample(["GPU-none"], Deadline.after(SOON))


def test_a_forked_child_asks_nvml_anew(machine: NvidiaMachine) -> None:
    driver = machine.driver()
    devices_of(driver)
    child = os.fork()
    if child == 0:
        try:
            told = driver.sample(machine.uuids, Deadline.after(SOON))
            os._exit(0 if told == [] and machine.library.generation == 1 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert machine.library.generation == 0
