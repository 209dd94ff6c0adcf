"""Odd buffers, sizes and places: the same answer from all kinds, and never anything done by halves."""

from __future__ import annotations

import numpy as np
import pytest

from hal.drivers.guard import OpenGuard
from hal.errors import InvalidArgument, OutOfMemory
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS
from hal.interfaces.upmem import MRAM_HEAP
from hal_mocks.buffers import as_bytes
from hal_mocks.clock import VirtualClock
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import Machine
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.profile import load_profile
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.upmem import MockUpmemDriver
from hal_mocks.upmem_programs import ADD

SOON = Deadline.after(600)
SCATTERED = np.arange(64, dtype=np.uint8)[::2]


def opened(driver, profile, folder):
    found = driver(Machine(load_profile(profile), folder, VirtualClock()))
    device = next(device.id for device in found.discover(SOON).devices if device.allocatable)
    return found.open(device, OpenGuard(), SOON)


@pytest.fixture
def mapping(tmp_path):
    with opened(MockPmemDriver, "optane-server", tmp_path) as region:
        yield region.map(region.namespaces()[0].name)


@pytest.fixture
def rank(tmp_path):
    with opened(MockUpmemDriver, "upmem-server", tmp_path) as rank:
        rank.load(ADD)
        yield rank


@pytest.fixture
def gpu(tmp_path):
    with opened(MockGpuDriver, "dgx-h100", tmp_path) as gpu:
        yield gpu


@pytest.fixture
def pair(tmp_path):
    with opened(MockRnicDriver, "dgx-h100", tmp_path) as nic:
        near, far = nic.endpoint(), nic.endpoint()
        with near.connect(far.address) as connection, far.connect(near.address):
            yield connection, nic.register(4096, ALL_ACCESS)


def name_of(value):
    """The same in every process: an id with an address in it is not."""
    return (
        f"{type(value).__name__}-{value.dtype}-{value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    )


@pytest.mark.parametrize(
    "buffer",
    [
        b"12345678",
        bytearray(8),
        memoryview(bytearray(8)),
        np.arange(2, dtype=">i4"),
        np.zeros(1, dtype="datetime64[s]"),
        np.zeros(1, dtype=[("a", "i4"), ("b", "f4")]),
        np.zeros((2, 2), dtype=np.float16),
        np.array(1.0),
    ],
    ids=name_of,
)
def test_any_contiguous_memory_is_eight_bytes(buffer):
    view = as_bytes(buffer, "device", "step")
    assert (view.format, view.ndim, view.nbytes) == ("B", 1, 8)


@pytest.mark.parametrize("empty", [b"", np.zeros(0, np.float64), np.zeros((3, 0, 2), np.int16)], ids=name_of)
def test_nothing_is_zero_bytes(empty):
    assert as_bytes(empty, "device", "step").nbytes == 0


@pytest.mark.parametrize("wrong", [None, 5, "text", [1, 2], SCATTERED, np.array([object()])], ids=name_of)
def test_what_is_no_contiguous_memory_is_refused_by_name(wrong):
    with pytest.raises(InvalidArgument) as caught:
        as_bytes(wrong, "device", "step")
    assert (caught.value.device, caught.value.during) == ("device", "step")


def test_writing_changes_the_memory_that_was_given():
    for memory in (np.zeros(2, ">i4"), np.zeros(1, "datetime64[s]"), np.zeros((2, 1), "<f4")):
        as_bytes(memory, "device", "step", writable=True)[0] = 1
        assert memory.tobytes()[0] == 1


def test_persistent_memory_takes_any_buffer_and_refuses_what_is_none(mapping):
    mapping.memcpy_persist(0, np.arange(4, dtype=">u2"))
    assert mapping.read(0, 8) == bytes((0, 0, 0, 1, 0, 2, 0, 3))
    mapping.memcpy_persist(mapping.size_bytes, np.zeros(0))
    mapping.persist(mapping.size_bytes, 0)
    for wrong in (SCATTERED, None, "text"):
        with pytest.raises(InvalidArgument):
            mapping.memcpy_persist(0, wrong)
    for offset, length in ((-1, 1), (0, -1), (1 << 70, 1), (0, 1 << 70)):
        for verb in (mapping.read, mapping.flush, mapping.persist, mapping.clear_poison):
            with pytest.raises(InvalidArgument):
                verb(offset, length)


def test_a_rank_takes_any_buffer_and_refuses_what_is_none(rank):
    rank.copy_to(0, MRAM_HEAP, 0, np.arange(4, dtype=">u2"))
    assert rank.copy_from(0, MRAM_HEAP, 0, 8) == bytes((0, 0, 0, 1, 0, 2, 0, 3))
    rank.copy_to(0, MRAM_HEAP, 0, np.zeros(0))
    rank.broadcast(MRAM_HEAP, 0, b"")
    assert rank.copy_from(0, MRAM_HEAP, 0, 0) == b""
    for wrong in (SCATTERED, None, "text"):
        with pytest.raises(InvalidArgument):
            rank.copy_to(0, MRAM_HEAP, 0, wrong)
        with pytest.raises(InvalidArgument):
            rank.broadcast(MRAM_HEAP, 0, wrong)
    for offset, length in ((-8, 8), (0, -8), (1 << 70, 8), (0, 1 << 70)):
        with pytest.raises(InvalidArgument):
            rank.copy_from(0, MRAM_HEAP, offset, length)


def test_a_nic_moves_nothing_and_anything(pair):
    connection, region = pair
    for _ in range(300):  # early and late ones
        connection.put(np.zeros(0), region.address, region.rkey).wait()
        connection.get(np.zeros((2, 0)), region.address + 4096, region.rkey).wait()
    connection.put(np.arange(4, dtype=">u2"), region.address, bytearray(region.rkey)).wait()
    connection.flush().wait()
    assert bytes(region.view[:8]) == bytes((0, 0, 0, 1, 0, 2, 0, 3))
    into = np.zeros(4, ">u2")
    connection.get(into, region.address, region.rkey).wait()
    assert into.tolist() == [0, 1, 2, 3]
    for wrong in (SCATTERED, None):
        with pytest.raises(InvalidArgument):
            connection.put(wrong, region.address, region.rkey)
    assert connection.error is None


def test_a_gpu_copies_nothing_and_refuses_targets_that_cannot_be_written(gpu):
    empty = gpu.copy_to_device(np.zeros((0, 3), np.float32))
    assert empty.nbytes == 0
    assert gpu.copy_to_host(empty).shape == (0, 3)
    buffer = gpu.copy_to_device(np.arange(4, dtype=np.int32))
    locked = np.zeros(4, np.int32)
    locked.flags.writeable = False
    for wrong in ([0, 0, 0, 0], bytearray(16), locked):
        with pytest.raises(InvalidArgument):
            gpu.copy_to_host(buffer, wrong)
        with pytest.raises(InvalidArgument):
            gpu.copy_to_host(buffer, wrong, stream=gpu.stream())
    assert gpu.copy_to_host(gpu.copy_to_device(np.arange(8, dtype=np.int32)[::2])).tolist() == [0, 2, 4, 6]
    for wrong in (np.arange(4, dtype=">i4"), np.array([object()])):
        with pytest.raises(InvalidArgument):
            gpu.copy_to_device(wrong)


def test_sizes_that_make_no_sense_allocate_nothing(gpu):
    used = gpu.memory_info().used_bytes
    for shape in (-1, (4, -1), 1.5, "4", (1, 2.5), None):
        with pytest.raises(InvalidArgument):
            gpu.allocate(shape)
    for shape in (1 << 62, (1 << 40, 1 << 40), 1 << 100):
        with pytest.raises(OutOfMemory):
            gpu.allocate(shape)
    assert gpu.memory_info().used_bytes == used
