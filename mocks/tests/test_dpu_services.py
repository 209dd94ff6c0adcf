"""Services of the mock DPU are real processes: they outlive their starter, keep their limits, and leave nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, InvalidArgument, StaleFence, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import ServiceSpec, ServiceState
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.dpu_processes import start_time
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

SOON = 20.0
FOREVER = "exec sleep 600"


def open_machine(folder: Path) -> Machine:
    return Machine(load_profile("bluefield-host", seed=7), folder, VirtualClock())


def open_card(machine: Machine, fence: int) -> tuple[MockDpuDriver, MockDpu]:
    driver = MockDpuDriver(machine)
    dpu_id = driver.describe()[0].id
    driver.prepare(dpu_id, Grant(lease=f"lease-{fence}", fence=fence), Deadline.after(SOON))
    return driver, driver.open(dpu_id, OpenGuard(f"lease-{fence}", fence), Deadline.after(SOON))


def until(holds: Callable[[], object]) -> None:
    deadline, pause = Deadline.after(SOON), threading.Event()
    while not holds():
        assert not deadline.expired, "waited in vain"
        pause.wait(0.005)


def sh(name: str, script: str, **fields: object) -> ServiceSpec:
    return ServiceSpec(name=name, command=("/bin/sh", "-c", script), **fields)


@pytest.fixture
def card(tmp_path: Path):
    driver, dpu = open_card(open_machine(tmp_path / "state"), fence=1)
    yield driver, dpu
    driver.unprepare(dpu.device.id, Grant(lease="end", fence=1_000_000), Deadline.after(SOON))


@pytest.fixture
def dpu(card: tuple[MockDpuDriver, MockDpu]) -> MockDpu:
    return card[1]


def _deploy_and_exit(folder: str, fence: int) -> None:
    _, dpu = open_card(open_machine(Path(folder)), fence)
    dpu.deploy(sh("stays", f"echo alive; {FOREVER}")).wait(Deadline.after(SOON))


def _run(target: Callable[..., None], *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(SOON)
    assert process.exitcode == 0


def _killed_while_deploying(folder: str, fence: int) -> None:
    _, dpu = open_card(open_machine(Path(folder)), fence)
    dpu.deploy(sh("stays", FOREVER)).wait(Deadline.after(SOON))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_service_outlives_the_process_that_deployed_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    _run(_deploy_and_exit, str(folder), 1)
    driver, dpu = open_card(open_machine(folder), fence=1)
    (service,) = dpu.services()
    assert service.state is ServiceState.RUNNING
    assert start_time(service.pid)
    until(lambda: dpu.logs("stays") == "alive\n")
    driver.unprepare(dpu.device.id, Grant(lease="lease-1", fence=1), Deadline.after(SOON))
    assert not start_time(service.pid)
    assert dpu.services() == ()


def test_the_next_lease_finds_nothing_of_a_holder_that_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    process = multiprocessing.get_context("spawn").Process(target=_killed_while_deploying, args=(str(folder), 1))
    process.start()
    process.join(SOON)
    assert process.exitcode == -signal.SIGKILL
    machine = open_machine(folder)
    driver = MockDpuDriver(machine)
    observer = driver.open(driver.describe()[0].id, OpenGuard(), Deadline.after(SOON))
    (service,) = observer.services()
    assert service.state is ServiceState.RUNNING
    open_card(machine, fence=2)
    assert not start_time(service.pid)
    assert observer.services() == ()


def test_unprepare_of_an_old_lease_leaves_the_new_ones_services_alone(
    card: tuple[MockDpuDriver, MockDpu],
) -> None:
    driver, first = card
    driver.unprepare(first.device.id, Grant(lease="lease-1", fence=1), Deadline.after(SOON))
    _, second = open_card(driver.machine, fence=2)
    second.deploy(sh("mine", FOREVER)).wait(Deadline.after(SOON))
    with pytest.raises(StaleFence):
        driver.unprepare(first.device.id, Grant(lease="lease-1", fence=1), Deadline.after(SOON))
    driver.prepare(second.device.id, Grant(lease="lease-2", fence=2), Deadline.after(SOON))
    assert [service.state for service in second.services()] == [ServiceState.RUNNING]


HIDES = "env -i setsid sh -c 'sleep 601 & echo child $!' & wait; "


def hidden_child(dpu: MockDpu, name: str) -> int:
    until(lambda: "child" in dpu.logs(name))
    return int(dpu.logs(name).split()[1])


def test_stop_reaches_children_that_left_session_and_environment(dpu: MockDpu) -> None:
    dpu.deploy(sh("family", HIDES + FOREVER)).wait(Deadline.after(SOON))
    child = hidden_child(dpu, "family")
    assert start_time(child)
    dpu.stop("family").wait(Deadline.after(SOON))
    assert not Path(f"/proc/{child}").exists(), "not even a zombie"


def test_children_end_with_the_command_as_in_a_container(dpu: MockDpu) -> None:
    dpu.deploy(sh("short", HIDES + "exit 5")).wait(Deadline.after(SOON))
    child = hidden_child(dpu, "short")
    until(lambda: dpu.services()[0].state is ServiceState.EXITED)
    assert dpu.services()[0].exit_code == 5
    assert not Path(f"/proc/{child}").exists()


def test_orphans_of_a_killed_supervisor_are_found_by_their_token(card: tuple[MockDpuDriver, MockDpu]) -> None:
    driver, dpu = card
    service = dpu.deploy(sh("orphan", f"echo child $$; {FOREVER}")).wait(Deadline.after(SOON))
    child = hidden_child(dpu, "orphan")
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: dpu.services()[0].state is ServiceState.EXITED)
    assert dpu.services()[0].exit_code is None, "nobody saw how it ended"
    assert start_time(child)
    driver.unprepare(dpu.device.id, Grant(lease="lease-1", fence=1), Deadline.after(SOON))
    assert not start_time(child)


def test_a_handler_of_sigterm_has_the_last_word(dpu: MockDpu) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done"
    dpu.deploy(sh("polite", script)).wait(Deadline.after(SOON))
    until(lambda: "up" in dpu.logs("polite"))
    service = dpu.stop("polite").wait(Deadline.after(SOON))
    assert (service.state, service.exit_code) == (ServiceState.STOPPED, 3)
    assert dpu.logs("polite").endswith("bye\n")


def test_a_service_can_be_stopped_as_soon_as_it_is_deployed(dpu: MockDpu) -> None:
    for number in range(5):
        dpu.deploy(sh(f"short{number}", FOREVER)).wait(Deadline.after(SOON))
        service = dpu.stop(f"short{number}", grace_seconds=SOON).wait(Deadline.after(SOON / 2))
        assert service.exit_code == -signal.SIGTERM, "it got the signal, and was not killed after the grace"


def test_a_file_that_cannot_be_executed_says_why(dpu: MockDpu, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(InvalidArgument, match="Exec format error"):
        dpu.deploy(ServiceSpec(name="a", command=(str(program),))).wait(Deadline.after(SOON))
    assert dpu.services() == ()


def test_how_a_service_was_killed_is_told(dpu: MockDpu) -> None:
    dpu.deploy(sh("deaf", "trap '' TERM; echo up; while :; do sleep 0.01; done")).wait(Deadline.after(SOON))
    until(lambda: "up" in dpu.logs("deaf"))
    assert dpu.stop("deaf", grace_seconds=0.05).wait(Deadline.after(SOON)).exit_code == -signal.SIGKILL
    dpu.deploy(sh("crashes", "kill -SEGV $$")).wait(Deadline.after(SOON))
    until(lambda: dpu.services()[1].state is ServiceState.EXITED)
    assert dpu.services()[1].exit_code == -signal.SIGSEGV


def test_the_memory_limit_is_enforced(dpu: MockDpu) -> None:
    program = "bytearray(1 << 30)"
    spec = ServiceSpec(name="greedy", command=(sys.executable, "-I", "-S", "-c", program), memory_bytes=512 << 20)
    dpu.deploy(spec).wait(Deadline.after(SOON))
    until(lambda: dpu.services()[0].state is ServiceState.EXITED)
    assert dpu.services()[0].exit_code == 1
    assert "MemoryError" in dpu.logs("greedy")


def test_the_core_limit_is_enforced_and_stays_with_the_service(dpu: MockDpu) -> None:
    mine = os.sched_getaffinity(0)
    dpu.deploy(sh("narrow", f"nproc; {FOREVER}", cores=1)).wait(Deadline.after(SOON))
    until(lambda: dpu.logs("narrow") == "1\n")
    assert os.sched_getaffinity(0) == mine


def test_load_follows_the_cores_that_are_reserved(dpu: MockDpu) -> None:
    idle = dpu.telemetry()
    dpu.deploy(sh("half", FOREVER, cores=8, memory_bytes=1 << 30)).wait(Deadline.after(SOON))
    busy = dpu.telemetry()
    assert (idle["arm_utilization_percent"].value, busy["arm_utilization_percent"].value) == (0.0, 50.0)
    assert busy["temperature_celsius"].value > idle["temperature_celsius"].value
    assert busy["memory_used_bytes"].value - idle["memory_used_bytes"].value == 1 << 30


def test_a_name_is_free_again_once_the_service_has_ended(dpu: MockDpu) -> None:
    dpu.deploy(sh("again", "echo first")).wait(Deadline.after(SOON))
    until(lambda: dpu.services()[0].state is ServiceState.EXITED)
    dpu.deploy(sh("again", f"echo second; {FOREVER}")).wait(Deadline.after(SOON))
    until(lambda: dpu.logs("again") == "second\n")
    assert len(dpu.services()) == 1


def test_memory_is_shared_with_exposed_namespaces(dpu: MockDpu) -> None:
    left = dpu.nvme_backings()["memory"]
    dpu.expose_nvme("most", size_bytes=left - 4096)
    with pytest.raises(DeviceBusy):
        dpu.deploy(sh("late", FOREVER, memory_bytes=8192)).wait(Deadline.after(SOON))


def test_only_the_end_of_a_long_log_is_given(dpu: MockDpu) -> None:
    dpu.deploy(sh("wordy", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done")).wait(Deadline.after(SOON))
    until(lambda: dpu.services()[0].state is ServiceState.EXITED)
    assert dpu.logs("wordy", tail_bytes=25) == "line 498\nline 499\n"


@pytest.mark.parametrize(
    "spec",
    [
        ServiceSpec(name="", command=("true",)),
        ServiceSpec(name="../escape", command=("true",)),
        ServiceSpec(name="nothing"),
        ServiceSpec(name="a", command=("no-such-program",)),
        ServiceSpec(name="a", command=("true",), ports=(70_000,)),
        ServiceSpec(name="a", command=("true",), cores=0),
        ServiceSpec(name="a", command=("true",), memory_bytes=1 << 50),
    ],
)
def test_a_service_that_makes_no_sense_is_refused_at_once(dpu: MockDpu, spec: ServiceSpec) -> None:
    with pytest.raises(InvalidArgument):
        dpu.deploy(spec)


def test_an_image_without_a_command_cannot_run_here(dpu: MockDpu) -> None:
    with pytest.raises(Unsupported):
        dpu.deploy(ServiceSpec(name="a", image="registry.example/a:1"))


def test_a_null_byte_in_an_argument_is_an_error_of_the_caller(dpu: MockDpu) -> None:
    with pytest.raises(InvalidArgument):
        dpu.deploy(ServiceSpec(name="a", command=("true", "a\0b"))).wait(Deadline.after(SOON))


def test_nobody_stops_or_reads_what_was_never_deployed(dpu: MockDpu) -> None:
    with pytest.raises(InvalidArgument):
        dpu.logs("nobody")
    with pytest.raises(InvalidArgument):
        dpu.stop("nobody").wait(Deadline.after(SOON))
