"""The fake NVML library towards programs: lost GPUs, faults while they run, events, older drivers, tools of others."""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest

from hal.errors import DeviceNotFound, NotReady, UsageError
from hal_mocks import nvml
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import Machine, open_machine
from hal_mocks.native import FLAGS
from hal_mocks.nvml.layout import LIBRARY, struct
from mocks.tests.nvml_programs import Program

HOST = "dgx-h100"
LOST, NOT_FOUND_FUNCTION = pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def program(hal_machine: Machine) -> Iterator[Program]:
    """A program on the test's machine."""
    with Program(nvml.stage(hal_machine, HOST)) as program:
        yield program


def _run(environ: dict[str, str], *command: str) -> str:
    ended = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout


# lost, hanging, slow


def test_every_call_on_a_lost_gpu_fails_and_the_others_go_on(program: Program, hal_machine: Machine) -> None:
    program("held = gpu(3)")
    fault = hal_machine.inject("gpu3", FaultType.FALLEN_OFF_BUS)
    assert program("n.nvmlDeviceGetCount()") == 8
    assert program("error(gpu, 3)") == LOST
    calls = (
        "GetName GetUUID GetMemoryInfo GetUtilizationRates GetPowerUsage GetPciInfo GetEccMode GetMigMode "
        "GetComputeRunningProcesses GetTotalEnergyConsumption GetRemappedRows GetPersistenceMode IsMigDeviceHandle"
    )
    for call in calls.split():
        assert program(f"error(n.nvmlDevice{call}, held)") == LOST, call
    assert program("error(n.nvmlDeviceGetFieldValues, held, [230])") == LOST
    assert program("error(n.nvmlDeviceSetEccMode, held, 0)") == LOST
    assert program("[n.nvmlDeviceGetIndex(gpu(i)) for i in (0, 1, 2, 4, 5, 6, 7)]") == [0, 1, 2, 4, 5, 6, 7]
    hal_machine.heal(id=fault.id)
    assert program("n.nvmlDeviceGetIndex(held)") == 3


def test_xid_79_loses_the_gpu_and_a_reset_does_not_bring_it_back(program: Program, hal_machine: Machine) -> None:
    hal_machine.inject("gpu1", FaultType.XID, code=79)
    assert program("error(gpu, 1)") == LOST


def test_a_fault_comes_and_goes_while_the_program_runs(program: Program, hal_machine: Machine) -> None:
    action = "n.nvmlDeviceGetFieldValues(gpu(0), [n.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])[0].value.uiVal"
    assert program(action) == pynvml.NVML_GPU_RECOVERY_ACTION_NONE
    hal_machine.inject("gpu0", FaultType.XID, code=119, after_seconds=10, duration_seconds=10)
    assert program(action) == pynvml.NVML_GPU_RECOVERY_ACTION_NONE
    hal_machine.clock.sleep(11)
    assert program(action) in (pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET, 4)
    hal_machine.clock.sleep(10)
    assert program(action) == pynvml.NVML_GPU_RECOVERY_ACTION_NONE


def test_a_hanging_gpu_keeps_its_caller_until_it_answers_again(program: Program, hal_machine: Machine) -> None:
    hal_machine.inject("gpu2", FaultType.HANG)
    program.send("n.nvmlDeviceGetName(gpu(2))")
    with Program(nvml.stage(hal_machine, HOST)) as other:
        assert other("n.nvmlDeviceGetIndex(gpu(1))") == 1
    hal_machine.heal("gpu2")
    assert program.answer() == "NVIDIA H100 80GB HBM3"


@pytest.mark.hal_machine(clock="real")
def test_a_slow_gpu_answers_later(program: Program, hal_machine: Machine) -> None:
    program("held = gpu(0)")
    hal_machine.inject("gpu0", FaultType.SLOW, seconds=0.2)
    before = time.monotonic()
    assert program("n.nvmlDeviceGetIndex(held)") == 0
    assert time.monotonic() - before >= 0.2


# events


def test_events_go_to_those_registered_for_that_gpu_once(program: Program, hal_machine: Machine) -> None:
    hal_machine.inject("gpu0", FaultType.XID, code=43)
    program("events = n.nvmlEventSetCreate()")
    program("others = n.nvmlEventSetCreate()")
    program("n.nvmlDeviceRegisterEvents(gpu(0), n.nvmlEventTypeXidCriticalError, events)")
    program("n.nvmlDeviceRegisterEvents(gpu(1), n.nvmlEventTypeXidCriticalError, others)")
    assert program("wait(events, 20)") is None, "what was before is not told"
    program.send("wait(events, 20000)")
    hal_machine.inject("gpu5", FaultType.XID, code=31)
    hal_machine.inject("gpu0", FaultType.XID, code=94)
    assert program.answer() == [0, 8, 94, 0xFFFFFFFF, 0xFFFFFFFF]
    assert program("wait(events, 20)") is None
    assert program("wait(others, 20)") is None
    assert program("n.nvmlEventSetFree(events)") is None


def test_events_come_in_the_order_of_their_time_not_of_their_setting(program: Program, hal_machine: Machine) -> None:
    program("events = n.nvmlEventSetCreate()")
    program("[n.nvmlDeviceRegisterEvents(gpu(i), 8, events) for i in range(8)]")
    hal_machine.inject("gpu6", FaultType.XID, code=13, after_seconds=9)
    early = hal_machine.inject("gpu2", FaultType.XID, code=31, after_seconds=3)
    healed = hal_machine.inject("gpu3", FaultType.XID, code=43, after_seconds=5)
    hal_machine.heal(id=healed.id)
    assert program("wait(events, 0)") is None
    hal_machine.clock.sleep(4)
    hal_machine.heal(id=early.id)
    hal_machine.clock.sleep(6)
    assert program("wait(events, 0)")[:3] == [2, 8, 31], "it happened, though it is healed"
    assert program("wait(events, 0)")[:3] == [6, 8, 13]
    assert program("wait(events, 0)") is None


def test_a_gpu_that_falls_off_the_bus_says_so_last(program: Program, hal_machine: Machine) -> None:
    program("events = n.nvmlEventSetCreate()")
    program("n.nvmlDeviceRegisterEvents(gpu(4), 8 | n.nvmlEventTypeDoubleBitEccError, events)")
    hal_machine.inject("gpu4", FaultType.ECC_UNCORRECTABLE)
    hal_machine.inject("gpu4", FaultType.FALLEN_OFF_BUS)
    assert program("[wait(events, 0)[:3] for _ in range(3)]") == [[4, 2, 0], [4, 8, 48], [4, 8, 79]]
    assert program("wait(events, 0)") is None
    assert program("error(n.nvmlDeviceRegisterEvents, gpu(0), 4, events)") == pynvml.NVML_ERROR_NOT_SUPPORTED


# beginnings


@pytest.mark.parametrize(
    ("word", "error"), [("driver-not-loaded", 9), ("version-mismatch", 18), ("no-permission", 4), ("ok", 0)]
)
def test_a_broken_installation_can_be_played(hal_machine: Machine, word: str, error: int) -> None:
    environ = {**nvml.stage(hal_machine, HOST), "HAL_MOCK_NVML_INIT": word}
    with Program(environ, "--no-init") as program:
        assert program("error(n.nvmlInit)") == error


def test_without_a_state_file_there_is_no_driver(tmp_path: Path, hal_machine: Machine) -> None:
    environ = {**nvml.stage(hal_machine, HOST), nvml.STATE: str(tmp_path / "none.state")}
    with Program(environ, "--no-init") as program:
        assert program("error(n.nvmlInit)") == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
        assert program("error(n.nvmlDeviceGetCount)") == pynvml.NVML_ERROR_UNINITIALIZED


def test_a_file_of_another_layout_is_a_mismatch(hal_machine: Machine, tmp_path: Path) -> None:
    environ = nvml.stage(hal_machine, HOST)
    other = tmp_path / "other.state"
    other.write_bytes(b"halnvml\0" + bytes(4096))
    other.replace(environ[nvml.STATE])
    with Program(environ, "--no-init") as program:
        assert program("error(n.nvmlInit)") == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    with Program(nvml.stage(hal_machine, HOST)) as program:
        assert program("n.nvmlDeviceGetCount()") == 8, "staging makes it anew"


def test_calls_end_with_shutdown_and_handles_outlive_it(program: Program) -> None:
    program("held = gpu(2)")
    program("n.nvmlShutdown()")
    assert program("error(n.nvmlDeviceGetIndex, held)") == pynvml.NVML_ERROR_UNINITIALIZED
    program("n.nvmlInit()")
    assert program("n.nvmlDeviceGetIndex(held)") == 2


def test_gpus_are_found_by_all_their_names(program: Program) -> None:
    assert program(
        "all(n.nvmlDeviceGetIndex(found) == i for i in range(8) for found in ("
        " n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(gpu(i))),"
        " n.nvmlDeviceGetHandleBySerial(n.nvmlDeviceGetSerial(gpu(i))),"
        " n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(gpu(i)).busId),"
        " n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(gpu(i)).busIdLegacy.lower())))"
    )
    assert program("error(n.nvmlDeviceGetHandleByUUID, 'GPU-none')") == pynvml.NVML_ERROR_NOT_FOUND
    assert program("error(gpu, 8)") == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_settings_are_remembered_for_the_next_program(program: Program, hal_machine: Machine) -> None:
    program("n.nvmlDeviceSetPersistenceMode(gpu(0), 0)")
    program("n.nvmlDeviceSetPowerManagementLimit(gpu(0), 350000)")
    program("n.nvmlDeviceSetGpuLockedClocks(gpu(0), 300, 1200)")
    assert program("error(n.nvmlDeviceSetPowerManagementLimit, gpu(0), 100)") == pynvml.NVML_ERROR_INVALID_ARGUMENT
    boards = MockGpuDriver(hal_machine).boards
    assert boards.power_limit(hal_machine.graph.hosts[0].gpus[0].uuid).watts == 350.0
    boards.set_surroundings(hal_machine.graph.hosts[0].gpus[0].uuid, load=0.5)
    with Program(nvml.stage(hal_machine, HOST)) as other:
        assert other("n.nvmlDeviceGetPersistenceMode(gpu(0))") == 0
        assert other("n.nvmlDeviceGetEnforcedPowerLimit(gpu(0))") == 350000
        assert other("n.nvmlDeviceGetClockInfo(gpu(0), 1)") == 1200
        assert other("n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0))") & 2


# drivers of another age, machines of another size


def test_an_older_driver_lacks_what_came_later(hal_machine: Machine) -> None:
    with Program(nvml.stage(hal_machine, HOST, driver=470)) as program:
        assert program("n.nvmlSystemGetDriverVersion()").startswith("470.")
        assert program("error(n.nvmlDeviceGetTemperatureV, gpu(0), 0)") == NOT_FOUND_FUNCTION
        assert program("error(n.nvmlDeviceGetCurrentClocksEventReasons, gpu(0))") == NOT_FOUND_FUNCTION
        assert program("error(n.nvmlDeviceGetComputeRunningProcesses_v3, gpu(0))") == NOT_FOUND_FUNCTION
        assert program("n.nvmlDeviceGetCurrentClocksThrottleReasons(gpu(0))") == 1
        assert program("n.nvmlDeviceGetFieldValues(gpu(0), [230])[0].nvmlReturn") == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_the_driver_is_chosen_by_the_environment_too(hal_machine: Machine) -> None:
    environ = {**os.environ, nvml.DRIVER: "470"}
    with Program(nvml.stage(hal_machine, HOST, environ=environ)) as program:
        assert program("n.nvmlSystemGetDriverVersion()").startswith("470.")
    with pytest.raises(UsageError, match="no driver branch 123"):
        nvml.library(123)


def test_what_is_not_there_is_function_not_found(program: Program) -> None:
    assert program("error(n.nvmlDeviceGetVgpuProcessUtilization, gpu(0), 0)") == NOT_FOUND_FUNCTION


def test_sixty_four_gpus(tmp_path: Path) -> None:
    profile = tmp_path / "many.toml"
    profile.write_text('[host]\nname = "many"\n[[gpu]]\ncount = 64\nmodel = "H100-SXM5-80GB"\nnvlink = "none"\n')
    machine = open_machine({"HAL_MACHINE": f"{profile}?state={tmp_path / 'state'}&clock=virtual"})
    assert machine is not None
    with Program(nvml.stage(machine, machine.graph.hosts[0].name)) as program:
        assert program("n.nvmlDeviceGetCount()") == 64
        machine.inject("gpu63", FaultType.LOST)
        assert program("[i for i in range(64) if error(gpu, i)]") == [63]
        uuids = program("[n.nvmlDeviceGetUUID(gpu(i)) for i in range(63)]")
        assert uuids == [gpu.uuid for gpu in machine.graph.hosts[0].gpus[:63]]
        assert program("n.nvmlDeviceGetTopologyCommonAncestor(gpu(0), gpu(62))") in (20, 30, 40, 50)


def test_an_unknown_host_is_an_error_with_the_known_one(hal_machine: Machine) -> None:
    with pytest.raises(DeviceNotFound, match=HOST):
        nvml.stage(hal_machine, "nowhere")


# tools of others


def test_nvitop_shows_eight_gpus_and_the_lost_one(hal_machine: Machine) -> None:
    environ = nvml.stage(hal_machine, HOST)
    assert _run(environ, sys.executable, "-m", "nvitop", "-1").count("H100 80GB HBM3") == 8
    hal_machine.inject("gpu3", FaultType.FALLEN_OFF_BUS)
    shown = _run(environ, sys.executable, "-m", "nvitop", "-1")
    assert shown.count("H100 80GB HBM3") == 7
    assert "GPU is Lost" in shown


def test_gpustat_shows_eight_gpus_and_the_lost_one(hal_machine: Machine) -> None:
    environ = nvml.stage(hal_machine, HOST)
    hal_machine.inject("gpu3", FaultType.FALLEN_OFF_BUS)
    gpus = json.loads(_run(environ, str(SCRIPTS / "gpustat"), "--json"))["gpus"]
    assert [gpu["name"] for gpu in gpus].count("NVIDIA H100 80GB HBM3") == 7
    assert gpus[3]["name"] == "((GPU is lost))"
    assert gpus[0]["memory.total"] == 81559


# the binary interface


def test_structs_are_laid_out_as_nvidia_ml_py_has_them(tmp_path: Path) -> None:
    pairs = {
        "nvmlPciInfo_t": "nvmlPciInfo_t",
        "nvmlPciInfo_v2_t": "nvmlPciInfo_v2_t",
        "nvmlPciInfoExt_v1_t": "nvmlPciInfoExt_v1_t",
        "nvmlMemory_t": "c_nvmlMemory_t",
        "nvmlMemory_v2_t": "c_nvmlMemory_v2_t",
        "nvmlBAR1Memory_t": "c_nvmlBAR1Memory_t",
        "nvmlUtilization_t": "c_nvmlUtilization_t",
        "nvmlTemperature_v1_t": "c_nvmlTemperature_v1_t",
        "nvmlMarginTemperature_v1_t": "c_nvmlMarginTemperature_v1_t",
        "nvmlFanSpeedInfo_t": "c_nvmlFanSpeedInfo_t",
        "nvmlViolationTime_t": "c_nvmlViolationTime_t",
        "nvmlPowerValue_v2_t": "c_nvmlPowerValue_v2_t",
        "nvmlEccErrorCounts_t": "c_nvmlEccErrorCounts_t",
        "nvmlEccSramErrorStatus_v1_t": "c_nvmlEccSramErrorStatus_v1_t",
        "nvmlRowRemapperHistogramValues_t": "c_nvmlRowRemapperHistogramValues",
        "nvmlProcessInfo_t": "c_nvmlProcessInfo_v3_t",
        "nvmlProcessDetail_v1_t": "c_nvmlProcessDetail_v1_t",
        "nvmlProcessDetailList_v1_t": "c_nvmlProcessDetailList_v1_t",
        "nvmlValue_t": "c_nvmlValue_t",
        "nvmlFieldValue_t": "c_nvmlFieldValue_t",
        "nvmlEventData_t": "c_nvmlEventData_t",
        "nvmlPlacement_t": "c_nvmlGpuInstancePlacement_t",
        "nvmlGpuInstanceProfileInfo_t": "c_nvmlGpuInstanceProfileInfo_t",
        "nvmlGpuInstanceProfileInfo_v2_t": "c_nvmlGpuInstanceProfileInfo_v2_t",
        "nvmlGpuInstanceInfo_t": "c_nvmlGpuInstanceInfo_t",
        "nvmlComputeInstanceProfileInfo_t": "c_nvmlComputeInstanceProfileInfo_t",
        "nvmlComputeInstanceProfileInfo_v2_t": "c_nvmlComputeInstanceProfileInfo_v2_t",
        "nvmlComputeInstanceInfo_t": "c_nvmlComputeInstanceInfo_t",
        "nvmlDeviceAttributes_t": "c_nvmlDeviceAttributes",
        "nvmlC2cModeInfo_v1_t": "c_nvmlC2cModeInfo_v1_t",
        "nvmlGpmSupport_t": "c_nvmlGpmSupport_t",
    }
    lines = []
    for ours, theirs in pairs.items():
        type_ = getattr(pynvml, theirs)
        lines.append(f'_Static_assert(sizeof({ours}) == {ctypes.sizeof(type_)}, "{ours}");')
        for name, *_ in type_._fields_:
            if not re.search(rf"\b{name}\b", (LIBRARY / "nvml.h").read_text()):
                continue
            lines.append(f'_Static_assert(offsetof({ours}, {name}) == {getattr(type_, name).offset}, "{ours}.{name}");')
    source = tmp_path / "check.c"
    source.write_text("\n".join(['#include "library.h"', *lines]) + "\n")
    subprocess.run(["cc", *FLAGS, f"-I{LIBRARY}", "-fsyntax-only", str(source)], check=True)
    assert len(lines) > 120


def test_both_sides_lay_out_the_state_file_alike() -> None:
    library = ctypes.CDLL(str(nvml.library()))
    assert library.hal_mock_gpu_bytes() == ctypes.sizeof(struct("hal_gpu"))
    assert library.hal_mock_header_bytes() == ctypes.sizeof(struct("hal_header"))


def test_the_sources_compile_without_a_warning(tmp_path: Path) -> None:
    sources = [str(path) for path in sorted(LIBRARY.glob("*.c"))]
    strict = ("-Wall", "-Wextra", "-Werror", "-shared", "-o", str(tmp_path / "strict.so"))
    subprocess.run(["cc", *FLAGS, *strict, *sources], check=True)


def test_it_starts_no_thread_and_needs_only_the_c_library(program: Program) -> None:
    assert program("len(__import__('os').listdir('/proc/self/task'))") == 1
    needed = subprocess.run(["ldd", str(nvml.library())], capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in needed.splitlines()} <= {
        "linux-vdso.so.1",
        "libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-linux-aarch64.so.1",
    }


def test_without_a_compiler_staging_says_what_to_install(hal_machine: Machine, tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(NotReady, match="apt install gcc"):
        nvml.stage(hal_machine, HOST, environ=environ)


def test_every_call_of_nvitop_and_gpustat_is_there() -> None:
    import gpustat.core
    import nvitop.api.device

    library = ctypes.CDLL(str(nvml.library()))
    wanted = {
        name
        for module in (gpustat.core, nvitop.api.device)
        for name in re.findall(r"\bnvmlDeviceGet\w+|\bnvmlSystemGet\w+", inspect.getsource(module))
    }
    windows_only = {"nvmlDeviceGetCurrentDriverModel"}
    missing = {name for name in wanted - windows_only if not hasattr(library, name)}
    assert missing == set()
