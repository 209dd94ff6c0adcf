"""A driver in a process of its own: it answers as itself, and neither its death nor its silence is ours."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Driver, Grant, Reports, Resets, Scrubs
from hal.drivers.guard import OpenGuard
from hal.errors import (
    DeviceBusy,
    DeviceError,
    DriverError,
    NotReady,
    StaleFence,
    UncorrectableError,
    Unsupported,
)
from hal.interfaces.gpu import PartitionsDevices
from tests.unit.odd_plugin import alive, facts, soon, until


@pytest.fixture
def odd(place):
    return place.start()


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
