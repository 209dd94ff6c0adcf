"""The plugin in a program: a process with the fake library on its path, NVIDIA's binding, and nothing special."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from hal_mocks.faults import FaultType
from hal_mocks.machine import open_machine
from hal_mocks.nvml import stage

PROGRAM = """
import json, sys
from hal.drivers.contract import Context, HostRoot
from hal.interfaces.deadline import Deadline
from hal_nvidia import hal_drivers
(factory,) = hal_drivers()
driver = factory.create(Context(hosts=(HostRoot(node="n"),), environ={"XDG_RUNTIME_DIR": sys.argv[1]}))
assert driver.readiness().ready
found = driver.discover(Deadline.after(30)).devices
json.dump({device.id: device.presence for device in found}, sys.stdout)
driver.close()
"""
IMPORTS = """
import json, sys
import hal_nvidia
factory, = hal_nvidia.hal_drivers()
exporter, = hal_nvidia.hal_exporters()
heavy = ("pynvml", "cupy", "ctypes", "numpy", "hal_nvidia.driver")
json.dump([name for name in heavy if name in sys.modules], sys.stdout)
"""


def told(program: str, *arguments: str, **environ: str) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_sees_eight_gpus_and_then_the_lost_one(tmp_path: Path) -> None:
    machine = open_machine({"HAL_MACHINE": f"dgx-h100?state={tmp_path / 'state'}"})
    host = machine.graph.hosts[0]
    environment = stage(machine, host.name)
    uuids = [gpu.uuid for gpu in host.gpus]
    found = told(PROGRAM, str(tmp_path), **environment)
    assert found == dict.fromkeys(uuids, "present")
    machine.inject(uuids[6], FaultType.FALLEN_OFF_BUS)
    after = told(PROGRAM, str(tmp_path), **environment)
    assert isinstance(after, dict)
    present = {uuid for uuid, presence in after.items() if presence == "present"}
    assert present == set(uuids) - {uuids[6]}


def test_registering_loads_no_library() -> None:
    assert told(IMPORTS) == []
