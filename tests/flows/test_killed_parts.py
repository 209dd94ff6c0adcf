"""kill -9 of one process of several: a driver's monitor, a server with a queue, ``hal run``. The others go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hal.api.ask import make_claim
from hal.api.client import Client
from hal.broker import command as c
from hal.interfaces.deadline import Deadline
from tests.flows.chaos_hooks import travel
from tests.flows.chaos_reader import follow, lines, look
from tests.flows.chaos_serve import set_wall_clock
from tests.flows.conftest import BIN

ROOT = Path(__file__).parents[2]

STALLING = """
    import json, os, time
    from pathlib import Path
    from hal.drivers.contract import READY, Discovery, DriverFactory
    from hal.drivers.hookspecs import hookimpl
    from hal.model.device import Device, Location
    from hal.model.kind import Kind

    HERE = Path(os.environ["CHAOS"])

    class Driver:
        name = "stalling"
        def readiness(self): return READY
        def discover(self, deadline):
            return Discovery(devices=tuple(
                Device(id=f"rank{n}", kind=Kind.UPMEM, name=f"rank{n}", driver="stalling",
                       location=Location(node="here"), allocatable=True) for n in range(2)))
        def sample(self, device_ids, deadline): return ()
        def prepare(self, device_id, grant, deadline): self.work("prepare", device_id, grant)
        def unprepare(self, device_id, grant, deadline): self.work("unprepare", device_id, grant)
        def open(self, device_id, guard, deadline): ...
        def close(self): ...
        def work(self, what, device_id, grant):
            stall = HERE / ("stall-" + what)
            if stall.exists():
                stall.rename(HERE / "stalled.new")
                (HERE / "stalled.new").write_text(f"{os.getpid()} {device_id}")
                (HERE / "stalled.new").rename(HERE / "stalled")
                time.sleep(600)
            with open(HERE / "hardware.jsonl", "a") as log:
                line = {"what": what, "device": device_id, "lease": grant.lease, "fence": grant.fence}
                log.write(json.dumps(line) + "\\n")

    @hookimpl
    def hal_drivers():
        return [DriverFactory(name="stalling", kinds=(Kind.UPMEM,), create=lambda context: Driver())]
"""


def until(condition, seconds=30):
    deadline = Deadline.after(seconds)
    while not (found := condition()):
        assert not deadline.expired, "it did not come to be so"
        time.sleep(0.01)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Serving:
    """``hal serve`` under clocks that can be turned."""

    def __init__(self, folder, environ):
        self.folder, self.environ = folder, environ
        self.socket = folder / "state/run/hal.sock"
        self.start()

    def start(self):
        words = [sys.executable, "-m", "tests.flows.chaos_serve", str(self.folder), "serve", "--json"]
        with (self.folder / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                [*words, "--state", str(self.folder / "state")],
                cwd=ROOT,
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert json.loads(self.process.stdout.readline())["serving"], (self.folder / "serve.log").read_text()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def client(self):
        return Client(self.socket, timeout_seconds=30)


@pytest.fixture
def serving(doors, tmp_path):
    started = []

    def start(wall=None, **environ):
        folder = tmp_path / "served"
        folder.mkdir()
        if wall is not None:
            set_wall_clock(folder, wall)
        started.append(Serving(folder, {**doors.environ, "PYTHONWARNINGS": "default", **environ}))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


@contextlib.contextmanager
def meanwhile(work):
    """Do something in a thread; what it returned is in the list at the end."""
    found = []

    def run():
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield found
    thread.join(60)
    assert not thread.is_alive()


def kill_the_stalled(folder):
    pid, device = until(lambda: (folder / "stalled").exists() and (folder / "stalled").read_text()).split()
    (folder / "stalled").unlink()
    os.kill(int(pid), signal.SIGKILL)
    return device


def test_a_driver_that_dies_in_the_middle_costs_its_device_a_while_and_nobody_else_anything(serving, doors, tmp_path):
    doors.install("stalling", STALLING)
    folder = tmp_path / "served"
    server = serving(CHAOS=str(folder))

    def claim(name, **words):
        return client.submit([make_claim("upmem", id=name, ttl_seconds=5000.0, where="driver == 'stalling'", **words)])

    with server.client() as client:
        (folder / "stall-prepare").touch()
        with meanwhile(lambda: claim("a")) as answers:
            broken = kill_the_stalled(folder)
        ((granted,),) = answers
        assert isinstance(granted, c.Granted), granted
        assert [device.id for device in granted.lease.devices] != [broken], "another one was taken"
        (refused,) = claim("b")
        assert isinstance(refused, c.Refused)
        assert "SIGKILL" in refused.reason or "could not be prepared" in refused.reason, refused.reason
        travel(folder, 120.0)
        (late,) = claim("c")
        assert [device.id for device in late.lease.devices] == [broken], "it is well again"

        (folder / "stall-unprepare").touch()
        with meanwhile(lambda: client.release("a")) as answers:
            kill_the_stalled(folder)
        assert answers[0].id == "a", "the lease is over, whatever became of its device"
        assert [lease.id for lease in client.list()] == ["c"]
        until(lambda: isinstance(claim(f"d{time.monotonic_ns()}")[0], c.Granted))
        assert server.process.poll() is None
        for lease in client.list():
            client.release(lease.id)
        until(lambda: not client.status().fenced)
    assert server.end() == 0
    look(folder, quiet=True)
    history = [line["what"] for line in lines(folder / "hardware.jsonl")]
    assert history.count("prepare") == 3


def test_the_queue_outlives_its_server_and_keeps_its_order(serving, mock, tmp_path):
    server = serving(**mock("dgx-h100"))
    names = [f"w{number}" for number in range(5)]
    with server.client() as client:
        client.submit([make_claim("gpu", count=8, id="all", ttl_seconds=600.0)])
        for name in names:
            (answer,) = client.submit([make_claim("gpu", count=3, id=name, wait=True, ttl_seconds=600.0)])
            assert isinstance(answer, c.Queued)
        before = [(waiting.claim.id, waiting.position) for waiting in client.queue()]
        assert before == list(zip(names, range(1, 6), strict=True))
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    assert list(follow(server.folder / "state/journal.sqlite").waiting) == names
    server.start()
    with server.client() as client:
        assert [(waiting.claim.id, waiting.position) for waiting in client.queue()] == before
        (again,) = client.submit([make_claim("gpu", count=3, id="w1", wait=True, ttl_seconds=600.0)])
        assert again.position == 2, "asked again it is the same claim, in its place"
        client.release("all")
        for name in names[:2]:
            assert isinstance(client.wait_for(name, Deadline.after(20)), c.Granted)
        assert [waiting.claim.id for waiting in client.queue()] == names[2:]
    assert server.end() == 0


PROGRAM = "import os, time; open(os.environ['OUT'], 'w').write(str(os.getpid()) + '\\n'); time.sleep(600)"


def test_a_killed_run_takes_its_program_along_and_its_devices_come_back_by_themselves(serving, mock, tmp_path):
    server = serving(**mock("dgx-h100"))
    environ = {**server.environ, "HAL_SERVER": str(server.socket), "OUT": str(tmp_path / "out")}
    words = ["run", "gpu:8", "--ttl", "3", "--devices", "any", "--", sys.executable, "-c", PROGRAM]
    run = subprocess.Popen([BIN / "hal", *words], env=environ, stderr=subprocess.PIPE)
    with server.client() as client:
        pid = int(
            until(
                lambda: (
                    (tmp_path / "out").exists()
                    and (tmp_path / "out").read_text().endswith("\n")
                    and (tmp_path / "out").read_text()
                )
            )
        )
        (lease,) = client.list()
        run.kill()
        run.communicate()
        until(lambda: not alive(pid))
        until(lambda: not client.list())
        (answer,) = client.submit([make_claim("gpu", count=8, id="next")])
        assert answer.lease.fence > lease.fence
        client.release("next")
    assert server.end() == 0
    assert not follow(server.folder / "state/journal.sqlite", quiet=True).live
