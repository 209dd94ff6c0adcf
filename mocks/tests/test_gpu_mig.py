"""Partitions of a mock GPU: pending modes, geometry, children that share their GPU's fate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, DeviceGone, DeviceNotFound, HardwareFault, InvalidArgument, OutOfMemory, Unsupported
from hal.interfaces.deadline import Deadline
from hal.model.health import Health, Presence
from hal_mocks.clock import VirtualClock
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")
BOARD = DGX.hosts[0].gpus[0]
GPU = BOARD.uuid
NAMES = [profile.name for profile in BOARD.mig]


def divided(folder):
    driver = MockGpuDriver(Machine(DGX, folder, VirtualClock()))
    driver.set_partitioning(GPU, True)
    driver.reset(GPU).wait()
    return driver


@pytest.fixture
def driver(tmp_path):
    return divided(tmp_path / "state")


def open_gpu(driver, device=GPU):
    return driver.open(device, OpenGuard(), Deadline.after(5))


class Slices:
    """An oracle that knows NVIDIA's picture only: eight slices of memory, seven for computing, each owned once."""

    STARTS = {1: range(7), 2: (0, 2, 4, 6), 4: (0, 4), 8: (0,)}
    SIZE = {"1g.10gb": (1, 1), "1g.10gb+me": (1, 1), "1g.20gb": (1, 2), "2g.20gb": (2, 2), "3g.40gb": (3, 4),
            "4g.40gb": (4, 4), "7g.80gb": (7, 8)}  # fmt: skip

    def __init__(self):
        self.memory = [None] * 8
        self.compute = 0
        self.media = None

    def starts(self, profile):
        compute, memory = self.SIZE[profile]
        starts = [s for s in self.STARTS[memory] if not (profile == "2g.20gb" and s == 6)]
        starts = [0] if profile == "4g.40gb" else starts
        if self.compute + compute > 7 or (profile.endswith("+me") and self.media):
            return []
        return [start for start in starts if not any(self.memory[start : start + memory])]

    def take(self, profile, start, name):
        compute, memory = self.SIZE[profile]
        self.memory[start : start + memory] = [name] * memory
        self.compute += compute
        self.media = name if profile.endswith("+me") else self.media

    def give(self, profile, name):
        self.memory = [None if owner == name else owner for owner in self.memory]
        self.compute -= self.SIZE[profile][0]
        self.media = None if self.media == name else self.media


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from(NAMES), st.none() | st.integers(0, 7)),
        st.tuples(st.just("destroy"), st.integers(0, 6), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_partitions_never_overlap_and_fit_whenever_there_is_room(steps):
    with tempfile.TemporaryDirectory() as folder:
        driver, oracle = divided(Path(folder)), Slices()
        for verb, what, start in steps:
            existing = driver.partitions(GPU)
            if verb == "destroy":
                if what < len(existing):
                    driver.destroy_partition(GPU, existing[what].id).wait()
                    oracle.give(existing[what].profile, existing[what].id)
                continue
            room = oracle.starts(what)
            operation = driver.create_partition(GPU, what, start)
            if room and (start is None or start in room):
                made = operation.wait()
                assert made.start in room
                oracle.take(what, made.start, made.id)
            else:
                assert isinstance(operation.error(), (DeviceBusy, InvalidArgument))
        owners = [None] * 8
        for partition in driver.partitions(GPU):
            for slice_ in range(partition.start, partition.start + partition.memory_slices):
                assert owners[slice_] is None, "two partitions own a slice"
                owners[slice_] = partition.id
        assert owners == oracle.memory
        children = {d.id for d in driver.discover(Deadline.after(5)).devices if d.parent == GPU}
        assert children == {owner for owner in owners if owner}


def test_the_mode_is_pending_until_the_reset(tmp_path):
    driver = MockGpuDriver(Machine(DGX, tmp_path, VirtualClock()))
    mode = driver.set_partitioning(GPU, True)
    assert (mode.current, mode.pending) == (False, True)
    with pytest.raises(Unsupported):
        driver.create_partition(GPU, NAMES[0]).wait()
    assert open_gpu(driver).allocate(16).nbytes == 16
    driver.reset(GPU).wait()
    assert not driver.partitioning(GPU).needs_reset


def test_a_divided_gpu_computes_in_its_partitions_only(driver):
    with open_gpu(driver) as whole, pytest.raises(Unsupported):
        whole.allocate(16)
    part = driver.create_partition(GPU, "1g.10gb").wait()
    with open_gpu(driver, part.id) as gpu:
        assert gpu.copy_to_host(gpu.copy_to_device(np.arange(3))).tolist() == [0, 1, 2]
        assert gpu.memory_info().total_bytes == part.memory_bytes
        with pytest.raises(OutOfMemory):
            gpu.allocate(part.memory_bytes + 1)
        with pytest.raises(Unsupported):
            gpu.partitions()
        with pytest.raises(Unsupported):
            gpu.peers()


def test_a_partition_is_a_child_with_its_share_and_its_own_name(driver):
    made = [driver.create_partition(GPU, "3g.40gb").wait() for _ in range(2)]
    devices = {d.id: d for d in driver.discover(Deadline.after(5)).devices}
    parts = [devices[partition.id] for partition in made]
    assert all(part.parent == GPU and part.allocatable and part.id.startswith("MIG-") for part in parts)
    assert len({part.name for part in parts}) == 2
    assert [part.capacity["memory_bytes"] for part in parts] == [partition.memory_bytes for partition in made]
    assert parts[0].location == devices[GPU].location


def test_a_partition_in_use_is_not_destroyed(driver):
    part = driver.create_partition(GPU, "1g.10gb").wait()
    with open_gpu(driver, part.id), pytest.raises(DeviceBusy):
        driver.destroy_partition(GPU, part.id).wait()
    driver.destroy_partition(GPU, part.id).wait()
    with pytest.raises(DeviceNotFound):
        driver.destroy_partition(GPU, part.id).wait()
    with pytest.raises(DeviceNotFound):
        open_gpu(driver, part.id)


def test_the_mode_is_not_left_while_partitions_exist(driver):
    driver.create_partition(GPU, "1g.10gb").wait()
    with pytest.raises(DeviceBusy):
        driver.set_partitioning(GPU, False)


@pytest.mark.parametrize("fault", [{"type": FaultType.XID, "code": 79}, {"type": FaultType.LOST}])
def test_a_partition_dies_with_its_gpu(driver, fault):
    part = driver.create_partition(GPU, "1g.10gb").wait()
    gpu = open_gpu(driver, part.id)
    driver.machine.inject(GPU, **fault)
    with pytest.raises(DeviceGone) as caught:
        gpu.telemetry()
    assert caught.value.device == part.id
    child = next(d for d in driver.discover(Deadline.after(5)).devices if d.id == part.id)
    assert child.presence is not Presence.PRESENT
    assert child.health is Health.FAILED
    assert {condition.device for condition in child.conditions} == {part.id}


def test_the_reset_of_a_gpu_ends_its_partitions_and_who_computes_there(driver):
    part = driver.create_partition(GPU, "1g.10gb").wait()
    gpu = open_gpu(driver, part.id)
    operation = driver.reset(part.id)
    with pytest.raises(Unsupported):
        operation.wait()
    driver.reset(GPU).wait()
    with pytest.raises(HardwareFault):
        gpu.allocate(16)
    assert driver.partitions(GPU) == ()
    assert driver.partitioning(GPU).current


def test_memory_and_processes_of_partitions_are_the_gpus(driver):
    part = driver.create_partition(GPU, "1g.10gb").wait()
    with open_gpu(driver, part.id) as gpu, open_gpu(driver) as whole:
        kept = gpu.allocate(1 << 20)
        assert whole.telemetry()["memory_used_bytes"].value == kept.nbytes
        assert part.id in {process.partition for process in whole.processes()}
        with pytest.raises(Unsupported):
            whole.row_remapping()


def test_the_same_place_has_the_same_id_and_its_fence_only_grows(driver):
    first = driver.create_partition(GPU, "2g.20gb", 2).wait()
    driver.prepare(first.id, Grant(lease="l", fence=9), Deadline.after(5))
    driver.destroy_partition(GPU, first.id).wait()
    again = driver.create_partition(GPU, "2g.20gb", 2).wait()
    assert again == first
    driver.prepare(again.id, Grant(lease="m", fence=10), Deadline.after(5))
