"""Memory of a mock GPU: counted among processes, given back by the dead, not backed until it is touched."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, InvalidArgument, OutOfMemory, Unsupported
from hal.interfaces.deadline import Deadline
from hal_mocks.clock import VirtualClock
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_contexts import SLOTS
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")
BOARD = DGX.hosts[0].gpus[0]
GPU, OTHER = BOARD.uuid, DGX.hosts[0].gpus[1].uuid


def open_gpu(folder, device=GPU):
    driver = MockGpuDriver(Machine(DGX, folder, VirtualClock()))
    return driver.open(device, OpenGuard(), Deadline.after(5))


@pytest.fixture
def gpu(tmp_path):
    with open_gpu(tmp_path) as handle:
        yield handle


def hold(folder, nbytes, pipe):
    gpu = open_gpu(folder)
    kept = gpu.allocate(nbytes)
    pipe.send(kept.nbytes)
    pipe.recv()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds 60 GiB of the GPU until it is killed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, 60 << 30, theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    assert ours.recv() == 60 << 30
    yield process
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)


def test_an_80_gb_buffer_needs_no_80_gb(gpu):
    info = gpu.memory_info()
    buffer = gpu.allocate(info.free_bytes)
    assert gpu.memory_info().free_bytes == 0
    buffer.array[-5:] = 7
    assert buffer.array[-5:].sum() == 35
    buffer.free()
    assert gpu.memory_info() == info


def test_memory_is_shared_among_processes_and_the_dead_give_it_back(gpu, holder):
    seen = {process.pid: process.memory_bytes for process in gpu.processes()}
    assert seen[holder.pid] == 60 << 30
    assert gpu.telemetry()["memory_used_bytes"].value == 60 << 30
    with pytest.raises(OutOfMemory):
        gpu.allocate(30 << 30)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    assert gpu.allocate(30 << 30).nbytes == 30 << 30
    assert [process.pid for process in gpu.processes()] == [os.getpid()]


def test_closing_gives_everything_back(tmp_path, gpu):
    with open_gpu(tmp_path) as other:
        kept = other.allocate(1 << 30)
        assert gpu.memory_info().used_bytes == kept.nbytes
    assert gpu.memory_info().used_bytes == 0
    with pytest.raises(InvalidArgument):
        _ = kept.array


def test_a_handle_that_nobody_closed_gives_its_memory_back(tmp_path, gpu):
    forgotten = open_gpu(tmp_path)
    kept = forgotten.allocate(1 << 30)
    assert gpu.memory_info().used_bytes == kept.nbytes
    del kept, forgotten
    assert gpu.memory_info().used_bytes == 0


def test_the_device_takes_so_many_contexts(tmp_path):
    handles = [open_gpu(tmp_path) for _ in range(SLOTS)]
    with pytest.raises(DeviceBusy):
        open_gpu(tmp_path)
    handles.pop().close()
    open_gpu(tmp_path).close()
    for handle in handles:
        handle.close()


@pytest.mark.parametrize("wrong", [-1, (3, -1), (-2, -2), (1.5,), "many"])
def test_what_is_no_shape_is_refused(gpu, wrong):
    with pytest.raises(InvalidArgument):
        gpu.allocate(wrong)
    assert gpu.memory_info().used_bytes == 0


@pytest.mark.parametrize("wrong", ["float33", "object", "str"])
def test_what_is_no_type_is_refused(gpu, wrong):
    with pytest.raises(InvalidArgument):
        gpu.allocate(4, wrong)


def test_a_buffer_of_another_handle_is_refused(tmp_path, gpu):
    with open_gpu(tmp_path, OTHER) as other:
        foreign = other.allocate(4)
        for verb in (
            lambda: gpu.copy_to_host(foreign),
            lambda: gpu.copy_to_device(np.zeros(4, np.uint8), foreign),
            lambda: gpu.copy_peer(foreign, foreign),
            lambda: gpu.launch(gpu.load_kernel(print), 1, 1, (foreign,)),
        ):
            with pytest.raises(InvalidArgument):
                verb()


def test_there_is_no_way_to_a_gpu_of_another_host(tmp_path):
    rack = load_profile("rack")
    hosts = [host for host in rack.hosts if host.gpus][:2]
    driver = MockGpuDriver(Machine(rack, tmp_path, VirtualClock()))
    one, other = (driver.open(host.gpus[0].uuid, OpenGuard(), Deadline.after(5)) for host in hosts)
    with one, other, pytest.raises(Unsupported):
        one.copy_peer(one.allocate(4), other.allocate(4))


def test_bytes_that_move_are_counted_and_stay_counted(tmp_path, gpu):
    for _ in range(3):
        with open_gpu(tmp_path) as other:
            other.copy_to_host(other.copy_to_device(np.zeros(1000, np.uint8)))
    told = gpu.telemetry()
    assert (told["pcie_received_bytes"].value, told["pcie_sent_bytes"].value) == (3000, 3000)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 60).map(lambda gib: gib << 30)), max_size=30))
def test_never_more_is_given_than_there_is(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("memory")
    with open_gpu(folder) as one, open_gpu(folder) as other:
        kept = {0: [], 1: []}
        handles = (one, other)
        for who, nbytes in steps:
            used = sum(buffer.nbytes for buffers in kept.values() for buffer in buffers)
            if nbytes < 0:
                if kept[who]:
                    kept[who].pop().free()
            elif used + nbytes <= BOARD.memory_bytes:
                kept[who].append(handles[who].allocate(nbytes))
            else:
                with pytest.raises(OutOfMemory):
                    handles[who].allocate(nbytes)
            used = sum(buffer.nbytes for buffers in kept.values() for buffer in buffers)
            assert one.memory_info().used_bytes == other.memory_info().used_bytes == used
