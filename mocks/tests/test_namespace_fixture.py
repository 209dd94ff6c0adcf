from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import DeviceGone, DriverError
from hal_mocks.faults import FaultType


def functions_of_pci() -> list[str]:
    return sorted(os.listdir("/sys/bus/pci/devices"))


def test_a_function_called_in_the_namespace_sees_the_profile_and_this_process_does_not(hal_namespace, hal_machine):
    outside = functions_of_pci()
    inside = hal_namespace.run(functions_of_pci)
    assert inside == sorted(function.address for function in hal_machine.graph.hosts[0].pci)
    assert functions_of_pci() == outside


def test_what_a_function_raises_is_raised_here_with_the_place_it_came_from(hal_namespace):
    def fail() -> None:
        raise DeviceGone("fell off", device="gpu0")

    with pytest.raises(DeviceGone, match="gpu0") as caught:
        hal_namespace.run(fail)
    assert "in fail" in "".join(caught.value.__notes__)


def test_what_cannot_be_brought_back_is_said_so(hal_namespace):
    with pytest.raises(DriverError, match="cannot be brought back"):
        hal_namespace.run(lambda: socket.socket())


def test_a_function_that_kills_its_process_is_an_error_and_no_hang(hal_namespace):
    with pytest.raises(DriverError, match="ended its process"):
        hal_namespace.run(lambda: os.kill(os.getpid(), 9))


def test_a_program_starts_where_the_test_is_with_the_users_own_rights(hal_namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = hal_namespace.run_command(["sh", "-c", "pwd; id -u; id -g"])
    assert done.stdout.split() == [str(tmp_path), str(os.getuid()), str(os.getgid())]


def test_no_mock_is_named_to_programs_but_one_variable_tells_hal_mock(hal_namespace, monkeypatch):
    monkeypatch.setenv("HAL_SYSFS_ROOT", "/elsewhere")
    done = hal_namespace.run_command(["env"])
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert not names & {"HAL_MACHINE", "HAL_SYSFS_ROOT"}
    assert "HAL_MOCK_MACHINE" in names


def test_faults_of_the_test_act_in_the_namespace(hal_namespace, hal_fault):
    before = hal_namespace.run(functions_of_pci)
    hal_fault("gpu3", "fallen-off-bus")
    assert len(hal_namespace.run(functions_of_pci)) == len(before) - 1
    hal_fault.heal()
    assert hal_namespace.run(functions_of_pci) == before


def test_a_program_inside_breaks_the_machine_of_the_test(hal_namespace, hal_machine):
    hal_mock = Path(sys.executable).with_name("hal-mock")
    done = hal_namespace.run_command([hal_mock, "fault", "gpu0", "lost"])
    assert done.returncode == 0, done.stderr
    assert [fault.type for fault in hal_machine.faults_of(hal_machine.resolve("gpu0"))] == [FaultType.LOST]


def test_the_network_is_another_with_a_loopback_that_works(hal_namespace):
    def connect() -> list[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
        return [name for _, name in socket.if_nameindex()]

    assert "lo" in hal_namespace.run(connect)
    assert os.readlink("/proc/self/ns/net") != hal_namespace.run(lambda: os.readlink("/proc/self/ns/net"))


def test_a_program_outlives_its_start_and_is_ended_as_any_other(hal_namespace):
    with hal_namespace.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cat:
        out, _ = cat.communicate("through\n", timeout=10)
    assert (out, cat.returncode) == ("through\n", 0)


def test_sysfs_cannot_be_written_through_the_namespace(hal_namespace):
    def write() -> None:
        Path("/sys/class/infiniband/mlx5_0/node_desc").write_text("other")

    with pytest.raises(OSError, match="Read-only"):
        hal_namespace.run(write)


@pytest.mark.hal_machine("rack")
@pytest.mark.hal_namespace(host="rack-1-n2")
def test_the_marker_chooses_the_host_of_a_rack(hal_namespace, hal_machine):
    (host,) = (host for host in hal_machine.graph.hosts if host.name == "rack-1-n2")
    assert hal_namespace.run(functions_of_pci) == sorted(function.address for function in host.pci)


@pytest.mark.hal_machine("hostile")
def test_files_without_permission_stay_so_for_an_ordinary_user(hal_namespace, hal_machine):
    hidden = [
        quirk.path for quirk in hal_machine.graph.hosts[0].quirks if quirk.how == "unreadable" and "{" not in quirk.path
    ]
    for path in hidden:
        with pytest.raises(OSError, match=path.rpartition("/")[2]):
            hal_namespace.run(lambda path=path: Path("/", path).read_bytes())
