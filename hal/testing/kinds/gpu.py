"""What every GPU driver must do. Needs nothing of a device's arrays but DLPack and copies to the host.

Abilities that a driver may declare to lack: ``reset``, ``scrub``, ``kernel``, ``ecc``, ``row-remapping``, ``peer`` (two
GPUs), ``power-limit`` (to be examined, the driver must be allowed to set it), ``mig`` (the same for mode and reset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hal.drivers.contract import Driver, Grant, Resets, Scrubs
from hal.drivers.guard import GuardPages
from hal.errors import DeviceError, InvalidArgument, LeaseEnded, OutOfMemory, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Gpu, PartitionsDevices
from hal.interfaces.gpu_compute import Buffer
from hal.model.device import Device
from hal.model.health import Action
from hal.model.kind import Kind
from hal.testing.conformance import DriverConformance, assert_error_is_for_people, needs

CUDA_AXPY = r"""
extern "C" __global__ void axpy(float a, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"""
MONOTONIC = ("energy_joules", "pcie_replays", "pcie_received_bytes", "pcie_sent_bytes")
EXPECTED = ("memory_used_bytes", "memory_total_bytes", "temperature_celsius", "power_watts", "clock_event_reasons")


def python_axpy(block: Any, a: float, x: Any, y: Any, n: int) -> None:
    """``y = a x + y`` for the threads of one block."""
    i = block.global_index()
    i = i[i < n]
    y[i] = a * x[i] + y[i]


class GpuConformance(DriverConformance):
    """The checks for GPUs. The ``device`` fixture must give a whole GPU."""

    interface = Gpu

    @pytest.fixture
    def open_gpu(self, driver: Driver, pages: GuardPages) -> Iterator[Callable[[str], Gpu]]:
        """Open any device of the driver under a grant of its own; all are closed and taken back at the end."""
        with ExitStack() as stack:

            def open_(device_id: str) -> Gpu:
                grant = Grant(lease="conformance", fence=5_000)
                driver.prepare(device_id, grant, Deadline.after(10))
                pages.grant(device_id, grant.fence)
                opened = driver.open(device_id, pages.guard(device_id, grant.lease, grant.fence), Deadline.after(10))
                assert isinstance(opened, Gpu), f"{type(opened).__name__} does not have all verbs of a Gpu"
                stack.callback(opened.close)
                return opened

            yield open_

    @pytest.fixture
    def gpu(self, open_gpu: Callable[[str], Gpu], device: Device) -> Gpu:
        """The examined GPU, opened."""
        return open_gpu(device.id)

    def test_discovered_gpus_say_what_a_claim_asks_for(self, driver: Driver) -> None:
        devices = [d for d in driver.discover(Deadline.after(10)).devices if d.allocatable]
        for device in devices:
            assert device.kind is Kind.GPU
            assert device.capacity["memory_bytes"] > 0
            for name in ("model", "memory_bytes", "uuid", "compute_capability", "numa_node"):
                assert name in device.attributes, f"{device.id} has no attribute {name}, not even an absent one"
            assert f"uuid:{device.id}" in device.aliases

    def test_links_lead_to_devices_that_exist(self, driver: Driver) -> None:
        devices = {d.id: d for d in driver.discover(Deadline.after(10)).devices}
        for device in devices.values():
            for link in device.links:
                if link.type == "nvlink" and link.peer is not None:
                    back = devices[link.peer].links
                    assert any(other.peer == device.id for other in back), f"{device.id} and {link.peer} disagree"

    def test_telemetry_names_what_is_expected(self, gpu: Gpu) -> None:
        told = gpu.telemetry(deadline=Deadline.after(10))
        assert not [name for name in EXPECTED if name not in told]
        assert told["recovery_action"].value in (None, *Action)

    def test_what_is_counted_never_falls(self, gpu: Gpu) -> None:
        before = gpu.telemetry()
        gpu.copy_to_host(gpu.copy_to_device(np.ones(1 << 16, np.float32)))
        after = gpu.telemetry()
        for name in MONOTONIC:
            one, other = before[name].value, after[name].value
            assert one is None or (isinstance(other, (int, float)) and other >= one), f"{name} fell"  # type: ignore[operator]

    def test_what_is_copied_comes_back(self, gpu: Gpu) -> None:
        for dtype in ("uint8", "int32", "float32", "float64"):
            data = np.arange(1000).astype(dtype).reshape(10, 100)
            buffer = gpu.copy_to_device(data)
            assert isinstance(buffer, Buffer)
            assert (buffer.shape, buffer.dtype, buffer.nbytes) == ((10, 100), dtype, data.nbytes)
            assert np.array_equal(gpu.copy_to_host(buffer), data)

    def test_copies_go_into_what_is_given(self, gpu: Gpu) -> None:
        buffer, host = gpu.allocate((8, 4), "float32"), np.zeros((8, 4), np.float32)
        data = np.random.default_rng(1).random((8, 4), np.float32)
        assert gpu.copy_to_device(data, buffer) is buffer
        assert gpu.copy_to_host(buffer, host) is host
        assert np.array_equal(host, data)

    def test_a_copy_of_another_shape_is_refused(self, gpu: Gpu) -> None:
        buffer = gpu.allocate((4,), "float32")
        for wrong in (np.zeros(5, np.float32), np.zeros(4, np.float64)):
            with pytest.raises(InvalidArgument):
                gpu.copy_to_device(wrong, buffer)

    def test_arrays_are_really_computed(self, gpu: Gpu) -> None:
        rng = np.random.default_rng(2)
        a, b = rng.random((33, 17)), rng.random((17, 9))
        xp = gpu.xp
        on_device = gpu.copy_to_device(a).array, gpu.copy_to_device(b).array
        product = xp.matmul(*on_device)
        result = xp.sum(xp.exp(product) + 1.0, axis=0)
        expected = np.array(
            [sum(np.exp(sum(a[i, k] * b[k, j] for k in range(17))) + 1 for i in range(33)) for j in range(9)]
        )
        np.testing.assert_allclose(gpu.copy_to_host(result), expected, rtol=1e-10)

    def test_a_buffer_is_shared_by_dlpack_not_copied(self, gpu: Gpu) -> None:
        data = np.arange(64, dtype=np.float32)
        buffer = gpu.copy_to_device(data)
        view = gpu.xp.from_dlpack(buffer)
        assert tuple(buffer.__dlpack_device__()) == tuple(view.__dlpack_device__())
        gpu.copy_to_device(data * 2, buffer)
        assert np.array_equal(gpu.copy_to_host(view), data * 2)

    def test_memory_is_counted_and_given_back(self, gpu: Gpu) -> None:
        before = gpu.memory_info()
        assert 0 < before.free_bytes <= before.total_bytes
        buffer = gpu.allocate(64 << 20)
        assert gpu.memory_info().used_bytes >= before.used_bytes + (64 << 20)
        buffer.free()
        buffer.free()
        assert gpu.memory_info().used_bytes <= before.used_bytes + (32 << 20)

    def test_memory_that_nobody_refers_to_is_given_back(self, gpu: Gpu) -> None:
        before = gpu.memory_info().used_bytes
        for _ in range(8):
            gpu.allocate(64 << 20)
        assert gpu.memory_info().used_bytes <= before + (128 << 20)

    def test_a_freed_buffer_is_refused(self, gpu: Gpu, device: Device) -> None:
        buffer = gpu.allocate(16)
        buffer.free()
        with pytest.raises(InvalidArgument) as caught:
            gpu.copy_to_host(buffer)
        assert_error_is_for_people(caught.value, device.id)

    def test_too_much_memory_is_refused_and_less_is_not(self, gpu: Gpu, device: Device) -> None:
        info = gpu.memory_info()
        with pytest.raises(OutOfMemory) as caught:
            gpu.allocate(info.total_bytes + 1)
        assert_error_is_for_people(caught.value, device.id)
        assert gpu.memory_info().used_bytes <= info.used_bytes + (32 << 20), "a refusal takes nothing"
        most = gpu.allocate(info.free_bytes // 2)
        with pytest.raises(OutOfMemory):
            gpu.allocate(info.free_bytes * 3 // 4)
        most.free()
        gpu.allocate(info.free_bytes * 3 // 4).free()

    def test_a_stream_runs_in_order(self, gpu: Gpu) -> None:
        stream = gpu.stream()
        buffer, host = gpu.allocate((256,), "int32"), np.zeros(256, np.int32)
        sources = [np.full(256, step, np.int32) for step in range(20)]
        for source in sources:
            gpu.copy_to_device(source, buffer, stream=stream)
        gpu.copy_to_host(buffer, host, stream=stream)
        stream.synchronize(deadline=Deadline.after(30))
        assert stream.done
        assert (host == 19).all()

    def test_a_stream_waits_for_the_event_of_another(self, gpu: Gpu) -> None:
        first, second = gpu.stream(), gpu.stream()
        buffer, host = gpu.allocate((1 << 16,), "int32"), np.zeros(1 << 16, np.int32)
        sources = [np.full(1 << 16, step, np.int32) for step in range(8)]
        for source in sources:
            gpu.copy_to_device(source, buffer, stream=first)
        second.wait(first.record())
        gpu.copy_to_host(buffer, host, stream=second)
        second.synchronize(deadline=Deadline.after(30))
        assert (host == 7).all()
        gpu.synchronize(deadline=Deadline.after(30))

    def test_the_default_stream_waits_for_the_others(self, gpu: Gpu) -> None:
        stream = gpu.stream()
        buffer = gpu.allocate((1 << 16,), "int32")
        source = np.full(1 << 16, 3, np.int32)
        gpu.copy_to_device(source, buffer, stream=stream)
        assert (gpu.copy_to_host(buffer) == 3).all()

    def test_time_between_events_is_never_negative(self, gpu: Gpu) -> None:
        stream = gpu.stream()
        buffer, source = gpu.allocate((1 << 16,), "int32"), np.zeros(1 << 16, np.int32)
        events = [stream.record()]
        for _ in range(3):
            gpu.copy_to_device(source, buffer, stream=stream)
            events.append(stream.record())
        events[-1].synchronize(deadline=Deadline.after(30))
        assert all(event.done for event in events)
        spans = [later.elapsed_seconds(earlier) for earlier, later in pairwise(events)]
        assert all(span >= 0 for span in spans)
        assert events[-1].elapsed_seconds(events[0]) == pytest.approx(sum(spans), abs=1e-4)

    def test_an_event_answers_when_asked_long_enough(self, gpu: Gpu) -> None:
        stream = gpu.stream()
        buffer, source = gpu.allocate((1 << 16,), "int32"), np.zeros(1 << 16, np.int32)
        for _ in range(4):
            gpu.copy_to_device(source, buffer, stream=stream)
        event = stream.record()
        deadline = Deadline.after(30)
        while not event.done:
            deadline.check(during="polling an event")

    @needs("kernel")
    def test_a_kernel_computes_for_every_thread(self, gpu: Gpu) -> None:
        rng = np.random.default_rng(3)
        x, y = rng.random(1000, np.float32), rng.random(1000, np.float32)
        kernel = gpu.load_kernel(CUDA_AXPY if "cuda-c" in gpu.kernel_languages else python_axpy, "axpy")
        assert kernel.name == "axpy"
        on_x, on_y = gpu.copy_to_device(x), gpu.copy_to_device(y)
        gpu.launch(kernel, 8, 128, (np.float32(2.5), on_x, on_y, np.int32(1000)))
        np.testing.assert_allclose(gpu.copy_to_host(on_y), np.float32(2.5) * x + y, rtol=1e-6)

    @needs("kernel")
    def test_kernels_and_copies_of_a_stream_keep_their_order(self, gpu: Gpu) -> None:
        kernel = gpu.load_kernel(CUDA_AXPY if "cuda-c" in gpu.kernel_languages else python_axpy, "axpy")
        stream, host = gpu.stream(), np.zeros(512, np.float32)
        x, y = gpu.copy_to_device(np.ones(512, np.float32)), gpu.copy_to_device(np.zeros(512, np.float32))
        for _ in range(5):
            gpu.launch(kernel, 4, 128, (np.float32(1), x, y, np.int32(512)), stream=stream)
        gpu.copy_to_host(y, host, stream=stream)
        stream.synchronize(deadline=Deadline.after(30))
        assert (host == 5).all()

    @needs("kernel")
    def test_a_block_beyond_the_limits_is_refused(self, gpu: Gpu) -> None:
        kernel = gpu.load_kernel(CUDA_AXPY if "cuda-c" in gpu.kernel_languages else python_axpy, "axpy")
        x = gpu.allocate((1,), "float32")
        with pytest.raises(InvalidArgument):
            gpu.launch(kernel, 1, 4096, (np.float32(1), x, x, np.int32(1)))

    @needs("peer")
    def test_bytes_go_from_device_to_device(self, driver: Driver, gpu: Gpu, open_gpu: Callable[[str], Gpu]) -> None:
        peers = [peer for peer in gpu.peers() if peer.access == "ok"]
        assert peers, "no peer to copy to; declare lacks = {'peer'}"
        assert all(peer.device != gpu.device.id for peer in peers)
        other = open_gpu(peers[0].device)
        data = np.random.default_rng(4).integers(0, 255, 4096, dtype=np.uint8)
        target = other.allocate(4096)
        gpu.copy_peer(gpu.copy_to_device(data), target)
        assert np.array_equal(other.copy_to_host(target), data)

    def test_work_ends_with_the_lease(self, gpu: Gpu, device: Device, pages: GuardPages) -> None:
        buffer, stream = gpu.allocate(16), gpu.stream()
        event = stream.record()
        pages.revoke(device.id, 5_000)
        for verb in (
            lambda: gpu.allocate(16),
            lambda: gpu.copy_to_device(np.zeros(16, np.uint8), buffer),
            lambda: gpu.copy_to_host(buffer),
            lambda: gpu.xp,
            lambda: gpu.memory_info(),
            lambda: gpu.processes(),
            lambda: buffer.array,
            lambda: event.done,
            stream.record,
            stream.synchronize,
        ):
            with pytest.raises(LeaseEnded):
                verb()

    def test_a_closed_handle_says_so(self, gpu: Gpu, device: Device) -> None:
        gpu.close()
        with pytest.raises(DeviceError) as caught:
            gpu.allocate(16)
        assert_error_is_for_people(caught.value, device.id)

    def test_this_process_is_seen(self, gpu: Gpu) -> None:
        import os

        kept = gpu.allocate(1 << 20)
        mine = [process for process in gpu.processes() if process.pid == os.getpid()]
        assert mine
        assert all(process.memory_bytes is None or process.memory_bytes >= 0 for process in mine)
        assert kept.nbytes == 1 << 20

    @needs("ecc")
    def test_error_counts_agree_with_each_other(self, gpu: Gpu) -> None:
        ecc = gpu.ecc()
        for location, counts in ecc.volatile.items():
            assert counts.corrected >= 0
            assert ecc.aggregate[location].uncorrected >= counts.uncorrected

    @needs("row-remapping")
    def test_row_remapping_is_told(self, gpu: Gpu) -> None:
        rows = gpu.row_remapping()
        assert min(rows.correctable, rows.uncorrectable) >= 0

    @needs("power-limit")
    def test_a_power_limit_stays_within_its_bounds(self, gpu: Gpu, device: Device) -> None:
        limit = gpu.power_limit()
        assert 0 < limit.min_watts <= limit.watts <= limit.max_watts
        assert gpu.set_power_limit(limit.min_watts).watts == limit.min_watts
        assert gpu.telemetry()["power_limit_watts"].value == limit.min_watts
        for wrong in (0.0, limit.max_watts * 10):
            with pytest.raises(InvalidArgument) as caught:
                gpu.set_power_limit(wrong)
            assert_error_is_for_people(caught.value, device.id)
        assert gpu.set_power_limit(None).watts == limit.default_watts

    @needs("scrub")
    def test_a_scrub_ends_what_the_last_holder_left(
        self, driver: Driver, gpu: Gpu, device: Device, open_gpu: Callable[[str], Gpu]
    ) -> None:
        assert isinstance(driver, Scrubs)
        buffer = gpu.copy_to_device(np.full(1 << 20, 7, np.uint8))
        driver.scrub(device.id).wait(Deadline.after(60))
        with pytest.raises(DeviceError):
            gpu.copy_to_host(buffer)
        gpu.close()
        again = open_gpu(device.id)
        assert np.array_equal(again.copy_to_host(again.copy_to_device(np.arange(9))), np.arange(9))

    def test_a_declared_lack_of_a_verb_is_true(self, gpu: Gpu) -> None:
        verbs: dict[str, Callable[[], object]] = {
            "ecc": gpu.ecc,
            "row-remapping": gpu.row_remapping,
            "mig": gpu.partitioning,
            "power-limit": gpu.power_limit,
        }
        for ability in self.lacks & set(verbs):
            with pytest.raises(Unsupported):
                verbs[ability]()

    @needs("mig")
    @needs("reset")
    def test_a_gpu_is_divided_and_made_whole(
        self, driver: Driver, device: Device, open_gpu: Callable[[str], Gpu]
    ) -> None:
        assert isinstance(driver, PartitionsDevices)
        assert isinstance(driver, Resets)
        profile = min(driver.partition_profiles(device.id), key=lambda p: (p.memory_slices, p.compute_slices, p.name))
        mode = driver.set_partitioning(device.id, True)
        assert mode.pending
        if not mode.current:
            with pytest.raises(Unsupported):
                driver.create_partition(device.id, profile.name).wait(Deadline.after(30))
            driver.reset(device.id).wait(Deadline.after(60))
        assert not driver.partitioning(device.id).needs_reset
        made = [driver.create_partition(device.id, profile.name).wait(Deadline.after(30)) for _ in range(2)]
        children = {d.id: d for d in driver.discover(Deadline.after(10)).devices if d.parent == device.id}
        assert set(children) == {partition.id for partition in made}
        for child in children.values():
            assert child.capacity["memory_bytes"] == profile.memory_bytes
        one, other = made
        assert one.start + one.memory_slices <= other.start or other.start + other.memory_slices <= one.start
        part = open_gpu(one.id)
        data = np.arange(100, dtype=np.int32)
        assert np.array_equal(part.copy_to_host(part.copy_to_device(data)), data)
        with pytest.raises(OutOfMemory):
            part.allocate(profile.memory_bytes + 1)
        part.close()
        for partition in made:
            driver.destroy_partition(device.id, partition.id).wait(Deadline.after(30))
        driver.set_partitioning(device.id, False)
        driver.reset(device.id).wait(Deadline.after(60))
        whole = open_gpu(device.id)
        assert np.array_equal(whole.copy_to_host(whole.copy_to_device(data)), data)

    @needs("reset")
    def test_a_reset_ends_what_ran(
        self, driver: Driver, gpu: Gpu, device: Device, open_gpu: Callable[[str], Gpu]
    ) -> None:
        assert isinstance(driver, Resets)
        gpu.close()
        driver.reset(device.id).wait(Deadline.after(60))
        again = open_gpu(device.id)
        assert np.array_equal(again.copy_to_host(again.copy_to_device(np.arange(9))), np.arange(9))
