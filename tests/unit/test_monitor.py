"""A driver in a process of its own: it answers as itself, and neither its death nor its silence is ours."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from hal.drivers.contract import Cause, Driver, Grant, Reports, Resets, Scrubs
from hal.drivers.guard import OpenGuard
from hal.drivers.monitor import LOST, monitor
from hal.drivers.monitor_calls import Monitor
from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_restarts import Restarts
from hal.errors import (
    DeadlineExceeded,
    DeviceBusy,
    DeviceError,
    DriverError,
    NotReady,
    ProgramFault,
    StaleFence,
    UncorrectableError,
    Unsupported,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import PartitionsDevices
from hal.model.health import Status
from tests.budget import examples

PLUGIN = '''
import ctypes, json, os, signal, sys, threading, time
from hal import errors
from hal.drivers.contract import Discovery, Problem, Readiness, Cause
from hal.interfaces.operation import Operation
from hal.model.device import Device, Location
from hal.model.event import Event, EventType
from hal.model.health import Condition, Severity
from hal.model.kind import Kind

class Own(errors.UncorrectableError):
    "A plugin's own error, unknown outside."

def device(name, **words):
    return Device(id=name, kind=Kind.GPU, name=name, driver="odd", location=Location(node="n0"), **words)

class Odd:
    """Its device ids are orders."""
    name = "odd"
    def readiness(self):
        return Readiness(cause=Cause.READY, detail=json.dumps({
            "pid": os.getpid(), "group": os.getpgid(0), "parent": os.getppid(), "uid": os.getuid(),
            "targets": [os.readlink(p) for p in map("/proc/self/fd/{}".format, range(64)) if os.path.lexists(p)],
            "machine": os.environ.get("HAL_MACHINE"), "tools": [c.pid for c in TOOLS]}))
    def discover(self, deadline):
        return Discovery(devices=(device("a"), device("b")), problems=(Problem(source="odd", step="x", detail="y"),))
    def sample(self, device_ids, deadline):
        found = []
        for order in device_ids:
            if order.startswith("sick"):
                found.append(Condition(device=order, type="Broken", severity=Severity.FATAL, evidence="e", source="odd",
                                       code=79))
            self.obey(order, deadline)
        return found
    def obey(self, order, deadline):
        if order == "segfault":
            print("something odd happened", file=sys.stderr)
            ctypes.string_at(0)
        if order == "exit": os._exit(3)
        if order == "hang": time.sleep(3600)
        if order == "stop": os.kill(os.getpid(), signal.SIGSTOP)
        if order == "kernel": signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(3600)
        if order == "mine": raise Own("gone bad", device=order, during="sample", hint="replace it", code=48)
        if order == "busy": raise errors.DeviceBusy("in use", device=order, during="prepare", hint="wait")
        if order == "weak": raise ValueError("a bug")
        if order == "system": raise SystemExit(4)
        if order == "nonsense": return
        if order == "flood":
            for n in range(3000): print("line", n, "x" * 100, file=sys.stderr)
        if order == "keeps":
            time.sleep(deadline.remaining_seconds)
            raise errors.DeadlineExceeded("kept", device=order, during="sample")
        if order == "tool":
            import subprocess
            TOOLS.append(subprocess.Popen(["sleep", "3600"]))
    def prepare(self, device_id, grant, deadline):
        if grant.fence < 5: raise errors.StaleFence("old", device=device_id, during="prepare", hint="claim again")
        self.obey(device_id, deadline)
    def unprepare(self, device_id, grant, deadline): self.obey(device_id, deadline)
    def open(self, device_id, guard, deadline): return ("opened", device_id, os.getpid())
    def close(self): open(os.environ["CLOSED"], "w").write("closed")
    def reset(self, device_id, *, deadline=None):
        if device_id == "refused": raise errors.DeviceBusy("held", device=device_id, during="reset")
        def work(operation):
            if device_id == "slow": GO.wait()
            self.obey(device_id, deadline)
        if device_id == "go": GO.set()
        return Operation.spawn(device_id, "reset", work)
    def events(self, deadline):
        for n in range(3):
            yield Event(revision=n, at=1.0, type=EventType.CONDITION, subject=str(n), detail="d")

TOOLS = []
GO = threading.Event()

class Plain(Odd):
    reset = property()
    events = property()

class Wrong(Odd):
    def readiness(self): return "yes"
    def discover(self, deadline): return [1, 2]

def creator(name):
    if name == "unloadable": raise errors.NotReady("no library", during="load", hint="install it")
    if name == "crashing": ctypes.string_at(0)
    if name == "uncreatable":
        def create(): raise errors.NotReady("not today", during="create", hint="tomorrow")
        return create
    return {"odd": Odd, "plain": Plain, "wrong": Wrong}[name]
'''


class Place:
    def __init__(self, folder: Path):
        (folder / "halodd.py").write_text(textwrap.dedent(PLUGIN))
        self.closed = folder / "closed"
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "CLOSED": str(self.closed),
            "HAL_MACHINE": "of-the-test",
        }
        self.started = []

    def process(self, name="odd", restarts=None, **words):
        recipe = Recipe(function="halodd:creator", name=name)
        made = Monitor(recipe, restarts or Restarts(name, crashes=1000), self.environ, **words)
        self.started.append(made)
        return made

    def start(self, name="odd", process=None, **words):
        process = process or self.process(name)
        return monitor(process.recipe, self.environ, Deadline.after(30), process=process, **words)


@pytest.fixture
def place(tmp_path):
    found = Place(tmp_path)
    yield found
    for process in found.started:
        process.close()


@pytest.fixture
def odd(place):
    return place.start()


def soon(seconds=10.0):
    return Deadline.after(seconds)


def facts(driver):
    return json.loads(driver.readiness().detail)


def until(condition):
    deadline = Deadline.after(10)
    while not condition():
        assert not deadline.expired, "it did not come to be so"
        time.sleep(0.002)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# --- what it answers


def test_it_is_a_driver_with_the_facets_of_the_real_one_and_no_others(place, odd):
    assert isinstance(odd, Driver)
    assert isinstance(odd, Resets)
    assert isinstance(odd, Reports)
    assert not isinstance(odd, Scrubs)
    assert not isinstance(odd, PartitionsDevices)
    assert odd.name == "odd"


def test_values_arrive_as_they_were_given(odd):
    found = odd.discover(soon())
    assert [device.id for device in found.devices] == ["a", "b"]
    assert found.problems[0].detail == "y"
    (condition,) = odd.sample(["sick1"], soon())
    assert (condition.code, condition.device) == (79, "sick1")
    assert odd.prepare("a", Grant(lease="l", fence=5), soon()) is None


def test_errors_arrive_as_themselves(odd):
    with pytest.raises(StaleFence) as caught:
        odd.prepare("a", Grant(lease="l", fence=4), soon())
    assert (caught.value.device, caught.value.during, caught.value.hint) == ("a", "prepare", "claim again")
    with pytest.raises(DeviceBusy, match="in use"):
        odd.unprepare("busy", Grant(lease="l", fence=5), soon())


def test_a_plugins_own_error_arrives_as_the_nearest_one_that_is_known(odd):
    with pytest.raises(UncorrectableError, match="gone bad") as caught:
        odd.sample(["mine"], soon())
    assert type(caught.value) is UncorrectableError
    assert caught.value.code == 48


def test_what_is_no_error_of_ours_names_the_device_and_the_step(odd):
    with pytest.raises(DeviceError, match="ValueError: a bug") as caught:
        odd.prepare("weak", Grant(lease="l", fence=5), soon())
    assert (caught.value.device, caught.value.during) == ("weak", "prepare")


def test_what_is_no_answer_is_refused(place):
    wrong = place.start("wrong")
    with pytest.raises(DriverError, match="no answer to discover"):
        wrong.discover(soon())
    assert wrong.readiness().cause is Cause.BROKEN


def test_slow_verbs_do_not_keep_others_from_the_driver(odd):
    slow = odd.reset("slow")
    assert not slow.done
    assert odd.sample(["a"], soon()) == ()
    odd.reset("go").wait(soon())
    slow.wait(soon())
    with pytest.raises(DeviceBusy):
        odd.reset("refused").wait(soon())
    with pytest.raises(DeviceError, match="ValueError: a bug"):
        odd.reset("weak").wait(soon())


def test_events_come_one_by_one_until_their_end(odd):
    assert [event.subject for event in odd.events(soon())] == ["0", "1", "2"]


def test_opening_is_for_the_holders_process(place, odd):
    with pytest.raises(Unsupported, match="process of its own"):
        odd.open("a", OpenGuard(), soon())

    class Here:
        def open(self, device_id, guard, deadline):
            return ("opened", device_id, os.getpid())

        def close(self):
            pass

    here = place.start(open_here=Here)
    assert here.open("a", OpenGuard(), soon()) == ("opened", "a", os.getpid())


# --- whose process it is


def test_the_process_inherits_nothing_and_is_a_group_of_its_own(place, tmp_path):
    journal = os.open(tmp_path / "journal.sqlite", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(journal, True)
    try:
        found = facts(place.start())
    finally:
        os.close(journal)
    assert not [target for target in found["targets"] if "journal" in target]
    assert found["group"] == found["pid"]
    assert found["machine"] == "of-the-test"
    assert [os.path.realpath(t) for t in found["targets"]].count("/dev/null") >= 2


def test_closing_lets_the_driver_close_and_ends_its_processes(place, odd):
    found = facts(odd)
    odd.close()
    odd.close()
    assert place.closed.read_text() == "closed"
    until(lambda: not alive(found["pid"]) and not alive(found["parent"]))
    with pytest.raises(DriverError, match="closed"):
        odd.discover(soon())


def test_the_processes_end_with_a_daemon_that_is_killed(place):
    script = (
        "import sys, time; from hal.drivers.monitor import *; import os;"
        "d = monitor(Recipe(function='halodd:creator', name='odd'), os.environ, Deadline.after(30));"
        "d.sample(['tool'], Deadline.after(9));"
        "print(d.readiness().detail, flush=True); d.sample(['hang'], Deadline.after(60))"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", script], env=place.environ, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert daemon.stdout is not None
    found = json.loads(daemon.stdout.readline())
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    until(lambda: not any(alive(pid) for pid in (found["pid"], found["parent"], *found["tools"])))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a process another's rights")
def test_it_can_run_with_fewer_rights(place, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    driver = place.start(process=place.process(user="nobody"))
    assert facts(driver)["uid"] == pwd.getpwnam("nobody").pw_uid
    with pytest.raises(NotReady, match="no user"):
        place.start(process=place.process(user="hal-nobody-of-that-name"))


# --- death


def test_a_segfault_names_driver_device_step_and_signal_and_the_next_verb_works(odd):
    before = facts(odd)["pid"]
    with pytest.raises(DeviceError) as caught:
        odd.prepare("segfault", Grant(lease="l", fence=5), soon())
    said = str(caught.value)
    assert "segfault during prepare" in said
    assert "driver odd" in said
    assert "SIGSEGV" in said
    assert "something odd happened" in said
    assert odd.sample(["a"], soon()) == ()
    assert facts(odd)["pid"] != before


@pytest.mark.parametrize(("order", "how"), [("exit", "by itself with status 3"), ("system", "by itself with status 4")])
def test_an_end_without_a_signal_is_told_as_well(odd, order, how):
    with pytest.raises(DeviceError, match=how):
        odd.sample([order], soon())
    assert odd.sample(["a"], soon()) == ()


def test_a_crash_in_a_slow_verb_is_the_verbs_error(odd):
    with pytest.raises(DeviceError, match="SIGSEGV"):
        odd.reset("segfault").wait(soon())
    assert odd.sample(["a"], soon()) == ()


def test_a_flood_of_words_neither_blocks_nor_is_kept(odd):
    odd.sample(["flood"], soon())
    with pytest.raises(DeviceError) as caught:
        odd.sample(["segfault"], soon())
    assert len(str(caught.value)) < 8192


def test_tools_that_a_crashed_driver_started_do_not_stay(odd):
    odd.sample(["tool"], soon())
    (tool,) = facts(odd)["tools"]
    with pytest.raises(DeviceError):
        odd.sample(["segfault"], soon())
    until(lambda: not alive(tool))


@pytest.mark.parametrize("order", ["hang", "stop", "kernel"])
def test_who_does_not_answer_is_killed_and_replaced(odd, order):
    before = facts(odd)["pid"]
    with pytest.raises(DeadlineExceeded, match="killed") as caught:
        odd.sample([order], soon(0.05))
    assert caught.value.device == order
    assert not alive(before)
    assert odd.sample(["a"], soon()) == ()


def test_a_driver_that_keeps_its_deadline_is_heard(odd):
    before = facts(odd)["pid"]
    with pytest.raises(DeadlineExceeded, match="kept"):
        odd.sample(["keeps"], soon(0.3))
    assert facts(odd)["pid"] == before


def test_a_nursery_that_is_killed_or_stopped_is_replaced(odd):
    found = facts(odd)
    os.kill(found["parent"], signal.SIGKILL)
    until(lambda: not alive(found["pid"]))
    with pytest.raises(DriverError):
        odd.discover(soon())
    found = facts(odd)
    os.kill(found["parent"], signal.SIGSTOP)
    os.kill(found["pid"], signal.SIGKILL)
    with pytest.raises(DriverError):
        odd.discover(soon())
    assert odd.sample(["a"], soon()) == ()


def test_what_cannot_be_killed_is_abandoned_and_its_devices_are_unknown_until_it_has_gone(place):
    def kill(pidfd):
        """The kernel's answer for a process that waits for a disk or a bus: nothing."""

    others = place.start("plain")
    odd = place.start(process=place.process(kill_worker=kill))
    assert len(odd.discover(soon()).devices) == 2
    stuck = facts(odd)["pid"]
    with pytest.raises(DeadlineExceeded, match="abandoned"):
        odd.sample(["stop"], soon(0.05))
    assert alive(stuck)
    start = time.monotonic()
    with pytest.raises(DeviceError, match=f"process {stuck} .*abandoned"):
        odd.prepare("a", Grant(lease="l", fence=5), soon())
    found = odd.discover(soon())
    assert [device.id for device in found.devices] == ["a", "b"]
    for device in found.devices:
        assert [(c.type, c.status) for c in device.conditions] == [(LOST, Status.UNKNOWN)]
    assert found.problems[0].fatal
    assert odd.readiness().cause is Cause.BROKEN
    assert time.monotonic() - start < 5, "nobody waits for it"
    assert others.sample(["a"], soon()) == ()
    os.kill(stuck, signal.SIGKILL)
    until(lambda: not alive(stuck))
    assert odd.sample(["a"], soon()) == ()


# --- hopeless ones


def test_after_three_crashes_the_plugin_is_quarantined_until_an_operators_word(place, tmp_path):
    record = tmp_path / "records" / "odd"
    odd = place.start(process=place.process(restarts=Restarts("odd", record, first_seconds=0.0)))
    for _ in range(3):
        with pytest.raises(DeviceError, match="SIGSEGV"):
            odd.sample(["segfault"], soon())
    with pytest.raises(DeviceError, match=r"quarantined after 3 crashes.*SIGSEGV"):
        odd.sample(["a"], soon())
    ready = odd.readiness()
    assert ready.cause is Cause.BROKEN
    assert str(record) in ready.remedy
    with pytest.raises(DriverError, match="quarantined"):
        place.start(process=place.process(restarts=Restarts("odd", record)))
    record.unlink()
    assert odd.sample(["a"], soon()) == ()


def test_a_driver_that_never_starts_says_why(place):
    for name, why in (("unloadable", "no library"), ("uncreatable", "not today")):
        with pytest.raises(NotReady, match=why):
            place.start(name)
    with pytest.raises(DriverError, match="SIGSEGV"):
        place.start("crashing")


def test_a_driver_that_fails_again_and_again_is_asked_later_and_later(place):
    slept = []
    clock = [0.0]
    restarts = Restarts("odd", clock=lambda: clock[0], crashes=1000)
    process = place.process(restarts=restarts, sleep=slept.append)
    odd = place.start(process=process)
    for _ in range(4):
        with pytest.raises(DeviceError, match="status 3"):
            odd.sample(["exit"], soon())
    assert slept == [0.1, 0.2]
    with pytest.raises(DeviceError, match=r"next process starts in 0\.4 s"):
        odd.sample(["a"], soon(0.2))
    clock[0] += 1.0
    assert odd.sample(["a"], soon()) == ()


def test_restarts_forget_old_crashes_and_wait_no_longer_than_they_say():
    clock = [0.0]
    restarts = Restarts("d", clock=lambda: clock[0], longest_seconds=30.0)
    for expected in (0.0, 0.1, 0.2, 0.4):
        restarts.failed()
        assert restarts.delay_seconds == pytest.approx(expected)
    for _ in range(100):
        restarts.failed()
    assert restarts.delay_seconds == 30.0
    restarts.good()
    assert restarts.delay_seconds == 0.0
    for _ in range(examples(10)):
        restarts.crashed("x")
        clock[0] += 301.0
    assert restarts.quarantine is None
    restarts.crashed("x")
    restarts.crashed("x")
    assert restarts.quarantine is not None
    restarts.forgive("an operator")
    assert restarts.quarantine is None


def test_a_record_that_cannot_be_read_still_keeps_the_driver_back(tmp_path):
    record = tmp_path / "d"
    record.write_bytes(b"{")
    assert Restarts("d", record).quarantine is not None


def test_codes_survive_the_way():
    from hal.drivers.monitor_wire import Failure, failure, raised

    sent = failure(ProgramFault("x", device="d", during="run", hint="h", code=7), "other", "verb")
    got = raised(msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Failure))
    assert (type(got), got.code, got.device) == (ProgramFault, 7, "d")  # type: ignore[attr-defined]
