"""Between two holders: a GPU is not taken back while somebody computes on it, and a reset tells why it was refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.drivers.contract import Grant, Resets
from hal.errors import AccessDenied, DeviceBusy, HardwareFault, StaleFence, Unsupported
from hal.interfaces.deadline import Deadline
from hal_nvidia import tenancy
from plugins.nvidia.tests.nvidia_machines import SOON, NvidiaMachine

HOLDER = """
import sys
from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import open_machine
driver = MockGpuDriver(open_machine({"HAL_MACHINE": sys.argv[1]}))
gpu = driver.open(sys.argv[2], OpenGuard(), Deadline.after(30))
kept = gpu.allocate(1 << 20)
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaMachine:
    return NvidiaMachine("dgx-h100", tmp_path, monkeypatch)


def test_a_gpu_on_which_a_process_still_computes_is_not_taken_back(
    machine: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenancy, "LEAVE_SECONDS", 0.2)
    driver, gpu = machine.driver(), machine.uuids[0]
    grant = Grant(lease="a", fence=5)
    driver.prepare(gpu, grant, Deadline.after(SOON))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, machine.description, gpu],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(DeviceBusy) as caught:
            driver.unprepare(gpu, grant, Deadline.after(SOON))
        assert f"process {holder.pid}" in caught.value.message
        assert str(holder.pid) in str(caught.value.hint)
        with pytest.raises(StaleFence):
            driver.prepare(gpu, Grant(lease="old", fence=4), Deadline.after(SOON))
        holder.communicate()
    driver.unprepare(gpu, grant, Deadline.after(SOON))


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("GPU is currently in use by another process", DeviceBusy),
        ("Insufficient Permissions", AccessDenied),
        ("Resetting is not supported on this board", Unsupported),
        ("something else", HardwareFault),
    ],
)
def test_a_refused_reset_says_why(machine: NvidiaMachine, words: str, kind: type[Exception]) -> None:
    tool = machine.folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{words}'\nexit 3\n")
    tool.chmod(0o755)
    driver = machine.driver()
    assert isinstance(driver, Resets)
    with pytest.raises(kind, match=words) as caught:
        driver.reset(machine.uuids[0]).wait(Deadline.after(SOON))
    assert caught.value.device == machine.uuids[0]


def test_without_the_tool_the_driver_claims_no_reset(machine: NvidiaMachine) -> None:
    assert not isinstance(machine.driver(), Resets)
