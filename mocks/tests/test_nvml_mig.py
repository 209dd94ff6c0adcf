"""MIG through the fake NVML library: geometry against an oracle of its own, and one truth with the Python driver."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import DeviceBusy
from hal_mocks import nvml
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_boards import GpuBoards
from hal_mocks.machine import Machine, open_machine
from mocks.tests.nvml_programs import Program

HOST = "dgx-h100"
PROFILES = {19: (1, 1), 20: (1, 1), 15: (1, 2), 14: (2, 2), 9: (3, 4), 5: (4, 4), 0: (7, 8)}
"""What NVIDIA documents for H100: profile id to slices of compute and of memory."""

STARTS = {19: range(7), 20: range(7), 15: (0, 2, 4, 6), 14: (0, 2, 4), 9: (0, 4), 5: (0,), 0: (0,)}
MEDIA = 20
TAKEN, ILLEGAL = pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES, pynvml.NVML_ERROR_INVALID_ARGUMENT

MAKE = """
def make(profile, start=None):
    if start is None:
        made = n.nvmlDeviceCreateGpuInstance(gpu(), profile)
    else:
        sizes = {19: 1, 20: 1, 15: 2, 14: 2, 9: 4, 5: 4, 0: 8}
        made = n.nvmlDeviceCreateGpuInstanceWithPlacement(gpu(), profile, place(start, sizes[profile]))
    info = n.nvmlGpuInstanceGetInfo(made)
    return [info.id, info.profileId, info.placement.start, info.placement.size]
def instances():
    found = []
    for profile in (19, 20, 15, 14, 9, 5, 0):
        handles = (n.c_nvmlGpuInstance_t * 8)()
        count = ctypes.c_uint()
        n.nvmlDeviceGetGpuInstances(gpu(), profile, handles, ctypes.byref(count))
        for handle in handles[:count.value]:
            info = n.nvmlGpuInstanceGetInfo(handle)
            found.append([info.id, info.profileId, info.placement.start, info.placement.size])
    return sorted(found, key=lambda instance: instance[2])
def whole(instance, number):
    return n.nvmlGpuInstanceCreateComputeInstance(n.nvmlDeviceGetGpuInstanceById(gpu(), instance), number)
def migs():
    found = []
    for index in range(n.nvmlDeviceGetMaxMigDeviceCount(gpu())):
        try:
            mig = n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), index)
        except n.NVMLError_NotFound:
            break
        ids = [n.nvmlDeviceGetGpuInstanceId(mig), n.nvmlDeviceGetComputeInstanceId(mig)]
        found.append([n.nvmlDeviceGetUUID(mig), *ids])
    return found
"""


@pytest.fixture
def board(hal_machine: Machine) -> tuple[GpuBoards, str]:
    """The Python driver's side of a GPU in MIG mode."""
    boards, gpu = MockGpuDriver(hal_machine).boards, hal_machine.graph.hosts[0].gpus[0].uuid
    boards.set_partitioning(gpu, True)
    boards.reset(gpu)
    return boards, gpu


@pytest.fixture
def program(hal_machine: Machine, board: object) -> Iterator[Program]:
    """A program on that GPU."""
    with Program(nvml.stage(hal_machine, HOST)) as program:
        program(MAKE)
        yield program


def test_the_mode_waits_for_a_reset(hal_machine: Machine) -> None:
    gpu = hal_machine.graph.hosts[0].gpus[1].uuid
    boards = MockGpuDriver(hal_machine).boards
    with Program(nvml.stage(hal_machine, HOST)) as program:
        assert program("n.nvmlDeviceSetMigMode(gpu(1), 1)") == pynvml.NVML_ERROR_RESET_REQUIRED
        assert program("list(n.nvmlDeviceGetMigMode(gpu(1)))") == [0, 1]
        assert program("error(n.nvmlDeviceCreateGpuInstance, gpu(1), 19)") == pynvml.NVML_ERROR_NOT_SUPPORTED
        assert boards.partitioning(gpu).pending
        boards.reset(gpu)
        assert program("list(n.nvmlDeviceGetMigMode(gpu(1)))") == [1, 1]
        assert program("n.nvmlDeviceGetMaxMigDeviceCount(gpu(1))") == 7


def test_profiles_and_placements_are_those_documented(program: Program) -> None:
    numbers = (0, 7, 9, 1, 2, 3, 4)
    told = program(f"[[p.id, p.sliceCount, p.instanceCount] for p in (profile(gpu(), i) for i in {numbers})]")
    assert [row[0] for row in told] == [19, 20, 15, 14, 9, 5, 0]
    assert {row[0]: row[1] for row in told} == {id_: compute for id_, (compute, _) in PROFILES.items()}
    assert {row[0]: row[2] for row in told} == {19: 7, 20: 1, 15: 4, 14: 3, 9: 2, 5: 1, 0: 1}
    assert program("n.nvmlDeviceGetGpuInstanceProfileInfo(gpu(), 9).name") == "MIG 1g.20gb"
    assert program("error(profile, gpu(), 5)") == pynvml.NVML_ERROR_NOT_SUPPORTED
    ask = "n.nvmlDeviceGetGpuInstancePossiblePlacements(gpu(), {id}, {places}, ctypes.byref(count))"
    for id_, starts in STARTS.items():
        program("count = ctypes.c_uint()")
        program(ask.format(id=id_, places=None))
        program("places = (n.c_nvmlGpuInstancePlacement_t * count.value)()")
        program(ask.format(id=id_, places="places"))
        assert program("[[p.start, p.size] for p in places]") == [[start, PROFILES[id_][1]] for start in starts]


PLACES = [(profile, start) for profile in sorted(PROFILES) for start in (None, *STARTS[profile])]
STEPS = st.lists(
    st.one_of(
        st.sampled_from(PLACES).map(lambda place: ("make", *place)),
        st.sampled_from(PLACES).map(lambda place: ("make", *place)),
        st.tuples(st.just("make"), st.sampled_from(sorted(PROFILES)), st.integers(0, 8)),
        st.tuples(st.just("end"), st.integers(0, 7), st.none()),
    ),
    min_size=2,
    max_size=16,
)


def _legal(existing: list[list[int]], profile: int, start: int) -> bool:
    """The oracle: count every slice, one by one."""
    compute, size = PROFILES[profile]
    memory = [0] * 8
    for _, other, at, length in existing:
        for slice_ in range(at, at + length):
            memory[slice_] += 1
        compute += PROFILES[other][0]
    if profile == MEDIA and any(other == MEDIA for _, other, _, _ in existing):
        return False
    return compute <= 7 and not any(memory[slice_] for slice_ in range(start, start + size))


@pytest.fixture(scope="module")
def one_program() -> Iterator[tuple[Program, GpuBoards, str]]:
    """One program for all examples: each begins with an empty GPU."""
    with tempfile.TemporaryDirectory() as folder:
        machine = open_machine({"HAL_MACHINE": f"dgx-h100?state={Path(folder, 'state')}&clock=virtual"})
        assert machine is not None
        boards, gpu = GpuBoards(machine), machine.graph.hosts[0].gpus[0].uuid
        boards.set_partitioning(gpu, True)
        boards.reset(gpu)
        with Program(nvml.stage(machine, HOST)) as program:
            program(MAKE)
            yield program, boards, gpu


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_instances_never_overlap_and_lie_where_they_may(
    one_program: tuple[Program, GpuBoards, str], steps: list[tuple[str, int, int | None]]
) -> None:
    program, boards, gpu = one_program
    for partition in boards.partitions(gpu):
        boards.destroy_partition(gpu, partition.id)
    existing: list[list[int]] = []
    for step, number, start in steps:
        if step == "end":
            if number < len(existing):
                program(f"n.nvmlGpuInstanceDestroy(n.nvmlDeviceGetGpuInstanceById(gpu(), {existing.pop(number)[0]}))")
            continue
        wanted = [start] if start is not None else list(STARTS[number])
        possible = [at for at in wanted if at in STARTS[number] and _legal(existing, number, at)]
        code = f"{number}" if start is None else f"{number}, {start}"
        if possible:
            made = program(f"make({code})")
            assert made[1:] == [number, possible[0], PROFILES[number][1]]
            existing.append(made)
        else:
            legal = start is None or start in STARTS[number]
            assert program(f"error(make, {code})") in ((TAKEN,) if legal else (TAKEN, ILLEGAL))
        existing.sort(key=lambda instance: instance[2])
        assert program("instances()") == existing
        assert [partition.start for partition in boards.partitions(gpu)] == [at for _, _, at, _ in existing]
        assert all(one[2] + one[3] <= other[2] for one, other in pairwise(existing))
        assert len({instance[0] for instance in existing}) == len(existing)


def test_a_partition_of_the_python_driver_is_a_mig_device_here(program: Program, board: tuple[GpuBoards, str]) -> None:
    boards, gpu = board
    made = boards.create_partition(gpu, "3g.40gb", 4)
    assert [row[0] for row in program("migs()")] == [made.id]
    mig = "n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)"
    assert program(f"n.nvmlDeviceGetName({mig})") == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert program(f"n.nvmlDeviceGetMemoryInfo({mig}).total") == made.memory_bytes
    assert program(f"n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByUUID('{made.id}'))") == made.id
    assert program(f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle({mig}))") == 0
    slices = "lambda a: [a.gpuInstanceSliceCount, a.computeInstanceSliceCount]"
    attributes = program(f"({slices})(n.nvmlDeviceGetAttributes({mig}))")
    assert attributes == [3, 3]
    assert program(f"error(n.nvmlDeviceGetTemperature, {mig}, 0)") == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert program("error(n.nvmlDeviceGetRemappedRows, gpu())") == pynvml.NVML_ERROR_NOT_SUPPORTED
    boards.destroy_partition(gpu, made.id)
    assert program("migs()") == []


def test_an_instance_made_here_is_a_partition_of_the_python_driver(
    program: Program, board: tuple[GpuBoards, str], hal_machine: Machine
) -> None:
    boards, gpu = board
    instance = program("make(14)")[0]
    assert program("migs()") == [], "a device begins with its compute instance"
    program(f"made = whole({instance}, 1)")
    (partition,) = boards.partitions(gpu)
    assert (partition.profile, partition.start) == ("2g.20gb", 0)
    assert program("migs()") == [[partition.id, instance, 0]]
    assert partition.id in {device.id for device in MockGpuDriver(hal_machine).describe()}
    with Program(nvml.stage(hal_machine, HOST)) as other:
        other(MAKE)
        assert other("migs()") == [[partition.id, instance, 0]]
    assert program("error(n.nvmlDeviceSetMigMode, gpu(), 0)") == pynvml.NVML_ERROR_IN_USE
    in_use = f"error(n.nvmlGpuInstanceDestroy, n.nvmlDeviceGetGpuInstanceById(gpu(), {instance}))"
    assert program(in_use) == pynvml.NVML_ERROR_IN_USE
    slot, held = boards.contexts(partition.id).attach()
    assert program("error(n.nvmlComputeInstanceDestroy, made)") == pynvml.NVML_ERROR_IN_USE
    whose = "[[p.gpuInstanceId, p.computeInstanceId] for p in n.nvmlDeviceGetComputeRunningProcesses(gpu())]"
    assert program(whose) == [[instance, 0]]
    with pytest.raises(DeviceBusy):
        boards.destroy_partition(gpu, partition.id)
    boards.contexts(partition.id).detach(slot, held)
    program("n.nvmlComputeInstanceDestroy(made)")
    assert program(in_use) == 0
    assert boards.partitions(gpu) == ()


def test_an_instance_can_be_shared_by_compute_instances(program: Program) -> None:
    instance = program("make(9)")[0]
    program(f"parts = [whole({instance}, 0) for _ in range(3)]")
    assert program(f"error(whole, {instance}, 0)") == TAKEN
    assert program(f"error(whole, {instance}, 4)") == pynvml.NVML_ERROR_NOT_SUPPORTED
    placements = "[[i.id, i.placement.start, i.placement.size] for i in map(n.nvmlComputeInstanceGetInfo, parts)]"
    assert program(placements) == [[0, 0, 1], [1, 1, 1], [2, 2, 1]]
    migs = program("migs()")
    assert [row[1:] for row in migs] == [[instance, 0], [instance, 1], [instance, 2]]
    assert len({row[0] for row in migs}) == 3
    name = "n.nvmlDeviceGetName(n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 1))"
    assert program(name) == "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb"
    program("n.nvmlComputeInstanceDestroy(parts[1])")
    assert [row[2] for row in program("migs()")] == [0, 2]


def test_a_reset_ends_instances_and_their_handles(program: Program, board: tuple[GpuBoards, str]) -> None:
    boards, gpu = board
    instance = program("make(19)")[0]
    program(f"whole({instance}, 0); mig = n.nvmlDeviceGetMigDeviceHandleByIndex(gpu(), 0)")
    boards.reset(gpu)
    assert program("migs()") == []
    assert program("error(n.nvmlDeviceGetUUID, mig)") == pynvml.NVML_ERROR_NOT_FOUND


def test_an_event_of_a_partition_carries_its_instances(
    program: Program, board: tuple[GpuBoards, str], hal_machine: Machine
) -> None:
    boards, gpu = board
    partition = boards.create_partition(gpu, "1g.10gb", 5)
    instance = program("migs()")[0][1]
    program("events = n.nvmlEventSetCreate(); n.nvmlDeviceRegisterEvents(gpu(), 8, events)")
    hal_machine.inject(partition.id, FaultType.XID, code=94)
    assert program("wait(events, 1000)") == [0, 8, 94, instance, 0]


def test_a_board_without_mig_says_so(tmp_path: Path) -> None:
    profile = tmp_path / "plain.toml"
    profile.write_text('[host]\nname = "plain"\n[[gpu]]\nmodel = "T4"\n')
    machine = open_machine({"HAL_MACHINE": f"{profile}?state={tmp_path / 'state'}"})
    assert machine is not None
    with Program(nvml.stage(machine, machine.graph.hosts[0].name)) as program:
        assert program("error(n.nvmlDeviceGetMigMode, gpu())") == pynvml.NVML_ERROR_NOT_SUPPORTED
        assert program("error(n.nvmlDeviceGetRemappedRows, gpu())") == pynvml.NVML_ERROR_NOT_SUPPORTED
        assert program("len(n.nvmlDeviceGetRetiredPages(gpu(), 0))") == 0
