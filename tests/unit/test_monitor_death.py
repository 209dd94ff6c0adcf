"""A driver in a process of its own dies, hangs, or never starts: what its callers see."""

from __future__ import annotations

import os
import signal
import time

import msgspec
import pytest

from hal.drivers.contract import Cause, Grant
from hal.drivers.monitor import LOST
from hal.drivers.monitor_restarts import Restarts
from hal.errors import (
    DeadlineExceeded,
    DeviceError,
    DriverError,
    NotReady,
    ProgramFault,
)
from hal.model.health import Status
from tests.budget import examples
from tests.unit.odd_plugin import alive, facts, soon, until


@pytest.fixture
def odd(place):
    return place.start()


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
