"""What holds for an opened mock device of any kind: closing, deadlines, leaks, forks, killed processes."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from hal.drivers.contract import Grant, Reports
from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded, DeviceError, HalError, InvalidArgument
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import DpuMode
from hal.interfaces.rnic import ALL_ACCESS
from hal.model.event import EventType
from hal.testing.conformance import assert_error_is_for_people
from hal.testing.kinds.upmem import UpmemConformance
from hal_mocks import dpu_state
from hal_mocks.clock import RealClock, VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.gpu_store import GpuStore
from hal_mocks.machine import Machine
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.profile import load_profile
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.rnic_engine import Engine
from hal_mocks.upmem import MockUpmemDriver
from hal_mocks.upmem_handle import MockUpmem
from hal_mocks.upmem_programs import ADD

SOON = Deadline.after(600)


class KindOfDevice(NamedTuple):
    profile: str
    driver: Callable[[Machine], Any]
    use: Callable[[Any], object]
    verbs: tuple[str, ...]


def use_gpu(gpu: Any) -> None:
    gpu.copy_to_host(gpu.copy_to_device(np.ones(2 << 20, np.uint8)))


def use_rnic(nic: Any) -> None:
    region, near, far = nic.register(4096, ALL_ACCESS), nic.endpoint(), nic.endpoint()
    connection = near.connect(far.address)
    far.connect(near.address)
    connection.put(b"12345678", region.address, region.rkey).wait()
    connection.fetch_add(region.address, region.rkey, 1).wait()


def use_dpu(card: Any) -> None:
    card.offload("crc32", b"123456789").wait()


def use_pmem(region: Any) -> None:
    with region.map(region.namespaces()[0].name) as mapping:
        mapping.memcpy_persist(0, b"12345678")


KINDS = {
    "gpu": KindOfDevice("dgx-h100", MockGpuDriver, use_gpu, ("telemetry", "processes", "memory_info", "synchronize")),
    "rnic": KindOfDevice("dgx-h100", MockRnicDriver, use_rnic, ("telemetry", "ports", "counters", "endpoint")),
    "dpu": KindOfDevice("bluefield-host", MockDpuDriver, use_dpu, ("telemetry", "mode", "boot", "flows", "services")),
    "pmem": KindOfDevice("optane-server", MockPmemDriver, use_pmem, ("telemetry", "region", "namespaces")),
    "upmem": KindOfDevice(
        "upmem-server", MockUpmemDriver, lambda rank: rank.load(ADD), ("telemetry", "rank", "status", "symbols")
    ),
}
ALL = pytest.mark.parametrize("kind", list(KINDS))
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 warns of what is tested


def allocatable(driver: Any) -> str:
    return next(device.id for device in driver.discover(SOON).devices if device.allocatable)


def make(kind: str, folder: Path, clock: Any = None) -> tuple[Any, str]:
    driver = KINDS[kind].driver(Machine(load_profile(KINDS[kind].profile), folder, clock or VirtualClock()))
    return driver, allocatable(driver)


@ALL
def test_a_closed_handle_says_so_and_does_nothing(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    handle = driver.open(device, OpenGuard(), SOON)
    handle.close()
    for verb in KINDS[kind].verbs:
        with pytest.raises(DeviceError) as caught:
            getattr(handle, verb)()
        assert_error_is_for_people(caught.value, device)


@ALL
def test_a_deadline_that_has_passed_is_refused_before_anything_is_done(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    with driver.open(device, OpenGuard(), SOON) as handle:
        for verb in KINDS[kind].verbs:
            with pytest.raises(DeadlineExceeded) as caught:
                getattr(handle, verb)(deadline=Deadline.after(0))
            assert_error_is_for_people(caught.value, device)


@ALL
def test_a_hung_device_costs_the_deadline_and_no_more(kind, tmp_path):
    driver, device = make(kind, tmp_path, RealClock())
    with driver.open(device, OpenGuard(), SOON) as handle:
        driver.machine.inject(device, FaultType.HANG)
        deadline = Deadline.after(0.05)
        with pytest.raises(DeadlineExceeded):
            handle.telemetry(deadline=deadline)
        assert deadline.expired


@ALL
def test_opening_and_closing_leaks_nothing(kind, tmp_path):
    driver, device = make(kind, tmp_path)

    def once() -> None:
        with driver.open(device, OpenGuard(), SOON) as handle:
            KINDS[kind].use(handle)

    def held() -> tuple[int, int, int, int]:
        gc.collect()
        files = sum(len(found) for _, _, found in os.walk(tmp_path))
        mapped = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return len(os.listdir("/proc/self/fd")), mapped, threading.active_count(), files

    shared = set(os.listdir("/dev/shm"))
    for _ in range(3):
        once()
    before = held()
    for _ in range(50):
        once()
    assert held() == before
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "hal" in name]


@ALL
def test_a_handle_that_nobody_closed_goes_with_its_last_reference(kind, tmp_path):
    driver, device = make(kind, tmp_path)

    def held() -> int:
        gc.collect()  # again and again: a thread that was just called back holds its NIC for a moment
        return len(os.listdir("/proc/self/fd")) + threading.active_count()

    before = held()
    for _ in range(5):
        KINDS[kind].use(driver.open(device, OpenGuard(), SOON))
        gc.collect()
        deadline = Deadline.after(10)
        while held() > before + 2:  # what the driver itself opens at the first use
            deadline.check(during="waiting for what nobody holds to go")
    with driver.open(device, OpenGuard(), SOON) as handle:
        KINDS[kind].use(handle)


@ALL
@FORKS
def test_a_fork_does_not_carry_a_handle_over(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    with driver.open(device, OpenGuard(), SOON) as handle:
        KINDS[kind].use(handle)
        child = os.fork()
        if child == 0:  # nothing of pytest may run here
            try:
                handle.telemetry()
            except InvalidArgument as error:
                os._exit(0 if "process" in error.message and error.hint else 2)
            except BaseException:
                os._exit(3)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        KINDS[kind].use(handle)


@ALL
def test_a_process_killed_while_it_wrote_a_fence_does_not_lock_the_device_up(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    driver.prepare(device, Grant(lease="one", fence=3), SOON)
    fence = driver.machine.state.device(device) / "fence"
    inode = fence.stat().st_ino
    driver.prepare(device, Grant(lease="two", fence=4), SOON)
    assert fence.stat().st_ino != inode, "written in place: a kill between truncation and write leaves nothing"
    driver.unprepare(device, Grant(lease="two", fence=4), SOON)


FAULTS = {"gpu": ("xid", {"code": 79}), "rnic": ("link-down", {}), "dpu": ("fw-fatal", {}), "pmem": ("read-only", {})}


@ALL
def test_a_driver_says_by_itself_what_changes(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    assert isinstance(driver, Reports)
    events = driver.events(Deadline.after(30))
    fault, details = FAULTS.get(kind, ("lost", {}))
    driver.machine.inject(device, FaultType(fault), **details)
    came = next(event for event in events if event.subject == device and event.type is EventType.CONDITION)
    assert came.detail
    assert came.at == driver.machine.clock.now()
    driver.machine.heal(device)
    over = next(event for event in events if event.detail.endswith("is over"))
    assert over.subject == device
    assert list(driver.events(Deadline.after(0))) == []


@ALL
@FORKS
def test_two_processes_with_one_lease_and_one_killed_in_the_middle(kind, tmp_path):
    driver, device = make(kind, tmp_path)
    for _ in range(3):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # a process of its own, as far as files and locks go: it opens for itself and dies at work
            try:
                handle = (
                    KINDS[kind]
                    .driver(Machine(driver.machine.graph, tmp_path, VirtualClock()))
                    .open(device, OpenGuard(), Deadline.after(60))
                )
                KINDS[kind].use(handle)
                os.write(writer, b"x")
                while True:
                    KINDS[kind].use(handle)
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with driver.open(device, OpenGuard(), SOON) as handle:
            KINDS[kind].use(handle)
    driver.prepare(device, Grant(lease="next", fence=9), SOON)
    driver.unprepare(device, Grant(lease="next", fence=9), SOON)
    sessions = driver.machine.state.device(device) / "sessions"
    assert not sessions.exists() or not list(sessions.iterdir())


@ALL
def test_a_state_folder_that_is_gone_is_an_error_and_not_a_crash(kind, tmp_path):
    driver, device = make(kind, tmp_path / "state")
    handle = driver.open(device, OpenGuard(), SOON)
    shutil.rmtree(tmp_path / "state")
    for verb in KINDS[kind].verbs:
        with contextlib.suppress(HalError, OSError):
            getattr(handle, verb)()
    with contextlib.suppress(HalError, OSError):
        handle.close()


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def killed_after(function: Callable[..., object]) -> Callable[..., object]:
    def write(*arguments: object) -> None:
        function(*arguments)
        raise Killed

    return write


def test_what_a_killed_process_had_written_of_a_gpu_is_seen_by_the_others(tmp_path, monkeypatch):
    driver, device = make("gpu", tmp_path)
    other, _ = make("gpu", tmp_path)
    other.set_partitioning(device, False)
    assert not other.partitioning(device).pending
    with monkeypatch.context() as patched:
        patched.setattr(GpuStore, "_write", staticmethod(killed_after(GpuStore._write)))
        with pytest.raises(Killed):
            driver.set_partitioning(device, True)
    assert other.partitioning(device).pending


def test_what_a_killed_process_had_written_of_a_dpu_is_seen_by_the_others(tmp_path, monkeypatch):
    driver, device = make("dpu", tmp_path)
    other, _ = make("dpu", tmp_path)
    with driver.open(device, OpenGuard(), SOON) as dpu, other.open(device, OpenGuard(), SOON) as seen:
        assert seen.mode().pending is None
        with monkeypatch.context() as patched:
            patched.setattr(dpu_state, "write_whole", killed_after(dpu_state.write_whole))
            with pytest.raises(Killed):
                dpu.set_mode(DpuMode.NIC)
        assert seen.mode().pending is DpuMode.NIC


class Forgetful(MockUpmem):
    """A rank of a plugin whose author forgot a deadline, the closing and the time."""

    def status(self):
        return super().status()

    def telemetry(self, *, deadline=None):
        return {}


def test_the_kit_goes_red_for_verbs_that_forget_deadlines_and_closing(tmp_path):
    driver, device = make("upmem", tmp_path)
    kit, handle = UpmemConformance(), driver.open(device, OpenGuard(), SOON)
    kit.test_every_verb_takes_what_the_interface_says(handle)
    handle.__class__ = Forgetful
    with pytest.raises(AssertionError, match="status"):
        kit.test_every_verb_takes_what_the_interface_says(handle)
    with pytest.raises(pytest.fail.Exception):
        kit.test_a_deadline_that_has_passed_is_refused_at_once(handle, driver.find(device))
    with pytest.raises(pytest.fail.Exception):
        kit.test_a_closed_handle_refuses(handle, driver.find(device))


def test_an_engine_whose_thread_is_gone_before_it_is_woken_can_still_be_stopped(monkeypatch):
    class Watcher:
        def read(self, _): ...

    watcher, (near, far) = Watcher(), socket.socketpair()
    engine = Engine("early")
    engine.watch(near, watcher.read)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "rnic-early"]
    write = os.eventfd_write

    def wake_late(descriptor, value):
        far.send(b"1")  # what the thread watches wakes it, before whoever stops it comes to that
        thread.join(10)
        write(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", wake_late)
    engine.stop()
    assert not thread.is_alive()
    far.close()
