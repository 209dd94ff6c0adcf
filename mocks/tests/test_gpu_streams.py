"""Streams, events and kernels of a mock GPU: in order within, as late and as shuffled as allowed between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal_mocks.clock import VirtualClock
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_kernels import per_thread
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

DGX = load_profile("dgx-h100")
GPU, OTHER = DGX.hosts[0].gpus[0].uuid, DGX.hosts[0].gpus[1].uuid


@pytest.fixture
def driver(tmp_path):
    return MockGpuDriver(Machine(DGX, tmp_path / "state", VirtualClock()))


@pytest.fixture
def gpu(driver):
    with driver.open(GPU, OpenGuard(), Deadline.after(5)) as handle:
        yield handle


def note(log, what):
    return lambda block: log.append(what)


def test_nothing_of_a_stream_has_run_before_it_is_synchronised(gpu):
    buffer, host = gpu.copy_to_device(np.arange(4)), np.zeros(4, np.int64)
    stream = gpu.stream()
    gpu.copy_to_host(buffer, host, stream=stream)
    assert not host.any(), "who reads too early reads what was there before"
    stream.synchronize()
    assert host.tolist() == [0, 1, 2, 3]


def test_who_forgets_to_wait_for_an_event_is_found_out(gpu):
    first, second = gpu.stream(), gpu.stream()
    buffer, host = gpu.copy_to_device(np.zeros(4, np.int32)), np.zeros(4, np.int32)
    gpu.copy_to_device(np.ones(4, np.int32), buffer, stream=first)
    gpu.copy_to_host(buffer, host, stream=second)
    second.synchronize()
    assert not host.any()


def test_a_stream_waits_for_an_event_of_another_gpu(driver, gpu):
    with driver.open(OTHER, OpenGuard(), Deadline.after(5)) as other:
        source, target, host = gpu.allocate((4,), "int32"), other.allocate((4,), "int32"), np.zeros(4, np.int32)
        there, here = other.stream(), gpu.stream()
        gpu.copy_to_device(np.full(4, 9, np.int32), source, stream=here)
        gpu.copy_peer(source, target, stream=here)
        there.wait(here.record())
        other.copy_to_host(target, host, stream=there)
        there.synchronize()
        assert (host == 9).all()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["work", "wait", "default"]), st.integers(0, 3), st.integers(0, 3)), max_size=25
    )
)
def test_every_run_keeps_the_order_that_was_promised(tmp_path_factory, steps):
    driver = MockGpuDriver(Machine(DGX, tmp_path_factory.mktemp("streams"), VirtualClock()))
    log, after = [], {}
    with driver.open(GPU, OpenGuard(), Deadline.after(5)) as gpu:
        streams, last = [gpu.stream() for _ in range(4)], [frozenset()] * 4
        for number, (what, one, other) in enumerate(steps):
            if what == "wait":
                streams[one].wait(streams[other].record())
                last[one] |= last[other]
            elif what == "work":
                gpu.launch(gpu.load_kernel(note(log, number)), 1, 1, stream=streams[one])
                after[number] = last[one]
                last[one] |= {number}
            else:
                gpu.launch(gpu.load_kernel(note(log, number)), 1, 1)
                after[number] = frozenset().union(*last)
                last = [seen | {number} for seen in last]
        gpu.synchronize()
    assert sorted(log) == sorted(after)
    place = {number: position for position, number in enumerate(log)}
    for number, earlier in after.items():
        assert all(place[before] < place[number] for before in earlier)


def test_time_between_events_is_the_machines(driver, gpu):
    clock, stream = driver.machine.clock, gpu.stream()
    begin = stream.record()
    gpu.launch(gpu.load_kernel(lambda block: clock.advance(0.5)), 3, 1, stream=stream)
    end = stream.record()
    with pytest.raises(InvalidArgument):
        end.elapsed_seconds(begin)
    end.synchronize()
    assert end.elapsed_seconds(begin) == 1.5


def test_a_deadline_stops_the_waiting_not_the_work(gpu):
    log, stream = [], gpu.stream()
    gpu.launch(gpu.load_kernel(note(log, 1)), 1, 1, stream=stream)
    with pytest.raises(DeadlineExceeded):
        stream.synchronize(deadline=Deadline.after(0))
    assert not log
    stream.synchronize()
    assert log == [1]


def test_what_no_stream_was_synchronised_for_is_given_up_at_closing(driver):
    log = []
    with driver.open(GPU, OpenGuard(), Deadline.after(5)) as gpu:
        gpu.launch(gpu.load_kernel(note(log, 1)), 1, 1, stream=gpu.stream())
    assert not log


def test_a_kernel_runs_once_for_every_block_in_no_promised_order(gpu):
    seen = []
    gpu.launch(gpu.load_kernel(lambda block: seen.append(block.index)), (4, 3, 2), 1)
    assert sorted(seen) == [(x, y, z) for x in range(4) for y in range(3) for z in range(2)]
    assert seen != sorted(seen, key=lambda index: index[::-1])


def test_a_kernel_may_run_once_for_every_thread(gpu):
    @per_thread
    def grid(thread, out):
        out[thread.global_index(1), thread.global_index(0)] += 1

    out = gpu.copy_to_device(np.zeros((6, 8), np.int32))
    gpu.launch(gpu.load_kernel(grid), (2, 3), (4, 2), (out,))
    assert (gpu.copy_to_host(out) == 1).all()


def test_shared_memory_is_a_blocks_own(gpu):
    def total(block, source, out):
        shared = block.shared.view(np.int64)
        assert not shared.any()
        shared[:] = source[block.global_index()]
        out[block.index[0]] = shared.sum()

    source, out = gpu.copy_to_device(np.arange(64)), gpu.allocate((4,), "int64")
    gpu.launch(gpu.load_kernel(total), 4, 16, (source, out), shared_bytes=128)
    assert gpu.copy_to_host(out).tolist() == [sum(range(start, start + 16)) for start in range(0, 64, 16)]


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [(0, 1, 0), (1, 1025, 0), (1, (32, 32, 2), 0), ((1, 70_000), 1, 0), (1, 1, 228 << 10), ((1, 1, 1, 1), 1, 0)],
)
def test_a_launch_beyond_the_limits_is_refused(gpu, grid, block, shared):
    with pytest.raises(InvalidArgument):
        gpu.launch(gpu.load_kernel(lambda block: None), grid, block, shared_bytes=shared)


def test_cuda_source_is_not_pretended_to_run(gpu):
    assert gpu.kernel_languages == ("python",)
    with pytest.raises(Unsupported):
        gpu.load_kernel("__global__ void f() {}", "f")


def test_the_array_namespace_sees_what_streams_were_given_before(gpu):
    buffer, stream = gpu.allocate((4,), "int32"), gpu.stream()
    gpu.copy_to_device(np.full(4, 5, np.int32), buffer, stream=stream)
    assert gpu.xp.sum(buffer.array) == 20
    with stream:
        assert stream.done
