"""What the driver says by itself: NICs that come and go, ports that fall and rise, and events that were lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hal_rdma.watching as watching
from hal.drivers.contract import HostRoot
from hal.host.uevents import Loss, Uevent
from hal.interfaces.deadline import Deadline
from hal.model.event import EventType
from hal.testing.trees import FakeTree
from hal_rdma.driver import RdmaDriver
from hal_rdma.watching import differences, watch

FIRST, SECOND = "a088:c203:00ab:5f40", "a088:c203:00ab:5f41"


@pytest.fixture
def tree(tmp_path) -> FakeTree:
    tree = FakeTree(tmp_path / "machine")
    tree.rdma("mlx5_0", node_guid=FIRST)
    return tree


@pytest.fixture
def driver(tree: FakeTree) -> RdmaDriver:
    return RdmaDriver([HostRoot(node="n0", root=tree.root)], {})


class Heard:
    """Stands for the kernel's socket: gives what it was told to, doing something before each."""

    def __init__(self, *steps) -> None:
        self.steps = list(steps)
        self.closed = False

    def next(self, deadline: Deadline):
        if not self.steps:
            return None
        step = self.steps.pop(0)
        return step() if callable(step) else step

    def close(self) -> None:
        self.closed = True


def event(subsystem: str = "infiniband", action: str = "add") -> Uevent:
    return Uevent(action=action, devpath="/devices/x", subsystem=subsystem)


def heard(driver: RdmaDriver, socket: Heard, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.setattr(watching, "UeventReader", lambda: socket)
    return watch(driver, live=True, deadline=Deadline.after(30))


def test_what_is_plugged_and_pulled_is_said(tree, driver, monkeypatch) -> None:
    def plug() -> Uevent:
        tree.rdma("mlx5_1", node_guid=SECOND)
        return event()

    def pull() -> Uevent:
        tree.remove("class/infiniband/mlx5_0")
        return event(action="remove")

    events = heard(driver, Heard(plug, None, pull, None), monkeypatch)
    added, removed = next(events), next(events)
    assert (added.type, added.subject) == (EventType.ADDED, "rnic-a088c20300ab5f41")
    assert (removed.type, removed.subject) == (EventType.REMOVED, "rnic-a088c20300ab5f40")
    assert added.at <= removed.at


def test_a_port_that_falls_is_a_change_and_a_condition(tree, driver, monkeypatch) -> None:
    def fall() -> Uevent:
        tree.write("class/infiniband/mlx5_0/ports/1/state", "1: DOWN")
        return event("net", "change")

    def rise() -> Uevent:
        tree.write("class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE")
        return event("net", "change")

    events = heard(driver, Heard(fall, None, rise, None), monkeypatch)
    said = [next(events) for _ in range(4)]
    assert [one.type for one in said] == [EventType.CHANGED, EventType.CONDITION] * 2
    assert said[0].detail == "port_state: active to down"
    assert said[1].detail.startswith("PortDown (critical)")
    assert said[3].detail == "PortDown is over"


def test_lost_events_are_said_and_everything_is_looked_at_again(tree, driver, monkeypatch) -> None:
    def burst() -> Loss:
        tree.rdma("mlx5_1", node_guid=SECOND)
        return Loss(count=3)

    events = heard(driver, Heard(burst, None), monkeypatch)
    lost, added = next(events), next(events)
    assert lost.type is EventType.LOST
    assert "3 overruns" in lost.detail
    assert added.type is EventType.ADDED


def test_the_socket_is_closed_with_the_iterator(driver, monkeypatch) -> None:
    socket = Heard(event(), None)
    monkeypatch.setattr(watching, "UeventReader", lambda: socket)
    events = watch(driver, live=True, deadline=Deadline.after(0))
    assert list(events) == []
    assert socket.closed


def test_on_a_tree_it_looks_by_itself(driver) -> None:
    assert list(driver.events(Deadline.after(0))) == []


def test_two_looks_at_the_same_differ_in_nothing(driver) -> None:
    look = {device.id: device for device in driver.discover(Deadline.after(10)).devices}
    assert list(differences(look, look, 0.0)) == []
