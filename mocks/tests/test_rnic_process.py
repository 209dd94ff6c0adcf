"""What dead processes leave behind, and what the kit says of a broken mock."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from hal.drivers.guard import OpenGuard
from hal.errors import HalError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, Access
from hal.testing.kinds.rnic import RnicConformance
from hal.testing.kinds.rnic_bench import Pair, connect
from hal.testing.kinds.rnic_peer import DriverSpec, PeerProcess
from hal_mocks import rnic_memory
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.rnic_connection import MockConnection
from hal_mocks.rnic_files import sessions_folder
from hal_mocks.rnic_messages import Messages
from hal_mocks.rnic_pair import QueuePair

SOON = Deadline.after(3600)


@pytest.fixture
def driver(tmp_path):
    return MockRnicDriver(Machine(load_profile("dgx-h100"), tmp_path / "a machine whose path is long " / ("x" * 100)))


def test_a_killed_process_leaves_nothing_behind(driver):
    machine = driver.machine
    first, second = (device.id for device in driver.discover(SOON).devices[:2])
    spec = DriverSpec(
        "hal_mocks.rnic", "rebuild_driver", (msgspec.json.encode(machine.graph), str(machine.state.folder))
    )
    nic = driver.open(first, OpenGuard(), SOON)
    with PeerProcess(spec, second) as process:
        memory = process.register(1 << 20)
        connection = process.connect(nic)
        connection.put(b"x" * 5000, memory.address, memory.rkey).wait()
        connection.flush().wait()
        assert len(list(sessions_folder(machine, second).iterdir())) == 1
        process.kill()
    driver.open(second, OpenGuard(), SOON).close()
    assert list(sessions_folder(machine, second).iterdir()) == []
    nic.close()
    assert list(sessions_folder(machine, first).iterdir()) == []
    nic = driver.open(first, OpenGuard(), SOON)
    assert nic.counters()["port_xmit_data_bytes"].value == 5000, "what was sent stays counted"
    nic.close()


def test_threads_and_descriptors_are_given_back(driver):
    def descriptors():
        found = Counter()
        for path in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the one that this very listing had
                found[os.readlink(path)] += 1
        return found

    ids = [device.id for device in driver.discover(SOON).devices[:2]]

    def use():
        near, far = (driver.open(device_id, OpenGuard(), SOON) for device_id in ids)
        here, there = near.endpoint(), far.endpoint()
        connection = here.connect(there.address)
        there.connect(here.address)
        region, own = far.register(4096, ALL_ACCESS), far.register(bytearray(64), ALL_ACCESS)
        connection.put(b"x", region.address, region.rkey).wait()
        connection.fetch_add(own.address + -own.address % 8, own.rkey, 1).wait()
        near.close()
        far.close()

    before = descriptors()
    for _ in range(5):
        use()
    deadline = Deadline.after(10)
    while (left := descriptors() - before) and not deadline.expired:  # threads that serve user memory end by themselves
        gc.collect()  # a map keeps its descriptor until its last view is gone
    assert not left


def _torn(view, offset, verb, first, second):
    place = view[offset : offset + 8].cast("Q")
    before = place[0]
    place[0] = (before + first + 1) % (1 << 64)
    return before


BROKEN = {
    "a put that never arrives": (MockConnection, "put", lambda self, *_, **__: self._done),
    "a key that nobody checks": (QueuePair, "_resolve", lambda self, rkey: next(iter(self._targets.values()), None)),
    "an error that breaks nothing": (QueuePair, "_break", lambda self, error, **_: error),
    "atomics that are wrong": (rnic_memory, "change_word", _torn),
    "a flush that flushes nothing": (Messages, "_drive", lambda self: None),
    "rights that nobody checks": (QueuePair, "_allows", lambda self, *_: True),
}
CHECKS = {
    "a put that never arrives": ["test_what_is_put_is_there_after_a_flush"],
    "a key that nobody checks": ["test_what_is_put_is_there_after_a_flush"],
    "an error that breaks nothing": ["test_a_key_of_nobody_is_refused_and_breaks_the_connection"],
    "atomics that are wrong": [
        "test_fetch_add_gives_what_was_there_and_wraps",
        "test_compare_and_swap_stores_only_what_it_expected",
        "test_any_order_of_verbs_ends_as_the_model_says",
    ],
    "a flush that flushes nothing": ["test_a_buffer_may_be_used_again_once_its_put_is_done"],
    "rights that nobody checks": ["test_a_right_that_was_not_given_is_refused"],
}


@pytest.mark.parametrize(("how", "check"), [(how, check) for how, checks in CHECKS.items() for check in checks])
def test_the_kit_goes_red_for(driver, monkeypatch, how, check):
    near, far = (driver.open(device.id, OpenGuard(), SOON) for device in driver.discover(SOON).devices[:2])
    here, there = connect(near, far)
    with near, far, far.register(4096, ALL_ACCESS) as region:
        arguments = {"pair": Pair(here, there, region), "peer": far, "verb": "fetch_add", "right": Access.REMOTE_ATOMIC}
        examine = getattr(RnicConformance(), check)
        wanted = {name: arguments[name] for name in inspect.signature(examine).parameters}
        owner, name, wrong = BROKEN[how]
        monkeypatch.setattr(owner, name, wrong)
        with pytest.raises((AssertionError, HalError, pytest.fail.Exception)):
            examine(**wanted)
        monkeypatch.undo()
