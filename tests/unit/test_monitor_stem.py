"""The process that all nurseries are forked from: it saves their imports, and nobody's life hangs on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hal.drivers import monitor_life
from hal.drivers.monitor_life import Stem
from hal.drivers.monitor_restarts import Restarts
from hal.errors import DeadlineExceeded, DriverError, NotReady
from hal.interfaces.deadline import Deadline
from tests.unit.odd_plugin import alive, facts, soon, until


@pytest.fixture
def stem(place):
    found = Stem(place.environ)
    yield found
    found.end()


@pytest.fixture
def forked(place, stem):
    """Start a driver whose nursery is forked from the stem."""
    return lambda name="odd", **words: place.start(process=place.process(name, stem=stem, **words))


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_nurseries_are_its_children_and_inherit_nothing_of_it_or_of_each_other(forked, stem, tmp_path):
    journal = os.open(tmp_path / "journal.sqlite", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(journal, True)
    try:
        before = facts(forked())
        found = facts(forked("plain"))
    finally:
        os.close(journal)
    assert parent(found["parent"]) == parent(before["parent"]) == stem.pid
    assert found["machine"] == "of-the-test"
    assert found["group"] == found["pid"]
    assert os.getpgid(found["parent"]) == found["parent"]
    assert not [target for target in found["targets"] if "journal" in target]
    # a worker has its two lines to the daemon, and its standard streams, which are no sockets
    assert sum(target.startswith("socket:") for target in found["targets"]) == 2
    assert not [target for target in found["targets"] if "pidfd" in target]


def test_it_has_one_thread_however_many_it_forked(forked, stem):
    forked()
    forked("plain")
    assert len(os.listdir(f"/proc/{stem.pid}/task")) == 1


def test_a_killed_stem_takes_nobody_along_and_the_next_driver_gets_a_new_one(forked, stem):
    odd = forked()
    before, was = facts(odd), stem.pid
    os.kill(was, signal.SIGKILL)
    until(lambda: not alive(was))
    assert facts(odd)["pid"] == before["pid"]
    os.kill(before["pid"], signal.SIGKILL)
    with pytest.raises(DriverError, match="SIGKILL"):
        odd.discover(soon())
    assert facts(odd)["parent"] == before["parent"], "its nursery needs no stem"
    plain = forked("plain")
    assert parent(facts(plain)["parent"]) == stem.pid != was
    odd.close()
    until(lambda: not alive(before["parent"]))


def test_a_killed_nursery_leaves_the_others_and_says_how_it_ended(forked, stem):
    odd, plain = forked(), forked("plain")
    kept, was = facts(plain), facts(odd)
    os.kill(was["parent"], signal.SIGKILL)
    until(lambda: not alive(was["pid"]))
    with pytest.raises(DriverError):
        odd.discover(soon())
    assert facts(odd)["parent"] != was["parent"]
    assert parent(facts(odd)["parent"]) == stem.pid
    assert facts(plain)["pid"] == kept["pid"]


def test_a_plugin_that_crashes_when_it_is_loaded_crashes_its_own_nursery_only(forked, stem):
    odd = forked()
    pid, was = facts(odd)["pid"], stem.pid
    with pytest.raises(DriverError, match="SIGSEGV"):
        forked("crashing")
    with pytest.raises(NotReady, match="no library"):
        forked("unloadable")
    assert (facts(odd)["pid"], stem.pid) == (pid, was)
    assert alive(was)


def test_a_stem_that_dies_before_it_forks_is_no_crash_of_the_driver(place, stem):
    place.start(process=place.process("plain", stem=stem)).close()
    os.kill(stem.pid, signal.SIGSTOP)
    restarts = Restarts("odd", crashes=1)
    process = place.process(stem=stem, restarts=restarts)
    process.start()
    os.kill(stem.pid, signal.SIGKILL)
    odd = place.start(process=process)
    assert parent(facts(odd)["parent"]) == os.getpid(), "it was started afresh"
    assert restarts.quarantine is None


def test_a_stem_that_does_not_answer_is_replaced(place, stem, monkeypatch):
    monkeypatch.setattr(monitor_life, "STEM_SECONDS", 0.0)
    place.start(process=place.process("plain", stem=stem)).close()
    was = stem.pid
    os.kill(was, signal.SIGSTOP)
    process = place.process(stem=stem)
    with pytest.raises(DeadlineExceeded, match="not loaded in time"):
        process.hello(soon(0.05))
    until(lambda: not alive(was))
    assert process.hello(Deadline.after(30)).name == "odd"
    assert stem.pid != was


def test_who_is_told_to_end_ends_and_drivers_are_started_without_it(forked, stem):
    odd = forked()
    was = stem.pid
    stem.end()
    until(lambda: not alive(was))
    assert parent(facts(forked("plain"))["parent"]) == os.getpid()
    assert odd.sample(["a"], soon()) == ()


def test_all_of_them_end_with_a_daemon_that_is_killed(place):
    script = (
        "import os, sys; from hal.drivers.monitor import *; from hal.drivers.monitor_life import Stem;"
        "from hal.drivers.monitor_restarts import Restarts; stem = Stem(os.environ);"
        "recipe = Recipe(function='halodd:creator', name='odd');"
        "process = Monitor(recipe, Restarts('odd'), os.environ, stem=stem);"
        "d = monitor(recipe, os.environ, Deadline.after(30), process=process);"
        "d.sample(['tool'], Deadline.after(9));"
        "print(stem.pid); print(d.readiness().detail, flush=True); d.sample(['hang'], Deadline.after(60))"
    )
    daemon = subprocess.Popen(
        [sys.executable, "-c", script], env=place.environ, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert daemon.stdout is not None
    stem = int(daemon.stdout.readline())
    found = json.loads(daemon.stdout.readline())
    assert parent(found["parent"]) == stem
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    until(lambda: not any(alive(pid) for pid in (stem, found["pid"], found["parent"], *found["tools"])))
