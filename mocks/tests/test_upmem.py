"""The mock of UPMEM ranks: conformance, programs against independent answers, rules, faults, ownership."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import GuardPages
from hal.errors import DeadlineExceeded, DeviceBusy, DeviceGone, LeaseEnded, ProgramFault
from hal.interfaces.deadline import Deadline
from hal.interfaces.upmem import Direction, RunState
from hal.model.health import Health, Presence
from hal.model.kind import Kind
from hal.testing.kinds.upmem import UpmemConformance
from hal_mocks.clock import RealClock, VirtualClock
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from hal_mocks.upmem import MockUpmemDriver
from hal_mocks.upmem_context import Context
from hal_mocks.upmem_program import Mram, Program, Wram
from hal_mocks.upmem_programs import DOUBLE
from mocks.tests.ranks import RANK, count_bytes, graph, opened


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "machine", VirtualClock())


@pytest.fixture
def rank(machine: Machine):
    with opened(machine) as rank:
        yield rank


def crash(ctx: Context) -> None:
    ctx.printf("before\n")
    if ctx.me() == 0:
        raise ZeroDivisionError("one by zero")
    ctx.barrier()


CRASH = Program(name="crash", kernel=crash, tasklets=3)


class TestMockUpmem(UpmemConformance):
    @pytest.fixture
    def driver(self, machine: Machine) -> Driver:
        return MockUpmemDriver(machine)

    @pytest.fixture
    def program(self) -> Program:
        return DOUBLE

    @pytest.fixture
    def faulty_program(self) -> Program:
        return CRASH


def test_the_kit_goes_red_for_a_rank_that_ignores_alignment(machine, monkeypatch):
    from hal.interfaces.upmem import MemoryKind

    monkeypatch.setattr(MemoryKind, "alignment_bytes", property(lambda _: 1))
    rank = opened(machine)
    rank.load(DOUBLE)
    check = UpmemConformance().test_alignment_bounds_and_names_are_checked_before_anything_is_copied
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(rank, rank.device, "input", 4, 8)


def test_the_kit_goes_red_for_a_rank_that_two_may_have(machine, monkeypatch, tmp_path):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    driver = MockUpmemDriver(machine)
    device = driver.describe()[0]
    pages = GuardPages(tmp_path / "pages")
    pages.grant(device.id, 1)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        UpmemConformance().test_a_rank_has_one_owner(
            driver, device, pages, Grant(lease="kit", fence=1), opened(machine)
        )


# -- discovery --------------------------------------------------------------------------------------------------------


def test_ranks_are_found_with_their_dimm(machine):
    found = {device.id: device for device in MockUpmemDriver(machine).discover(Deadline.after(1)).devices}
    rank = found[RANK]
    assert (rank.kind, rank.name, rank.parent, rank.allocatable) == (Kind.UPMEM, "dpu_rank0", "dimm-DIMM42", True)
    assert rank.capacity == {"dpus": 7, "mram_bytes": 7 * (64 << 20)}
    dimm = found["dimm-DIMM42"]
    assert (dimm.kind, dimm.allocatable, dimm.location.slot) == (Kind.MEMORY, False, "channel 1 slot 0")


def test_a_rank_shares_the_fate_of_its_dimm(machine):
    driver = MockUpmemDriver(machine)
    rank = opened(machine)
    machine.inject("dimm-DIMM42", FaultType.LOST)
    assert driver.find(RANK).presence is Presence.GHOST
    assert driver.sample([RANK], Deadline.after(1))[0].type == "DeviceLost"
    with pytest.raises(DeviceGone):
        rank.status()
    with pytest.raises(DeviceGone):
        driver.prepare(RANK, Grant(lease="a", fence=1), Deadline.after(1))
    machine.heal()
    assert rank.status().state is RunState.EMPTY


# -- while it runs ----------------------------------------------------------------------------------------------------


GATE = threading.Event()
INSIDE = threading.Event()


def wait_at_the_gate(ctx: Context) -> None:
    INSIDE.set()
    while not GATE.wait(0.001):
        ctx.reschedule()


@pytest.fixture
def running(rank):
    GATE.clear()
    INSIDE.clear()
    symbols = {"data": Mram(64), "word": Wram(4)}
    rank.load(Program(name="gate", kernel=wait_at_the_gate, symbols=symbols))
    run = rank.launch()
    assert INSIDE.wait(60)
    yield rank, run
    GATE.set()


def test_mram_belongs_to_the_units_while_they_run(running):
    rank, run = running
    assert rank.status().state is RunState.RUNNING
    for step in (
        lambda: rank.copy_to(0, "data", 0, bytes(8)),
        lambda: rank.copy_from(0, "data", 0, 8),
        lambda: rank.broadcast("data", 0, bytes(8)),
        lambda: rank.push(Direction.TO_DPU, "data", 0, {0: bytes(8)}),
        lambda: rank.load(DOUBLE),
        lambda: rank.launch(),
    ):
        with pytest.raises(DeviceBusy):
            step()
    rank.copy_to(0, "word", 0, b"wram")
    assert rank.copy_from(0, "word", 0, 4) == b"wram"
    with pytest.raises(DeadlineExceeded):
        run.wait(Deadline.after(0.01))
    GATE.set()
    run.wait(Deadline.after(60))
    rank.copy_to(0, "data", 0, bytes(8))


def test_closing_a_running_rank_stops_the_run(running):
    rank, run = running
    rank.close()
    with pytest.raises(DeviceGone):
        run.wait(Deadline.after(60))


def test_a_lease_that_ends_stops_the_run(machine, tmp_path):
    GATE.clear()
    INSIDE.clear()
    driver = MockUpmemDriver(machine)
    pages = GuardPages(tmp_path / "pages")
    pages.grant(RANK, 1)
    rank = driver.open(RANK, pages.guard(RANK, "lease", 1), Deadline.after(10))
    rank.load(Program(name="gate", kernel=wait_at_the_gate))
    run = rank.launch()
    assert INSIDE.wait(60)
    pages.revoke(RANK, 1)
    with pytest.raises(LeaseEnded):
        run.wait(Deadline.after(60))


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", [FaultType.RUN_FAULT, FaultType.ECC_UNCORRECTABLE])
def test_one_unit_that_faults_is_named_and_the_others_finish(machine, rank, type):
    machine.inject(RANK, type, dpu=5, tasklet=2)
    rank.load(DOUBLE)
    rank.broadcast("count", 0, count_bytes(2))
    rank.broadcast("input", 0, b"\1\0\0\0\2\0\0\0")
    with pytest.raises(ProgramFault, match="dpu 5 tasklet 2"):
        rank.launch().wait()
    assert [(fault.dpu, fault.tasklet) for fault in rank.status().faults] == [(5, 2)]
    assert rank.copy_from(4, "output", 0, 8) == b"\2\0\0\0\4\0\0\0"
    assert rank.copy_from(5, "output", 0, 8) == bytes(8)
    assert MockUpmemDriver(machine).find(RANK).health is Health.DEGRADED


def test_a_rank_that_lies_says_what_the_fault_says(machine):
    machine.inject(RANK, FaultType.LIE, attribute="chip", value="v9Z")
    assert MockUpmemDriver(machine).find(RANK).value("chip") == "v9Z"


def test_a_lost_rank_is_gone_until_it_is_reset(machine, rank):
    driver = MockUpmemDriver(machine)
    rank.load(DOUBLE)
    machine.inject(RANK, FaultType.LOST)
    for step in (rank.status, rank.launch().wait, lambda: opened(machine)):
        with pytest.raises(DeviceGone):
            step()
    driver.reset(RANK).wait()
    assert driver.find(RANK).health is Health.HEALTHY
    with pytest.raises(DeviceGone, match="open it again"):
        rank.status()
    opened(machine).close()


def test_a_rank_that_is_lost_in_the_middle_ends_the_run(tmp_path):
    machine = Machine(graph(), tmp_path, RealClock())
    GATE.clear()
    INSIDE.clear()
    with opened(machine) as rank:
        rank.load(Program(name="gate", kernel=wait_at_the_gate))
        run = rank.launch()
        assert INSIDE.wait(60)
        machine.inject(RANK, FaultType.LOST)
        with pytest.raises(DeviceGone):
            run.wait(Deadline.after(60))


def test_a_hung_rank_costs_the_deadline(machine, rank):
    rank.load(DOUBLE)
    machine.inject(RANK, FaultType.HANG)
    with pytest.raises(DeadlineExceeded):
        rank.launch(deadline=Deadline.after(5)).wait()
    with pytest.raises(DeadlineExceeded):
        rank.status(deadline=Deadline.after(5))
    machine.heal()
    assert rank.status().state is RunState.FAULT


def test_a_slow_rank_takes_its_time(machine, rank):
    rank.load(DOUBLE)
    machine.inject(RANK, FaultType.SLOW, seconds=3.0)
    before = machine.clock.now()
    rank.launch().wait()
    assert machine.clock.now() == before + 3.0


# -- other processes --------------------------------------------------------------------------------------------------


def in_another_process(machine: Machine, body: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import os, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "from test_upmem import *\n"
        "machine = Machine(graph(), Path(sys.argv[2]), VirtualClock())\n" + body
    )
    command = [sys.executable, "-c", script, __file__, str(machine.state.folder)]
    return subprocess.run(command, timeout=60, check=True, capture_output=True, text=True)


def test_a_rank_that_one_process_has_is_busy_for_others_until_it_dies(machine):
    with opened(machine) as rank:
        in_another_process(
            machine,
            "try:\n    opened(machine)\nexcept DeviceBusy:\n    sys.exit(0)\nsys.exit(1)\n",
        )
        assert rank.status().state is RunState.EMPTY
    in_another_process(machine, "rank = opened(machine); rank.load(DOUBLE)\nos._exit(0)\n")
    opened(machine).close()


def test_a_holder_that_does_not_let_go_is_cut_off_by_unprepare(machine):
    stale = opened(machine)
    stale.load(DOUBLE)
    stale.copy_to(0, "input", 0, b"not mine")
    MockUpmemDriver(machine).unprepare(RANK, Grant(lease="old", fence=1), Deadline.after(1))
    with opened(machine) as fresh:
        fresh.load(DOUBLE)
        assert fresh.copy_from(0, "input", 0, 8) == bytes(8)
    with pytest.raises(DeviceGone):
        stale.copy_to(0, "input", 0, bytes(8))


def test_a_program_can_be_sent_to_another_process(machine):
    sent = pickle.dumps(DOUBLE).hex()
    in_another_process(
        machine,
        f"program = pickle.loads(bytes.fromhex('{sent}'))\n"
        "with opened(machine) as rank:\n"
        "    rank.load(program)\n"
        "    rank.broadcast('count', 0, count_bytes(2))\n"
        "    rank.broadcast('input', 0, bytes([3, 0, 0, 0, 4, 0, 0, 0]))\n"
        "    rank.launch().wait()\n"
        "    assert rank.copy_from(0, 'output', 0, 8) == bytes([6, 0, 0, 0, 8, 0, 0, 0])\n",
    )
