"""The side that computes, on a double of CuPy: joined with NVML by PCI address, honest where CUDA shows no device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hal.drivers.guard import OpenGuard
from hal.errors import (
    DeadlineExceeded,
    HardwareFault,
    InvalidArgument,
    OutOfMemory,
    ProgramFault,
    UncorrectableError,
    Unsupported,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Gpu
from hal_nvidia.cuda import translated
from hal_nvidia.handle import NvidiaGpu
from hal_nvidia.sharing import SHARING
from plugins.nvidia.tests.fake_cuda_kernels import CUDARuntimeError
from plugins.nvidia.tests.fake_cupy import Card, make_cupy
from plugins.nvidia.tests.nvidia_machines import SOON, NvidiaMachine

SUM = """
extern "C" __global__ void add(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += x[i];
}
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaMachine:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return NvidiaMachine("dgx-h100", tmp_path, monkeypatch)


def with_double(machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch) -> Any:
    cards = [
        Card(address=gpu.pci.upper(), total_bytes=gpu.memory_bytes, names=(gpu.uuid,)) for gpu in machine.host.gpus
    ]
    double = make_cupy(cards)
    monkeypatch.setattr(NvidiaGpu, "load_cupy", staticmethod(lambda: double))
    return double


def opened(machine: NvidiaMachine, gpu: int = 0) -> NvidiaGpu:
    return machine.driver().open(machine.uuids[gpu], OpenGuard(), Deadline.after(SOON))


def test_without_cupy_management_works_and_computing_says_what_to_install(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_cupy() -> Any:
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(NvidiaGpu, "load_cupy", staticmethod(no_cupy))
    gpu = opened(machine)
    assert isinstance(gpu, Gpu)
    assert gpu.telemetry()["power_watts"].known
    info = gpu.memory_info()
    assert info.total_bytes == machine.host.gpus[0].memory_bytes
    for verb in (
        lambda: gpu.allocate(16),
        lambda: gpu.copy_to_device(np.zeros(4)),
        lambda: gpu.xp.zeros(3),
        gpu.stream,
        gpu.synchronize,
        lambda: gpu.load_kernel(SUM),
    ):
        with pytest.raises(Unsupported) as caught:
            verb()
        assert "pip install rackhal-nvidia[cuda12]" in str(caught.value.hint)
        assert caught.value.device == machine.uuids[0]


def test_devices_are_joined_by_pci_address_not_by_number(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{machine.uuids[5]},{machine.uuids[2]}")
    double = with_double(machine, monkeypatch)
    assert opened(machine, 5).cuda.number == 0
    assert opened(machine, 2).cuda.number == 1
    with pytest.raises(Unsupported, match="CUDA_VISIBLE_DEVICES is 'GPU-") as caught:
        opened(machine, 0).allocate(16)
    assert machine.uuids[0] in str(caught.value.hint)
    assert double.cuda.runtime.deviceGetByPCIBusId(machine.host.gpus[2].pci.upper()) == 1


def test_arrays_live_on_the_device_whose_namespace_made_them(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = with_double(machine, monkeypatch)
    one, other = opened(machine, 1), opened(machine, 3)
    first, second = one.xp, other.xp
    first.zeros(4)
    assert double.device_of_last_call() == 1
    second.zeros(4)
    assert double.device_of_last_call() == 3
    first.ones(4)
    assert double.device_of_last_call() == 1
    assert first.float32 is np.float32
    assert float(first.linalg.norm(first.ones(4))) == 2.0
    assert "zeros" in dir(first)


def test_one_visible_device_has_cupy_itself_as_its_namespace(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", machine.uuids[4])
    double = with_double(machine, monkeypatch)
    assert opened(machine, 4).xp is double


def test_a_partition_computes_in_a_process_that_was_started_for_it(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add_reset_tool()
    driver, gpu = machine.driver(), machine.uuids[0]
    driver.set_partitioning(gpu, True)
    driver.reset(gpu).wait(Deadline.after(60))
    made = driver.create_partition(gpu, "1g.10gb").wait(Deadline.after(SOON))
    part = driver.open(made.id, OpenGuard(), Deadline.after(SOON))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", part.environment["CUDA_VISIBLE_DEVICES"])
    card = Card(address=machine.host.gpus[0].pci.upper(), total_bytes=made.memory_bytes, names=(made.id,))
    double = make_cupy([card])
    monkeypatch.setattr(NvidiaGpu, "load_cupy", staticmethod(lambda: double))
    data = np.arange(100)
    assert np.array_equal(part.copy_to_host(part.copy_to_device(data)), data)
    with pytest.raises(OutOfMemory):
        part.allocate(made.memory_bytes + 1)
    with pytest.raises(Unsupported, match="divided"):
        driver.open(gpu, OpenGuard(), Deadline.after(SOON)).allocate(16)


def test_a_share_of_mps_computes_only_as_a_client_of_its_daemon(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pipes").mkdir()
    pipes = str(tmp_path / "pipes")
    with_double(machine, monkeypatch)
    driver = machine.driver(**{SHARING: "mps:2", "CUDA_MPS_PIPE_DIRECTORY": pipes})
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    share = driver.open(f"{machine.uuids[0]}/share-0", OpenGuard(), Deadline.after(SOON))
    with pytest.raises(Unsupported, match="no client of the MPS daemon"):
        share.allocate(16)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", pipes)
    assert share.allocate(16).nbytes == 16


def test_kernels_are_found_by_name_and_refused_with_the_compilers_words(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_double(machine, monkeypatch)
    gpu = opened(machine)
    kernel = gpu.load_kernel(SUM)
    assert kernel.name == "add"
    x, y = gpu.copy_to_device(np.ones(70, np.float32)), gpu.copy_to_device(np.ones(70, np.float32))
    stream = gpu.stream()
    gpu.launch(kernel, 3, 32, (x, y, np.int32(70)), stream=stream)
    stream.synchronize(deadline=Deadline.after(SOON))
    assert (gpu.copy_to_host(y) == 2).all()
    with pytest.raises(InvalidArgument, match="does not compile"):
        gpu.load_kernel("__global__ void broken( {", "broken")
    with pytest.raises(InvalidArgument, match="no kernel 'other'"):
        gpu.load_kernel(SUM, "other")
    with pytest.raises(InvalidArgument, match="2 kernels"):
        gpu.load_kernel(SUM + SUM.replace("add", "more"))
    with pytest.raises(Unsupported):
        gpu.load_kernel(lambda block: None)
    for grid, block in ((0, 1), (1, (1, 1, 65)), ((1, 70000), 1), ((1, 1, 1, 1), 1)):
        with pytest.raises(InvalidArgument):
            gpu.launch(kernel, grid, block, (x, y, np.int32(70)))


def test_buffers_of_other_handles_and_streams_are_refused(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_double(machine, monkeypatch)
    one, other = opened(machine, 0), opened(machine, 1)
    buffer = one.allocate(16)
    for verb in (
        lambda: other.copy_to_host(buffer),
        lambda: one.copy_to_host(buffer, stream=other.stream()),
        lambda: one.allocate((-1,)),
        lambda: one.allocate(4, "object"),
        lambda: one.allocate(4, "no such type"),
        lambda: one.copy_to_host(buffer, np.zeros((4, 8), np.uint8)[:, ::2]),
    ):
        with pytest.raises(InvalidArgument) as caught:
            verb()
        assert caught.value.hint
    with pytest.raises(Unsupported):
        one.copy_peer(buffer, object())


def test_no_element_and_strided_arrays_are_copied_as_well(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_double(machine, monkeypatch)
    gpu = opened(machine)
    assert gpu.copy_to_host(gpu.copy_to_device(np.zeros((0, 3)))).shape == (0, 3)
    data = np.arange(64).reshape(8, 8)
    assert np.array_equal(gpu.copy_to_host(gpu.copy_to_device(data[:, ::2])), data[:, ::2])
    assert np.array_equal(gpu.copy_to_host(gpu.copy_to_device(data).array[::2].T), data[::2].T)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (2, OutOfMemory),
        (1, InvalidArgument),
        (700, ProgramFault),
        (719, ProgramFault),
        (214, UncorrectableError),
        (217, Unsupported),
        (999, HardwareFault),
    ],
)
def test_cudas_errors_come_out_as_hals(status: int, kind: type[Exception]) -> None:
    error = translated(CUDARuntimeError(status), "GPU-x", "launch")
    assert type(error) is kind
    assert "GPU-x during launch" in str(error)
    assert "try: " in str(error)


def test_an_error_that_is_not_cudas_is_left_as_it_is() -> None:
    error = ValueError("mine")
    assert translated(error, "GPU-x", "launch") is error


def test_a_program_that_faults_takes_its_context_with_it(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = with_double(machine, monkeypatch)
    gpu = opened(machine)
    buffer = gpu.allocate(16)

    def fail(*_: object) -> None:
        raise CUDARuntimeError(700, "an illegal memory access was encountered")

    monkeypatch.setattr(double.cuda.runtime, "memcpy", fail)
    with pytest.raises(ProgramFault) as first:
        gpu.copy_to_host(buffer)
    assert first.value.code == 700
    monkeypatch.undo()
    with pytest.raises(ProgramFault) as later:
        gpu.stream()
    assert later.value.during == "stream"


def test_waiting_for_a_program_that_does_not_end_keeps_its_deadline(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    double = with_double(machine, monkeypatch)
    gpu = opened(machine)
    stream, go_on = gpu.stream(), threading.Event()
    stream.stream.give(lambda: go_on.wait(60))
    with pytest.raises(DeadlineExceeded) as caught:
        stream.synchronize(deadline=Deadline.after(0.05))
    assert "goes on" in caught.value.message
    go_on.set()
    stream.synchronize(deadline=Deadline.after(SOON))
    assert double is not None


def test_a_handle_of_the_parent_is_refused_in_a_forked_child(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_double(machine, monkeypatch)
    gpu = opened(machine)
    child = os.fork()
    if child == 0:
        try:
            gpu.telemetry()
        except InvalidArgument:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
