"""The kit on a real GPU, where there is one with NVML and CuPy; elsewhere skipped with what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.drivers.contract import Context, Driver, HostRoot
from hal.interfaces.gpu import Gpu
from hal.testing.kinds.gpu import GpuConformance
from hal_mocks.nvml import STATE
from hal_nvidia.describe import Places
from hal_nvidia.driver import make_driver
from hal_nvidia.library import LIBRARY


def what_is_missing() -> str:
    """Return why the kit cannot run here, or nothing."""
    if STATE in os.environ:
        return "NVML is the fake library here"
    if not Places(HostRoot(node="here")).nvidia:
        return "no GPU with NVIDIA's kernel driver is in this machine"
    readiness = LIBRARY.readiness()
    if not readiness.ready:
        return f"NVML: {readiness.detail}"
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]

        cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        return f"CuPy: {error}"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA: {error}"
    return ""


if _missing := what_is_missing():
    pytest.skip(_missing, allow_module_level=True)


class TestRealNvidia(GpuConformance):
    """Reset and modes are the operator's: the driver is made without the tool that resets, so it has no such facet."""

    lacks = frozenset({"scrub", "reset", "power-limit", "mig"})

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Iterator[Driver]:
        environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "PATH": ""}
        driver = make_driver(Context(hosts=(HostRoot(node=os.uname().nodename),), environ=environ))
        yield driver
        driver.close()

    def test_a_declared_lack_of_a_verb_is_true(self, gpu: Gpu) -> None:
        """Power limits and MIG are there and left alone, so nothing is claimed to be lacking."""
        assert gpu.power_limit().watts > 0

    def test_bytes_go_from_device_to_device(self, driver: Driver, gpu: Gpu, open_gpu: Callable[[str], Gpu]) -> None:
        if not [peer for peer in gpu.peers() if peer.access == "ok"]:
            pytest.skip("one GPU only, or none that another may reach")
        super().test_bytes_go_from_device_to_device(driver, gpu, open_gpu)

    def test_a_copy_by_the_handle_is_cupys_own(self, gpu: Any) -> None:
        import numpy as np

        buffer = gpu.copy_to_device(np.arange(1 << 20, dtype=np.float32))
        assert float(gpu.xp.sum(buffer.array)) == pytest.approx(
            float(np.arange(1 << 20, dtype=np.float64).sum()), rel=1e-3
        )
