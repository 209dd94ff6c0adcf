"""The plugin passes the kit: NVML is the fake library over a mock machine, CuPy a double over NumPy.

What that shows and what not is said in the README: NVML's calls are NVIDIA's own through their C interface; CuPy's are
checked by name and order only.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hal.drivers.contract import Driver
from hal.errors import Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Gpu, PartitionsDevices
from hal.testing.kinds.gpu import GpuConformance
from hal_mocks.gpu_boards import GpuBoards
from hal_nvidia.handle import NvidiaGpu
from hal_nvidia.resetting import ResettingNvidiaDriver
from plugins.nvidia.tests.fake_cupy import Card, make_cupy
from plugins.nvidia.tests.nvidia_machines import NvidiaMachine


def double_of_cupy(machine: NvidiaMachine) -> Any:
    """Return a double of CuPy that sees a machine's GPUs, whose contexts NVML's processes tell of."""
    boards = GpuBoards(machine.machine)
    return make_cupy(
        [
            Card(
                address=gpu.pci.upper(),
                total_bytes=gpu.memory_bytes,
                names=(gpu.uuid, str(number)),
                on_context=boards.contexts(gpu.uuid).attach,
            )
            for number, gpu in enumerate(machine.host.gpus)
        ]
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvidiaMachine]:
    """One for all checks, which leave it as they found it; every check has a driver and fences of its own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = NvidiaMachine("dgx-h100", tmp_path_factory.mktemp("nvidia"), monkeypatch)
        machine.add_reset_tool()
        yield machine


class TestNvidia(GpuConformance):
    lacks = frozenset({"scrub"})

    @pytest.fixture
    def driver(self, machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
        double = double_of_cupy(machine)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(NvidiaGpu, "load_cupy", staticmethod(lambda: double))
        driver = machine.driver(XDG_RUNTIME_DIR=str(tmp_path))
        assert isinstance(driver, ResettingNvidiaDriver)
        yield driver
        driver.close()
        gc.collect()

    def test_a_gpu_is_divided_and_made_whole(self, driver: Driver, device: Any, open_gpu: Callable[[str], Gpu]) -> None:
        """As the kit has it, but computing in a partition is another process's: CUDA chooses its device once."""
        assert isinstance(driver, ResettingNvidiaDriver)
        assert isinstance(driver, PartitionsDevices)
        profile = min(driver.partition_profiles(device.id), key=lambda p: (p.memory_slices, p.compute_slices, p.name))
        mode = driver.set_partitioning(device.id, True)
        assert mode.pending
        if not mode.current:
            with pytest.raises(Unsupported):
                driver.create_partition(device.id, profile.name).wait(Deadline.after(30))
            driver.reset(device.id).wait(Deadline.after(60))
        made = [driver.create_partition(device.id, profile.name).wait(Deadline.after(30)) for _ in range(2)]
        children = {d.id: d for d in driver.discover(Deadline.after(10)).devices if d.parent == device.id}
        assert set(children) == {partition.id for partition in made}
        for child in children.values():
            assert child.capacity["memory_bytes"] == profile.memory_bytes
        one, other = made
        assert one.start + one.memory_slices <= other.start or other.start + other.memory_slices <= one.start
        part = open_gpu(one.id)
        assert part.telemetry()["memory_total_bytes"].value == profile.memory_bytes
        with pytest.raises(Unsupported, match="CUDA_VISIBLE_DEVICES"):
            part.allocate(16)
        part.close()
        for partition in made:
            driver.destroy_partition(device.id, partition.id).wait(Deadline.after(30))
        driver.set_partitioning(device.id, False)
        driver.reset(device.id).wait(Deadline.after(60))
        whole = open_gpu(device.id)
        data = np.arange(100, dtype=np.int32)
        assert np.array_equal(whole.copy_to_host(whole.copy_to_device(data)), data)
