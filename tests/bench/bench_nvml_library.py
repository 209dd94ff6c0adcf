"""What the fake NVML library costs: to begin, and a call beyond an empty call through ctypes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.rows import Row

INIT_SECONDS = 1e-3
CALL_SECONDS = 2e-6
_PROFILE = "dgx-h100"

# In a process of its own, as the library reads where its state is when it begins.
_PROGRAM = """
import ctypes, json, time, timeit
library = ctypes.CDLL("libnvidia-ml.so.1")
start = time.perf_counter()
assert library.nvmlInitWithFlags(0) == 0
took = {"init": time.perf_counter() - start}
gpu, number, wide = ctypes.c_void_p(), ctypes.c_uint(), (ctypes.c_ulonglong * 3)()
assert library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(gpu)) == 0
numbers, memory = ctypes.byref(number), ctypes.byref(wide)
calls = {
    "empty": lambda: library.hal_mock_gpu_bytes(gpu, numbers),
    "GetTemperature": lambda: library.nvmlDeviceGetTemperature(gpu, 0, numbers),
    "GetPowerUsage": lambda: library.nvmlDeviceGetPowerUsage(gpu, numbers),
    "GetMemoryInfo": lambda: library.nvmlDeviceGetMemoryInfo(gpu, memory),
}
assert all(call() == 0 for name, call in calls.items() if name != "empty")
best = dict.fromkeys(calls, 1.0)
for _ in range(60):
    for name, call in calls.items():
        best[name] = min(best[name], timeit.timeit(call, number=400) / 400)
print(json.dumps(took | best))
"""


def run() -> Iterator[Row]:
    from hal_mocks import nvml
    from hal_mocks.machine import open_machine

    with tempfile.TemporaryDirectory() as scratch:
        machine = open_machine({"HAL_MACHINE": f"{_PROFILE}?state={Path(scratch, 'state')}"})
        assert machine is not None
        environ = {**os.environ, **nvml.stage(machine, machine.graph.hosts[0].name)}
        command = (sys.executable, "-c", _PROGRAM)
        answers = [subprocess.run(command, env=environ, capture_output=True, check=True).stdout for _ in range(5)]
    rounds = [json.loads(answer) for answer in answers]
    took = {name: min(each[name] for each in rounds) for name in rounds[0]}
    yield Row(
        name="fake NVML: initialise",
        measured=f"{took['init'] * 1e6:.0f} us",
        peer="-",
        ratio=None,
        goal=f"at most {INIT_SECONDS * 1e3:.0f} ms",
        met=took["init"] <= INIT_SECONDS,
        includes="nvmlInitWithFlags on 8 GPUs, the library being loaded; best of 5 processes",
    )
    for name in ("GetTemperature", "GetPowerUsage", "GetMemoryInfo"):
        added = took[name] - took["empty"]
        yield Row(
            name=f"fake NVML: {name}",
            measured=f"{took[name] * 1e6:.2f} us",
            peer=f"{took['empty'] * 1e6:.2f} us (an empty call)",
            ratio=took[name] / took["empty"],
            goal=f"at most {CALL_SECONDS * 1e6:.0f} us more",
            met=added <= CALL_SECONDS,
            includes="one call through ctypes, faults and time looked at in every call; best of many rounds",
        )
