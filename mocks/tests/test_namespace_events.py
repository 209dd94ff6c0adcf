"""Hot-plug: what the difference of two trees amounts to, and what listeners in the namespace hear of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.host.uevents import Uevent, UeventReader, parse
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import NamespaceMode
from hal_mocks.faults import Fault, FaultType
from hal_mocks.names import devices_of
from hal_mocks.namespace.changes import events_between
from hal_mocks.namespace.uevents import name_hash, udev_message
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.profile import load_profile
from hal_mocks.sysfs import tree_of

SOON = 30.0
HOST = load_profile("bluefield-host").hosts[0]
NAMES = [device.name for device in devices_of(HOST)]
TYPES = (FaultType.FALLEN_OFF_BUS, FaultType.LINK_DOWN, FaultType.LINK_DEGRADED, FaultType.HANG)


@cache
def tree(broken: frozenset[tuple[str, FaultType]]):
    ids = {device.name: device.id for device in devices_of(HOST)}
    faults = [Fault(id=number, device=ids[name], type=type_) for number, (name, type_) in enumerate(sorted(broken))]
    return tree_of(HOST, faults)


broken_sets = st.frozensets(st.tuples(st.sampled_from(NAMES), st.sampled_from(TYPES)), max_size=3)


@settings(max_examples=40, deadline=None)
@given(broken_sets, broken_sets)
def test_events_there_and_back_mirror_each_other_and_keep_the_kernels_order(one, other):
    there, back = events_between(tree(one), tree(other)), events_between(tree(other), tree(one))
    gone = [event.devpath for event in there if event.action == "remove"]
    came = [event.devpath for event in back if event.action == "add"]
    assert sorted(gone) == sorted(came)
    for paths in (gone, list(reversed(came))):
        for index, path in enumerate(paths):
            assert not any(later.startswith(path + "/") for later in paths[index + 1 :]), "children go first"
    assert {event.devpath for event in there if event.action == "change"} == {
        event.devpath for event in back if event.action == "change"
    }
    assert one != other or not there


def test_a_card_that_falls_off_takes_everything_below_it_along():
    gone = {event.subsystem for event in events_between(tree(frozenset()), tree(frozenset({("dpu0", TYPES[0])})))}
    assert {"pci", "infiniband", "infiniband_verbs", "infiniband_mad", "net", "rshim"} <= gone


def test_an_event_carries_what_the_device_said_of_itself():
    rnic = HOST.rnics[-1]
    events = events_between(tree(frozenset()), tree(frozenset({(rnic.name, FaultType.FALLEN_OFF_BUS)})))
    (function,) = (event for event in events if event.subsystem == "pci" and event.devpath.endswith(rnic.pci))
    assert function.properties["PCI_SLOT_NAME"] == rnic.pci
    (door,) = (event for event in events if event.subsystem == "infiniband_verbs")
    assert door.properties["DEVNAME"].startswith("infiniband/uverbs")
    assert door.properties["MAJOR"] == "231"


def test_udevs_message_has_the_header_that_libudev_asks_for():
    message = udev_message({"ACTION": "add", "DEVPATH": "/devices/x", "SUBSYSTEM": "net", "DEVTYPE": "wlan"}, 9)
    assert message[:12] == b"libudev\0\xfe\xed\xca\xfe"
    assert int.from_bytes(message[20:24], "little") == len(message) - 40
    assert int.from_bytes(message[24:28], "big") == name_hash("net")
    assert message.endswith(b"SEQNUM=9\0")
    assert parse(message) is None, "it is not taken for the kernel's"


@given(st.text(min_size=0, max_size=40))
def test_hashes_are_words(text):
    assert 0 <= name_hash(text) < 1 << 32


def heard(namespace, cause) -> list[Uevent]:
    """Return the kernel's events from a cause up to the first second of quiet."""
    read, write = os.pipe()

    def listen() -> list[tuple[str, str, str]]:
        with UeventReader() as reader:
            os.write(write, b"x")
            first = reader.next(Deadline.after(SOON))
            found = [first]
            while (event := reader.next(Deadline.after(1.0))) is not None:
                found.append(event)
            return [(event.action, event.devpath, event.subsystem) for event in found if isinstance(event, Uevent)]

    result: list[Sequence[tuple[str, str, str]]] = []
    listener = threading.Thread(target=lambda: result.append(namespace.run(listen)))
    listener.start()
    os.read(read, 1)
    cause()
    listener.join()
    os.close(read)
    os.close(write)
    return [Uevent(action=action, devpath=path, subsystem=subsystem) for action, path, subsystem in result[0]]


@pytest.mark.hal_machine("bluefield-host")
def test_listeners_hear_removal_link_and_return_in_the_order_of_the_faults(hal_namespace, hal_fault):
    events = heard(hal_namespace, lambda: hal_fault("dpu0", "fallen-off-bus"))
    assert {event.action for event in events} == {"remove"}
    assert {"pci", "infiniband", "rshim"} <= {event.subsystem for event in events}
    back = heard(hal_namespace, hal_fault.heal)
    assert [event.devpath for event in back] != []
    assert sorted(event.devpath for event in back) == sorted(event.devpath for event in events)
    down = heard(hal_namespace, lambda: hal_fault(HOST.rnics[0].name, "link-down"))
    assert {(event.action, event.subsystem) for event in down} == {("change", "infiniband"), ("change", "net")}


@pytest.mark.hal_machine("bluefield-host")
def test_a_fault_that_begins_by_itself_is_heard_when_virtual_time_comes_to_it(hal_namespace, hal_fault, hal_machine):
    hal_fault("dpu0", "fallen-off-bus", after_seconds=60)
    events = heard(hal_namespace, lambda: hal_machine.clock.advance(61))
    assert {event.action for event in events} == {"remove"}
    assert hal_namespace.run(lambda: Path("/dev/rshim0").exists()) is False


@pytest.mark.hal_machine("bluefield-host")
def test_nodes_go_and_come_with_their_devices(hal_namespace, hal_fault):
    def nodes() -> list[str]:
        found = []
        for folder, folders, files in os.walk("/dev"):
            if folder == "/dev":  # other processes make and remove files in these while this test runs
                folders[:] = [name for name in folders if name not in ("pts", "shm")]
            found += [os.path.join(folder, name) for name in (*folders, *files)]
        return sorted(found)

    before = hal_namespace.run(nodes)
    heard(hal_namespace, lambda: hal_fault("dpu0", "fallen-off-bus"))
    without = hal_namespace.run(nodes)
    assert "/dev/rshim0/misc" in set(before) - set(without)
    heard(hal_namespace, hal_fault.heal)
    assert hal_namespace.run(nodes) == before


@pytest.mark.hal_machine("bluefield-host")
def test_a_device_that_hangs_makes_a_program_wait_and_the_others_answer(hal_namespace, hal_fault):
    first, second = HOST.rnics[0].name, HOST.rnics[1].name
    heard(hal_namespace, lambda: hal_fault(first, "hang"))
    path = f"/sys/class/infiniband/{first}/node_guid"
    waiting = hal_namespace.popen(["cat", path], stdout=subprocess.PIPE, text=True)
    assert hal_namespace.run_command(["cat", f"/sys/class/infiniband/{second}/node_guid"]).stdout.strip()
    assert waiting.poll() is None
    waiting.kill()
    waiting.communicate()
    hal_fault.heal()
    assert hal_namespace.run(Path(path).read_text).count(":") == 3


@pytest.mark.hal_machine("optane-server")
def test_a_namespace_made_at_run_time_appears_to_ndctl_and_goes_again(hal_namespace, hal_machine):
    driver = MockPmemDriver(hal_machine)
    region = next(region for region in hal_machine.graph.hosts[0].pmem if region.name == "region1")
    device_id = f"pmem-{region.set_cookie.removeprefix('0x')}"

    def listed() -> dict[str, tuple[str, int]]:
        found = json.loads(hal_namespace.run_command(["ndctl", "list", "-N", "-r", "region1"]).stdout)
        found = found if isinstance(found, list) else [found]
        return {one["uuid"]: (one["mode"], one["size"]) for one in found}

    before = listed()
    with driver.open(device_id, OpenGuard(), Deadline.after(SOON)) as handle:
        events = heard(
            hal_namespace,
            lambda: handle.confirm(handle.plan_create(NamespaceMode.FSDAX, 64 << 20)).wait(Deadline.after(SOON)),
        )
        assert ("add", "nd") in {(event.action, event.subsystem) for event in events}
        after = listed()
        (uuid,) = after.keys() - before.keys()
        assert after[uuid] == ("fsdax", 64 << 20)
        handle.confirm(handle.plan_destroy(uuid)).wait(Deadline.after(SOON))
    assert listed() == before
