"""``hal run`` with real processes on mock machines: near its devices, told to leave, started again, given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hal.interfaces.deadline import Deadline
from tests.flows.conftest import BIN

LOOK = """
import json, os, sys
facts = {"pid": os.getpid(), "group": os.getpgid(0), "fds": sorted(os.listdir("/proc/self/fd")),
         "environ": dict(os.environ), "argv": sys.argv[1:], "opened": {}}
for line in open("/proc/self/status"):
    name, _, value = line.partition(":")
    facts[name] = value.strip()
facts["numa_maps"] = open("/proc/self/numa_maps").read() if os.path.exists("/proc/self/numa_maps") else ""
for path in ("/dev/null", "/dev/urandom", "/dev/fuse"):
    try:
        os.close(os.open(path, os.O_RDONLY))
        facts["opened"][path] = True
    except OSError as error:
        facts["opened"][path] = error.strerror
json.dump(facts, open(os.environ["OUT"], "w"))
sys.exit(7)
"""

WORKER = """
import os, signal, sys
out = open(os.environ["OUT"], "a", buffering=1)
run = os.environ["HAL_RESTARTS"]
def leave(*_):
    print(f"told {run}", file=out)
    if os.environ.get("STUBBORN"): return
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR1, lambda *_: print("usr1", file=out))
print('start', run, os.getpid(), os.environ['HAL_LEASE'], os.environ['CUDA_VISIBLE_DEVICES'].count('GPU'), file=out)
if run != "0": sys.exit(5)
while True: signal.pause()
"""


def until(condition, seconds=20):
    deadline = Deadline.after(seconds)
    while not (found := condition()):
        assert not deadline.expired, "it did not come to be so"
        time.sleep(0.02)
    return found


@pytest.fixture
def here(doors, mock, tmp_path):
    """Runs hal on a mock machine, now or in the background."""

    class Here:
        out = tmp_path / "out"
        environ = {**doors.environ, **mock("dgx-h100"), "OUT": str(tmp_path / "out"), "PYTHONWARNINGS": "default"}
        started: list[subprocess.Popen[str]] = []

        def hal(self, *words, **environ):
            return subprocess.run(
                [BIN / "hal", *words],
                env={**self.environ, **environ},
                capture_output=True,
                text=True,
                timeout=100,
                stdin=subprocess.DEVNULL,
                check=False,
            )

        def start(self, *words, **environ):
            process = subprocess.Popen(
                [BIN / "hal", *words],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.started.append(process)
            return process

        def lines(self):
            return self.out.read_text().splitlines() if self.out.exists() else []

        def leases(self):
            return json.loads(self.hal("list", "--json").stdout)["leases"]

    found = Here()
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def python(source, *words):
    return ["--", sys.executable, "-c", source, *words]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_program_runs_near_its_devices_with_their_names_and_gives_them_back(here):
    done = here.hal("run", "gpu:4", "rnic:4", "--pairwise", *python(LOOK, "--json", "--", "gpu:1"))
    assert done.returncode == 7, done.stderr
    facts = json.loads(here.out.read_text())
    assert facts["argv"] == ["--json", "--", "gpu:1"], "what follows -- is the program's"
    environ = facts["environ"]
    assert len(environ["CUDA_VISIBLE_DEVICES"].split(",")) == 4
    nics = environ["NCCL_IB_HCA"].lstrip("=").split(",")
    assert len(nics) == 4
    assert json.loads(environ["HAL_TICKET"])["lease"]["id"] == environ["HAL_LEASE"]
    assert facts["group"] == facts["pid"]
    assert facts["fds"] == ["0", "1", "2", "3"], "and one of its own, for looking"
    mine = sorted(os.sched_getaffinity(0))
    near = [cpu for cpu in mine if cpu < 56]  # the mock's first socket has the CPUs 0-55 and 112-167
    assert facts["Cpus_allowed_list"] in (_cpulist(near), _cpulist(mine))
    if facts["numa_maps"]:
        assert "bind:0" in facts["numa_maps"]
    filtered = facts["opened"]["/dev/fuse"] is not True
    print("device filter:", facts["opened"], done.stderr)
    if not filtered and Path("/dev/fuse").exists():
        assert "device filter cannot be set" in done.stderr, "it was not set, and says so"
    assert facts["opened"]["/dev/null"] is facts["opened"]["/dev/urandom"] is True
    assert here.leases() == []


def _cpulist(cpus):
    """Write CPUs as the kernel does."""
    parts, start = [], None
    for cpu in [*cpus, None]:
        if start is None:
            start = last = cpu
        elif cpu == last + 1:
            last = cpu
        else:
            parts.append(str(start) if start == last else f"{start}-{last}")
            start = last = cpu
    return ",".join(parts)


def test_exit_codes_are_those_of_a_shell(here):
    for command, code in ((["sh", "-c", "kill -9 $$"], 137), (["no-such-command-at-all"], 127)):
        done = here.hal("run", "gpu", "--devices", "any", "--", *command)
        assert done.returncode == code, done.stderr
    assert here.hal("run", "gpu").returncode == 64
    assert here.hal("run", "gpu:99", "--", "true").returncode == 1
    assert here.leases() == []


def test_a_binding_that_is_not_possible_is_said_and_refused_if_strict(here):
    far = ["run", "gpu", "--where", "numa_node == 1", "--devices", "any"]
    if max(os.sched_getaffinity(0)) >= 56:
        pytest.skip("this machine has CPUs of the mock's second socket")
    done = here.hal(*far, "--", "true")
    assert done.returncode == 0
    assert "not bound: none of the CPUs of NUMA node 1 may be used here" in done.stderr
    done = here.hal(*far, "--strict", "--", "true")
    assert done.returncode == 1
    assert "--numa no" in done.stderr
    assert here.leases() == []


def test_signals_are_passed_on_and_nobody_outlives_a_killed_run(here):
    run = here.start("run", "gpu:2", *python(WORKER))
    pid = int(until(here.lines)[0].split()[2])
    run.send_signal(signal.SIGUSR1)
    until(lambda: "usr1" in here.lines())
    run.kill()
    run.wait()
    until(lambda: not alive(pid))
    (lease,) = here.leases()
    assert lease["ttl_seconds"] == 60.0, "it expires by itself"


def test_one_that_is_pushed_out_is_told_and_starts_again_when_there_is_room(here, tmp_path):
    server = here.start("serve", "--socket", str(tmp_path / "s"))
    served = {"HAL_SERVER": str(tmp_path / "s")}
    until((tmp_path / "s").is_socket)
    words = ("gpu:4", "rnic:4", "--pairwise", "--grace", "10", "--requeue")
    run = here.start("run", *words, *python(WORKER), **served)
    _, _, _, lease, gpus = until(here.lines)[0].split()
    assert gpus == "4"
    pushed = here.hal("claim", "gpu:8", "--priority", "10", "--preempt", "--queue", "--id", "urgent", **served)
    assert pushed.returncode == 0, pushed.stderr
    assert here.lines()[1] == "told 0"
    assert here.hal("release", "urgent", **served).returncode == 0
    said, _ = run.communicate(timeout=100)
    assert run.returncode == 5, said
    again = here.lines()[2].split()
    assert (again[0], again[1], again[4]) == ("start", "1", "4")
    assert again[3] != lease
    assert "told to leave within" in said
    assert "SIGTERM" in said
    assert json.loads(here.hal("list", "--json", **served).stdout)["leases"] == []
    server.terminate()
    server.communicate(timeout=30)


def test_one_that_does_not_go_is_ended_when_its_grace_is_over(here):
    run = here.start("run", "gpu:8", "--grace", "1", *python(WORKER), STUBBORN="1")
    pid = int(until(here.lines)[0].split()[2])
    pushed = here.hal("claim", "gpu:8", "--priority", "10", "--preempt", "--queue", "--id", "urgent")
    assert pushed.returncode == 0, pushed.stderr
    said, _ = run.communicate(timeout=100)
    assert run.returncode == 75, said
    assert "devices were taken back" in said
    assert here.lines()[1:] == ["told 0"]
    assert not alive(pid)
    assert [lease["id"] for lease in here.leases()] == ["urgent"]
