"""What is special to the ranks: libraries that are not there, trees, owners that die, errors that a program earns."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.contract import Cause, Context, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, DeviceGone, InvalidArgument, ProgramFault, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.upmem import RunState
from hal.model.attributes import Absence
from hal_mocks.faults import FaultType
from hal_upmem import hal_drivers
from hal_upmem.driver import UpmemDriver
from hal_upmem.elf import symbol_names
from plugins.upmem.tests.conftest import Room

RANK = "upmem-DIMM42-0"

LOCKED = """
#include <defs.h>
#include <mutex.h>
MUTEX_INIT(door);
int main(void) { mutex_lock(door); if (me() != 0) mutex_unlock(door); return 0; }
"""

COUNTED = """
#include <defs.h>
#include <stdint.h>
__host uint64_t word;
int main(void) { word += 1; return 0; }
"""


def soon() -> Deadline:
    return Deadline.after(20)


@pytest.fixture
def driver(room: Room) -> UpmemDriver:
    return UpmemDriver(room.hosts, room.environ)


def readiness(root: Path, environ: dict[str, str]) -> tuple[Cause, str]:
    (factory,) = hal_drivers()
    found = factory.create(Context(hosts=(HostRoot(node="n", root=str(root)),), environ=environ)).readiness()
    assert "\n" not in found.detail + found.remedy
    return found.cause, found.detail


def test_what_is_missing_is_told_in_one_line(tmp_path: Path, room: Room) -> None:
    assert readiness(tmp_path, {})[0] is Cause.NO_DRIVER
    (tmp_path / "sys" / "class" / "dpu_rank").mkdir(parents=True)
    assert readiness(tmp_path, {})[0] is Cause.NO_HARDWARE
    assert room.host.root is not None
    tree = Path(room.host.root)
    cause, detail = readiness(tree, {"HAL_UPMEM_LIBRARY": str(tmp_path / "libdpu.so")})
    assert (cause, "host library" in detail) == (Cause.NO_LIBRARY, True)
    other = next(path for path in Path(sys.executable).resolve().parents[1].rglob("*.so") if path.is_file())
    assert readiness(tree, {"HAL_UPMEM_LIBRARY": str(other)})[0] in (Cause.BROKEN, Cause.NO_LIBRARY)
    assert readiness(tree, room.environ)[0] is Cause.READY


def test_ranks_of_another_tree_are_shown_and_left_alone(room: Room) -> None:
    environ = {**room.environ, "HAL_UPMEM_ROOT": "/somewhere/else"}
    driver = UpmemDriver(room.hosts, environ)
    devices = driver.discover(soon()).devices
    assert {device.allocatable for device in devices} == {False}
    assert {device.id for device in devices} == {RANK, "upmem-DIMM42-1", "dimm-DIMM42"}
    with pytest.raises(Unsupported, match="does not speak for"):
        driver.open(RANK, OpenGuard(), soon())


def test_a_dimm_is_not_leased(driver: UpmemDriver) -> None:
    with pytest.raises(Unsupported, match="ranks are"):
        driver.prepare("dimm-DIMM42", Grant(lease="l", fence=1), soon())


def test_a_rank_says_which_units_are_masked(driver: UpmemDriver) -> None:
    device = next(device for device in driver.discover(soon()).devices if device.id == RANK)
    assert (device.value("dpus"), device.value("disabled_dpus"), device.value("chip")) == (7, (3,), "v1A")
    with driver.open(RANK, OpenGuard(), soon()) as rank:
        assert rank.rank().dpus == (0, 1, 2, 4, 5, 6, 7)
        assert rank.telemetry()["last_run_cycles"].absent is Absence.NOT_REPORTED


def _hold(environ: dict[str, str], root: str, ready: object) -> None:
    os.environ.update(environ)
    driver = UpmemDriver([HostRoot(node="node0", root=root)], environ)
    handle = driver.open(RANK, OpenGuard(), Deadline.after(20))
    ready.set()  # type: ignore[attr-defined]
    signal.pause()
    handle.close()


def test_a_killed_holder_loses_its_rank_and_nobody_else_has_it_before(room: Room, driver: UpmemDriver) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(room.environ, room.host.root, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(DeviceBusy) as caught:
        driver.open(RANK, OpenGuard(), soon())
    assert caught.value.device == RANK
    driver.open("upmem-DIMM42-1", OpenGuard(), soon()).close()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(20)
    driver.open(RANK, OpenGuard(), soon()).close()


def test_what_the_kernel_calls_owned_is_not_prepared_nor_given_up(room: Room, driver: UpmemDriver) -> None:
    assert room.host.root is not None
    owned = Path(room.host.root, "sys", "class", "dpu_rank", "dpu_rank0", "is_owned")
    driver.discover(soon())
    owned.write_text("1\n")
    for verb, fence in ((driver.prepare, 3), (driver.unprepare, 4)):
        with pytest.raises(DeviceBusy, match="still owns"):
            verb(RANK, Grant(lease="l", fence=fence), soon())
    owned.write_text("0\n")
    driver.unprepare(RANK, Grant(lease="l", fence=4), soon())


def test_a_lock_that_is_never_released_is_named(driver: UpmemDriver, compiled: Callable[..., Path]) -> None:
    with driver.open(RANK, OpenGuard(), soon()) as rank:
        rank.load(compiled(LOCKED))
        with pytest.raises(ProgramFault, match=r"dpu 0.*mutex"):
            rank.launch().wait(soon())
        assert rank.status().state is RunState.FAULT
        assert "mutex" in rank.log(0)


def test_a_run_counts_simulated_cycles_and_says_so(driver: UpmemDriver, compiled: Callable[..., Path]) -> None:
    with driver.open(RANK, OpenGuard(), soon()) as rank:
        rank.load(compiled(COUNTED, "-DNR_TASKLETS=1"))
        rank.launch().wait(soon())
        cycles = rank.telemetry()["last_run_cycles"]
        assert isinstance(cycles.value, int)
        assert cycles.value > 0
        assert "simulated" in cycles.source
        assert rank.copy_from(0, "word", 0, 8) == (1).to_bytes(8, "little")


@pytest.mark.parametrize("program", ["/nonexistent", "", 7, b"\0", __file__])
def test_what_is_no_program_is_refused(driver: UpmemDriver, program: object) -> None:
    with driver.open(RANK, OpenGuard(), soon()) as rank:
        with pytest.raises(InvalidArgument) as caught:
            rank.load(program)
        assert caught.value.device == RANK
        assert rank.status().state is RunState.EMPTY


def test_a_rank_that_is_lost_is_told_and_the_other_goes_on(room: Room, driver: UpmemDriver) -> None:
    room.machine.inject(RANK, FaultType.LOST)
    from hal_mocks.upmem_sim import sync

    sync(room.machine)
    with pytest.raises((DeviceGone, DeviceBusy, InvalidArgument)) as caught:
        driver.open(RANK, OpenGuard(), soon())
    assert caught.value.device == RANK
    driver.open("upmem-DIMM42-1", OpenGuard(), soon()).close()
    room.machine.heal(RANK)
    sync(room.machine)
    driver.open(RANK, OpenGuard(), soon()).close()


def test_a_forked_child_neither_uses_nor_frees_the_rank(driver: UpmemDriver) -> None:
    with driver.open(RANK, OpenGuard(), soon()) as rank:
        child = os.fork()
        if child == 0:
            try:
                rank.telemetry()
            except InvalidArgument:
                rank.close()
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert rank.telemetry()["dpus"].value == 7
        with pytest.raises(DeviceBusy):
            driver.open(RANK, OpenGuard(), soon())


@given(data=st.binary(max_size=400), head=st.booleans())
def test_any_file_is_names_or_a_value_error(data: bytes, head: bool) -> None:
    if head:
        data = b"\x7fELF\x01\x01" + data
    try:
        names = symbol_names(data)
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)
