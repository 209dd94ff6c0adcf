"""A whole mock machine whose drivers live in processes of their own: surveyed, claimed, crashed, hung."""

from __future__ import annotations

import os
import signal
import time

import pytest

from hal.agent.monitors import Monitors, monitored
from hal.agent.survey import survey
from hal.api.local import LocalBroker
from hal.broker.journal.memory import MemoryStore
from hal.drivers.contract import Driver
from hal.drivers.monitor import MonitoredDriver
from hal.errors import NotReady
from hal.interfaces.deadline import Deadline

pytestmark = pytest.mark.hal_machine("dgx-h100", clock="real")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def monitors(hal_machine):
    with Monitors(open_here=True) as found:
        yield found


def test_a_survey_through_monitors_sees_what_a_survey_sees(monitors):
    direct = survey(deadline_seconds=20)
    apart = survey(deadline_seconds=20, through=monitors.through)
    direct.close()
    assert apart.inventory.devices == direct.inventory.devices
    assert not apart.partial
    assert apart.drivers.keys() == direct.drivers.keys() == monitors.drivers.keys()
    assert all(isinstance(driver, MonitoredDriver) and isinstance(driver, Driver) for driver in apart.drivers.values())
    pids = [driver.process.pid for driver in monitors.drivers.values()]
    assert len(set(pids)) == len(pids)
    again = survey(deadline_seconds=20, through=monitors.through)
    assert again.inventory.devices == direct.inventory.devices
    assert [driver.process.pid for driver in monitors.drivers.values()] == pids, "one process per driver, kept"


def test_a_broker_works_through_monitors_while_one_driver_crashes_and_another_hangs(monitors, tmp_path):
    devices = survey(deadline_seconds=20, through=monitors.through).inventory.devices
    drivers = dict(monitors.drivers)
    with LocalBroker(drivers, MemoryStore(), tmp_path / "r", observe=lambda: devices, deadline_seconds=1.0) as broker:
        held = broker.claim("gpu", count=2)
        with held.open(held.devices[0].id) as handle:
            assert handle.device.id == held.devices[0].id
        gpus, nics = monitors.drivers["mock-gpu"], monitors.drivers["mock-rnic"]
        os.kill(gpus.process.pid, signal.SIGSEGV)
        os.kill(nics.process.pid, signal.SIGSTOP)
        assert broker.claim("rnic", count=8).lease.devices, "the one that hung was killed, and others were taken"
        assert broker.claim("gpu", count=6).lease.devices
        nics.sample([d.id for d in devices if d.driver == nics.name], Deadline.after(10))


def test_monitored_starts_what_is_named_and_nothing_is_left_of_a_start_that_failed(hal_machine):
    found = monitored(["mock-gpu", "mock-pmem"])
    pids = [driver.process.pid for driver in found.values()]
    assert {driver.name for driver in found.values()} == {"mock-gpu", "mock-pmem"}
    for driver in found.values():
        driver.close()
    deadline = Deadline.after(10)
    while any(map(alive, pids)):
        assert not deadline.expired
        time.sleep(0.002)
    with pytest.raises(NotReady, match="no installed plugin offers the driver no-such"):
        monitored(["mock-gpu", "no-such"])
