"""The fake NVML library and the Python mock driver tell the same facts of the same GPUs, at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hal.interfaces.gpu import Ancestor
from hal_mocks import nvml
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_describe import ancestor
from hal_mocks.gpu_measure import PCIE_GTS
from hal_mocks.machine import Machine, open_machine
from mocks.tests.nvml_programs import Program

HOST = "dgx-h100"
GPUS = 8


@pytest.fixture
def program(hal_machine: Machine) -> Iterator[Program]:
    """A program on the test's machine."""
    with Program(nvml.stage(hal_machine, HOST)) as program:
        yield program


SHARED: dict[str, tuple[str, Callable[[Any], object]]] = {
    # what the driver calls it: how the program asks, and what is done with what the driver says
    "uuid": ("n.nvmlDeviceGetUUID(gpu({i}))", str),
    "serial": ("n.nvmlDeviceGetSerial(gpu({i}))", str),
    "model": ("n.nvmlDeviceGetName(gpu({i}))", str),
    "memory_bytes": ("n.nvmlDeviceGetMemoryInfo(gpu({i})).total", int),
    "compute_capability": ("'%d.%d' % n.nvmlDeviceGetCudaComputeCapability(gpu({i}))", str),
    "pci_device": ("'%04x' % (n.nvmlDeviceGetPciInfo(gpu({i})).pciDeviceId >> 16)", str),
    "pci_vendor": ("'%04x' % (n.nvmlDeviceGetPciInfo(gpu({i})).pciDeviceId & 0xffff)", str),
    "link_width": ("n.nvmlDeviceGetCurrPcieLinkWidth(gpu({i}))", int),
    "link_max_width": ("n.nvmlDeviceGetMaxPcieLinkWidth(gpu({i}))", int),
    "link_speed_gts": ("n.nvmlDeviceGetCurrPcieLinkGeneration(gpu({i}))", lambda gts: _generation(gts)),
    "link_max_speed_gts": ("n.nvmlDeviceGetMaxPcieLinkGeneration(gpu({i}))", lambda gts: _generation(gts)),
    "power_limit_watts": ("n.nvmlDeviceGetPowerManagementDefaultLimit(gpu({i})) / 1000", float),
    "numa_node": ("n.nvmlDeviceGetMemoryAffinity(gpu({i}), 1, 0)[0].bit_length() - 1", int),
    "ecc_mode": ("['disabled', 'enabled'][n.nvmlDeviceGetEccMode(gpu({i}))[0]]", str),
    "mig_mode": ("['disabled', 'enabled'][n.nvmlDeviceGetMigMode(gpu({i}))[0]]", str),
}

MEASURED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "gpu_utilization_percent": ("n.nvmlDeviceGetUtilizationRates(gpu({i})).gpu", int),
    "memory_used_bytes": ("n.nvmlDeviceGetMemoryInfo(gpu({i})).used", int),
    "memory_free_bytes": ("n.nvmlDeviceGetMemoryInfo(gpu({i})).free", int),
    "memory_total_bytes": ("n.nvmlDeviceGetMemoryInfo(gpu({i})).total", int),
    "power_watts": ("n.nvmlDeviceGetPowerUsage(gpu({i})) / 1000", lambda watts: pytest.approx(watts, abs=0.01)),
    "power_limit_watts": ("n.nvmlDeviceGetEnforcedPowerLimit(gpu({i})) / 1000", float),
    "energy_joules": (
        "n.nvmlDeviceGetTotalEnergyConsumption(gpu({i})) / 1000",
        lambda joules: pytest.approx(joules, rel=0.02, abs=0.01),
    ),
    "temperature_celsius": ("n.nvmlDeviceGetTemperature(gpu({i}), 0)", lambda heat: pytest.approx(heat, abs=2)),
    "sm_clock_hz": ("n.nvmlDeviceGetClockInfo(gpu({i}), n.NVML_CLOCK_SM) * 1000000", int),
    "sm_max_clock_hz": ("n.nvmlDeviceGetMaxClockInfo(gpu({i}), n.NVML_CLOCK_SM) * 1000000", int),
    "memory_clock_hz": ("n.nvmlDeviceGetClockInfo(gpu({i}), n.NVML_CLOCK_MEM) * 1000000", int),
    "clock_event_reasons": ("n.nvmlDeviceGetCurrentClocksEventReasons(gpu({i}))", lambda words: _bits(words)),
    "pcie_replays": ("n.nvmlDeviceGetPcieReplayCounter(gpu({i}))", lambda count: pytest.approx(count, abs=1)),
    "pcie_width": ("n.nvmlDeviceGetCurrPcieLinkWidth(gpu({i}))", int),
    "pcie_speed_gts": ("n.nvmlDeviceGetCurrPcieLinkGeneration(gpu({i}))", lambda gts: _generation(gts)),
    "recovery_action": (
        "n.nvmlDeviceGetFieldValues(gpu({i}), [230])[0].value.uiVal",
        lambda word: {"none": 0, "reset": 1, "reboot": 2, "drain-reset": 4}[word],
    ),
}


def _generation(gts: float) -> int:
    return next(generation for generation, speed in PCIE_GTS.items() if speed == gts)


def _bits(words: tuple[str, ...]) -> int:
    bits = {"gpu-idle": 1, "sw-power-cap": 4, "hw-slowdown": 8, "hw-thermal-slowdown": 64}
    return sum(bits[word] for word in words)


def _disagreements(program: Program, machine: Machine) -> list[str]:
    """Compare every shared fact of every GPU; return what differs."""
    driver = MockGpuDriver(machine)
    differ: list[str] = []
    for index, gpu in enumerate(gpu.uuid for gpu in machine.graph.hosts[0].gpus):
        device = driver.find(gpu)
        told = driver.boards.telemetry(gpu)
        for table, attributes in ((SHARED, device.attributes), (MEASURED, told)):
            for name, (question, of) in table.items():
                answer = program(question.format(i=index))
                if answer != of(attributes[name].value):
                    differ.append(f"gpu{index} {name}: NVML {answer}, driver {attributes[name].value}")
    return differ


def test_eight_gpus_have_the_facts_of_the_python_driver(program: Program, hal_machine: Machine) -> None:
    assert program("n.nvmlDeviceGetCount()") == GPUS
    assert _disagreements(program, hal_machine) == []


def test_facts_agree_while_gpus_heat_up_throttle_and_lose_lanes(program: Program, hal_machine: Machine) -> None:
    boards = MockGpuDriver(hal_machine).boards
    hot, busy, poor = (gpu.uuid for gpu in hal_machine.graph.hosts[0].gpus[:3])
    boards.set_surroundings(hot, load=1.0, inlet_celsius=50.0)
    boards.set_surroundings(busy, load=0.6)
    hal_machine.inject(poor, FaultType.LINK_DEGRADED, generation=3, width=8)
    for seconds in (1, 20, 60, 200):
        hal_machine.clock.sleep(seconds)
        assert _disagreements(program, hal_machine) == []
    assert program("n.nvmlDeviceGetCurrentClocksThrottleReasons(gpu(0))") & 8
    assert program("n.nvmlDeviceGetPcieReplayCounter(gpu(2))") > 100


def test_counters_never_fall_whoever_looks(program: Program, hal_machine: Machine) -> None:
    boards = MockGpuDriver(hal_machine).boards
    gpu = hal_machine.graph.hosts[0].gpus[0].uuid
    last = -1.0
    for step in range(12):
        hal_machine.clock.sleep(7.0)
        if step % 3 == 0:
            boards.set_surroundings(gpu, load=(step % 2) * 1.0, inlet_celsius=25.0 + 5 * step)
        if step % 4 == 1:
            boards.telemetry(gpu)
            nvml.sync(hal_machine)
        energy = program("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))")
        assert energy > last
        last = energy


def test_a_fact_that_is_lied_about_is_a_lie_here_too(program: Program, hal_machine: Machine) -> None:
    gpu = hal_machine.graph.hosts[0].gpus[1].uuid
    hal_machine.inject(gpu, FaultType.LIE, attribute="temperature_celsius", value="91")
    hal_machine.inject(gpu, FaultType.LIE, attribute="memory_used_bytes", value="4096")
    assert program("n.nvmlDeviceGetTemperature(gpu(1), 0)") == 91
    assert program("n.nvmlDeviceGetMemoryInfo(gpu(1)).used") == 4096
    hal_machine.heal(gpu)
    assert program("n.nvmlDeviceGetTemperature(gpu(1), 0)") == 30


def test_memory_errors_are_counted_alike(program: Program, hal_machine: Machine) -> None:
    gpu = hal_machine.graph.hosts[0].gpus[2].uuid
    driver = MockGpuDriver(hal_machine)
    hal_machine.inject(gpu, FaultType.ECC_UNCORRECTABLE, after_seconds=30)
    counts = "[n.nvmlDeviceGetTotalEccErrors(gpu(2), 1, 0), n.nvmlDeviceGetMemoryErrorCounter(gpu(2), 1, 1, 2)]"
    rows = "list(n.nvmlDeviceGetRemappedRows(gpu(2)))"
    assert program(counts) == [0, 0]
    hal_machine.clock.sleep(31)  # nobody tells the library: it knew
    assert program(counts) == [1, 1]
    assert program(rows) == [0, 0, 1, 0]
    assert driver.boards.row_remapping(gpu).pending
    driver.boards.reset(gpu)
    assert program(rows) == [0, 1, 0, 0]
    assert program(counts) == [0, 1]
    remapped = driver.boards.row_remapping(gpu)
    assert (remapped.uncorrectable, remapped.pending) == (1, False)


def test_the_topology_is_that_of_the_driver(program: Program, hal_machine: Machine) -> None:
    places = list(MockGpuDriver(hal_machine).boards.places.values())
    levels = {
        Ancestor.SINGLE: 10,
        Ancestor.MULTIPLE: 20,
        Ancestor.HOST_BRIDGE: 30,
        Ancestor.NODE: 40,
        Ancestor.SYSTEM: 50,
    }
    told = program("[[n.nvmlDeviceGetTopologyCommonAncestor(gpu(i), gpu(j)) for j in range(8)] for i in range(8)]")
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            assert told[i][j] == (0 if i == j else levels[ancestor(one, other)])
    near = program("[n.nvmlDeviceGetIndex(d) for d in n.nvmlDeviceGetTopologyNearestGpus(gpu(0), 40)]")
    assert near == [j for j in range(GPUS) if told[0][j] == 40]
    assert program("n.nvmlDeviceGetP2PStatus(gpu(0), gpu(7), n.NVML_P2P_CAPS_INDEX_NVLINK)") == 0


def test_nvlinks_are_the_drivers_and_fall_with_it(program: Program, hal_machine: Machine) -> None:
    gpu = hal_machine.graph.hosts[0].gpus[4]
    links = gpu.nvlinks[0].links
    up = f"[n.nvmlDeviceGetNvLinkState(gpu(4), link) for link in range({links})]"
    assert program(up) == [1] * links
    assert program("n.nvmlDeviceGetFieldValues(gpu(4), [n.NVML_FI_DEV_NVLINK_LINK_COUNT])[0].value.uiVal") == links
    assert program("n.nvmlDeviceGetNvLinkRemoteDeviceType(gpu(4), 0)") == 2
    assert program(f"error(n.nvmlDeviceGetNvLinkState, gpu(4), {links})") == 3
    fault = hal_machine.inject(gpu.uuid, FaultType.FLAP, seconds=10.0)
    assert program(up) == [0] * links
    hal_machine.clock.sleep(6)
    assert program(up) == [1] * links
    hal_machine.clock.sleep(5)
    assert program(up) == [0] * links
    hal_machine.heal(id=fault.id)
    assert program(up) == [1] * links


def test_a_program_that_computes_is_seen_with_its_memory(program: Program, hal_machine: Machine) -> None:
    gpu = hal_machine.graph.hosts[0].gpus[5].uuid
    contexts = MockGpuDriver(hal_machine).boards.contexts(gpu)
    slot, held = contexts.attach()
    contexts.words[16 + slot] = 1 << 30
    found = "[[p.pid, p.usedGpuMemory] for p in n.nvmlDeviceGetComputeRunningProcesses(gpu(5))]"
    assert program(found) == [[os.getpid(), 1 << 30]]
    assert program("n.nvmlDeviceGetMemoryInfo(gpu(5)).used") == 1 << 30
    assert program(f"n.nvmlSystemGetProcessName({os.getpid()})")
    contexts.detach(slot, held)
    assert program(found) == []


def test_what_the_machine_forgets_the_library_forgets(program: Program, hal_machine: Machine) -> None:
    program("n.nvmlDeviceSetEccMode(gpu(0), 0)")
    hal_machine.inject("gpu1", FaultType.XID, code=48)
    assert program("n.nvmlDeviceGetTotalEccErrors(gpu(1), 1, 1)") == 1
    hal_machine.forget()
    assert program("list(n.nvmlDeviceGetEccMode(gpu(0)))") == [1, 1]
    assert program("n.nvmlDeviceGetTotalEccErrors(gpu(1), 1, 1)") == 0


@pytest.mark.hal_machine(clock="real")
def test_with_a_real_clock_time_goes_on_in_the_library(program: Program) -> None:
    before = program("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))")
    assert program("import time; deadline = time.monotonic() + 20") is None
    code = f"while n.nvmlDeviceGetTotalEnergyConsumption(gpu(0)) <= {before} and time.monotonic() < deadline: pass"
    program(code)
    assert program("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))") > before


def test_hosts_without_nvidia_gpus_have_none(tmp_path: Path) -> None:
    machine = open_machine({"HAL_MACHINE": f"optane-server?state={tmp_path}"})
    assert machine is not None
    with Program(nvml.stage(machine, machine.graph.hosts[0].name)) as program:
        assert program("n.nvmlDeviceGetCount()") == 0
