"""A mock machine behind the fake NVML library, with a binding of its own for every test.

A process loads one ``libnvidia-ml.so.1`` and the fake one maps one machine. So each test gets its own copy of the
library, and the tests of this plugin a module ``pynvml`` of their own: what another test did is not seen.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from hal.drivers.contract import Context, HostRoot
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal_mocks.faults import Fault, FaultType
from hal_mocks.machine import Machine, open_machine
from hal_mocks.nvml import DRIVER, STATE, stage
from hal_nvidia.driver import NvidiaDriver, make_driver
from hal_nvidia.library import Library

SOON = 20.0
_STAND_IN = """#!{python}
import sys
from functools import cache
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.faults import Fault, FaultType
from hal_mocks.machine import open_machine
machine = open_machine({{"HAL_MACHINE": {description!r}}})
address = sys.argv[sys.argv.index("-i") + 1]
driver = MockGpuDriver(machine)
gpu = next(uuid for uuid, place in driver.boards.places.items() if place.gpu.pci == address)
try:
    driver.reset(gpu).wait()
except Exception as error:
    sys.exit(str(error))
"""


@cache
def _binding() -> ModuleType:
    """Return a module ``pynvml`` that nobody else in this process has."""
    found = importlib.util.find_spec("pynvml")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = module  # it looks itself up while it is executed
    try:
        found.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before
    return module


def own_binding(library: Path, folder: Path) -> ModuleType:
    """Return the tests' binding, speaking to a copy of a library of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "libnvidia-ml.so.1"
    shutil.copyfile(library, copy)
    module = _binding()
    module.nvmlLib = ctypes.CDLL(str(copy))
    module._nvmlGetFunctionPointer_cache.clear()
    return module


class NvidiaMachine:
    """A mock machine, its NVML, and drivers for it."""

    def __init__(self, profile: str, folder: Path, monkeypatch: pytest.MonkeyPatch, driver: int | None = None) -> None:
        self.description = f"{profile}?state={folder / 'state'}"
        self.machine: Machine = open_machine({"HAL_MACHINE": self.description})
        self.host = self.machine.graph.hosts[0]
        self.environment = stage(self.machine, self.host.name, driver=driver)
        monkeypatch.setenv(STATE, self.environment[STATE])
        monkeypatch.delenv(DRIVER, raising=False)
        library = Path(self.environment["LD_LIBRARY_PATH"].split(":")[0], "libnvidia-ml.so.1")
        self.nvml = own_binding(library, folder / "library")
        self.library = Library(lambda: self.nvml)
        self.environ = {"XDG_RUNTIME_DIR": str(folder / "run"), "PATH": str(folder / "bin")}
        self.folder = folder
        self.uuids = [gpu.uuid for gpu in self.host.gpus]

    def driver(self, **environ: str) -> NvidiaDriver:
        """Return a driver for the machine; more of the environment by name."""
        hosts = (HostRoot(node=self.host.name),)
        return make_driver(Context(hosts=hosts, environ={**self.environ, **environ}), self.library)

    def add_reset_tool(self) -> None:
        """Put a stand-in for ``nvidia-smi`` into the path that resets GPUs of the mock machine."""
        tool = self.folder / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(_STAND_IN.format(python=sys.executable, description=self.description))
        tool.chmod(0o755)

    def inject(self, gpu: int, type: FaultType, **details: object) -> Fault:
        """Let a fault happen to a GPU."""
        return self.machine.inject(self.uuids[gpu], type, **details)


def devices_of(driver: NvidiaDriver) -> dict[str, Device]:
    """Return what a driver discovers, by id."""
    return {device.id: device for device in driver.discover(Deadline.after(SOON)).devices}
