"""Counters: their units, absences that are no zeros, wraps, clearings, and the rates that health is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.contract import HostRoot
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import LinkLayer, PhysicalState, Port, PortState
from hal.model.attributes import Absence
from hal.model.health import Severity
from hal.testing.trees import FakeTree
from hal_mocks.rnic_link import damping
from hal_rdma.counters import growth, numbers, read_counters
from hal_rdma.driver import RdmaDriver
from hal_rdma.health import HALF_LIFE_SECONDS, RULES, WINDOW_SECONDS, PortHistory, damp, judge_history

SECOND_OF_400G = 400e9 / 8


def port(rate_gbps: float = 400.0, *, up: bool = True) -> Port:
    return Port(
        number=1,
        state=PortState.ACTIVE if up else PortState.DOWN,
        physical_state=PhysicalState.LINK_UP if up else PhysicalState.POLLING,
        link_layer=LinkLayer.INFINIBAND,
        rate_gbps=rate_gbps,
        max_rate_gbps=rate_gbps,
        lid=1,
    )


def test_words_become_bytes_and_what_is_not_there_is_absent(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    path = tree.rdma("mlx5_0", node_guid="a088:c203:00ab:5f40")
    tree.write(f"{path}/ports/1/counters/port_xmit_data", 1000)
    tree.write(f"{path}/ports/1/counters/port_rcv_data", (1 << 64) - 1)
    tree.garbage(f"{path}/ports/1/counters/symbol_error")
    tree.write(f"{path}/ports/1/hw_counters/local_ack_timeout_err", 3)
    tree.write(f"{path}/ports/1/hw_counters/lifespan", 10)
    with HostTree(tree.root) as host:
        found = read_counters(host.sys, "mlx5_0", 1, LinkLayer.INFINIBAND)
    assert found["port_xmit_data_bytes"].value == 4000
    assert found["port_rcv_data_bytes"].value == 4 * ((1 << 64) - 1)
    assert "port_xmit_data" not in found
    assert found["link_downed"].value == 0
    assert found["symbol_error"].absent is Absence.MALFORMED
    assert found["port_xmit_wait"].absent is Absence.NOT_REPORTED
    assert found["local_ack_timeout_err"].value == 3
    assert "lifespan" not in found, "for how long the kernel keeps what it read is no counter"
    assert found["out_of_sequence"].absent is Absence.NOT_REPORTED
    assert all(one.source for one in found.values())


def test_a_driver_without_counters_has_absences_with_their_reason(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    path = tree.rdma("rxe0", node_guid="a088:c203:00ab:5f40", link_layer="Ethernet", counters=False)
    tree.write(f"{path}/ports/1/hw_counters/link_downed", 2)
    with HostTree(tree.root) as host:
        found = read_counters(host.sys, "rxe0", 1, LinkLayer.ETHERNET)
    assert found["port_xmit_data_bytes"].absent is Absence.NOT_REPORTED
    assert "no counters/" in found["port_xmit_data_bytes"].detail
    assert found["symbol_error"].absent is Absence.UNSUPPORTED
    assert found["link_downed"].value == 2, "soft RoCE counts it among its own"
    assert found["link_downed"].source == "sysfs:hw_counters/link_downed"


@settings(deadline=None)
@given(before=st.integers(0, (1 << 64) - 1), more=st.integers(0, 1 << 24), bits=st.sampled_from([32, 64]))
def test_a_wrap_is_counted_exactly(before: int, more: int, bits: int) -> None:
    before %= 1 << bits
    now = (before + more) % (1 << bits)
    assert growth("port_xmit_packets", before, now, 1 << 26) == more


@settings(deadline=None)
@given(before=st.integers(0, (1 << 64) - 1), now=st.integers(0, (1 << 64) - 1), most=st.integers(0, 1 << 40))
def test_growth_is_never_negative_and_never_more_than_possible(before: int, now: int, most: int) -> None:
    for name in ("port_xmit_data_bytes", "symbol_error", "link_downed"):
        more = growth(name, before, now, most)
        assert more is None or 0 <= more <= most


@pytest.mark.parametrize(
    ("name", "before", "now", "expected"),
    [
        ("port_rcv_errors", 5000, 3, 3),  # cleared by perfquery -R
        ("port_xmit_data_bytes", 4 * ((1 << 32) - 10), 40, 80),  # a 32-bit counter of words wrapped
        ("port_xmit_data_bytes", 4 * ((1 << 64) - 10), 40, 80),
        ("port_xmit_data_bytes", 1000, 4 * ((1 << 64) - 1), None),  # all ones: the device is gone
        ("symbol_error", 0xFFFF, 0xFFFF, None),  # stands at its top and counts no more
        ("symbol_error", 0xFFF0, 0xFFFF, 15),
        ("link_downed", 255, 255, None),
    ],
)
def test_what_a_difference_means(name: str, before: int, now: int, expected: int | None) -> None:
    assert growth(name, before, now, 1e9) == expected


def test_what_was_counted_before_the_first_look_is_no_ones_news() -> None:
    history = PortHistory()
    history.observe(0.0, port(), {"symbol_error": 60_000, "link_downed": 200})
    history.observe(60.0, port(), {"symbol_error": 60_001, "link_downed": 200})
    assert judge_history("n", port(), history, 60.0) == []


def test_errors_are_judged_by_their_rate_and_clear_at_half_of_it() -> None:
    history = PortHistory()
    rule = next(rule for rule in RULES if rule.counter == "link_error_recovery")
    count = 0
    history.observe(0.0, port(), {rule.counter: count})
    history.observe(1.0, port(), {rule.counter: (count := count + rule.many)})
    (condition,) = judge_history("n", port(), history, 1.0)
    assert (condition.type, condition.count) == (rule.type, rule.many)
    assert f"grew by {rule.many}" in condition.evidence
    later = 1.0 + WINDOW_SECONDS + 1
    history.observe(later, port(), {rule.counter: (count := count + rule.many // 2 + 1)})
    assert judge_history("n", port(), history, later), "still more than half of what raised it"
    much_later = later + WINDOW_SECONDS + 1
    history.observe(much_later, port(), {rule.counter: count})
    assert judge_history("n", port(), history, much_later) == []


def test_a_flapping_link_is_suppressed_until_its_penalty_has_decayed() -> None:
    history = PortHistory()
    for second in range(4):
        history.observe(float(second), port(), {"link_downed": second})
    (condition,) = judge_history("n", port(), history, 3.0)
    assert (condition.type, condition.severity, condition.count) == ("LinkFlapping", Severity.DEGRADED, 3)
    assert judge_history("n", port(), history, 3.0 + HALF_LIFE_SECONDS)
    assert judge_history("n", port(), history, 3.0 + 3 * HALF_LIFE_SECONDS) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 10_000), max_size=40).map(sorted), st.floats(10_000, 20_000))
def test_damping_is_that_of_the_mock(downs: list[float], now: float) -> None:
    mine, theirs = damp(downs, now), damping(downs, now)
    assert mine[0] == pytest.approx(theirs[0])
    assert mine[1] == theirs[1]


def test_a_link_slower_than_it_has_been_is_degraded() -> None:
    history = PortHistory()
    history.observe(0.0, port(400.0), {})
    history.observe(1.0, port(200.0), {})
    (condition,) = judge_history("n", port(200.0), history, 1.0)
    assert (condition.type, condition.severity) == ("LinkDegraded", Severity.DEGRADED)
    assert "200 Gb/s of 400" in condition.evidence
    assert judge_history("n", port(10.0, up=False), history, 1.0) == [], "a port that is down has no rate"


def test_a_year_of_traffic_on_a_full_link_raises_nothing() -> None:
    history = PortHistory()
    total = 0
    for minute in range(10):
        history.observe(minute * 60.0, port(), {"port_xmit_data_bytes": total % (4 << 32)})
        total += int(60 * SECOND_OF_400G / 4) * 4
    assert judge_history("n", port(), history, 600.0) == []


def test_the_driver_samples_counters_between_looks(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    path = tree.rdma("mlx5_0", node_guid="a088:c203:00ab:5f40")
    driver = RdmaDriver([HostRoot(node="n0", root=tree.root)], {})
    (device,) = driver.discover(Deadline.after(10)).devices
    assert driver.sample([device.id], Deadline.after(10)) == []
    for downs in (1, 2, 3):
        tree.write(f"{path}/ports/1/counters/link_downed", downs)
        conditions = driver.sample([device.id], Deadline.after(10))
    assert [one.type for one in conditions] == ["LinkFlapping"]
    tree.write(f"{path}/ports/1/counters/link_downed", 0)
    assert [one.type for one in driver.sample([device.id], Deadline.after(10))] == ["LinkFlapping"], "cleared, not over"


def test_only_counters_with_a_value_are_numbers(tmp_path: Path) -> None:
    tree = FakeTree(tmp_path)
    tree.rdma("mlx5_0", node_guid="a088:c203:00ab:5f40")
    with HostTree(tree.root) as host:
        told = numbers(read_counters(host.sys, "mlx5_0", 1, LinkLayer.INFINIBAND))
    assert told == {"link_downed": 0, "symbol_error": 0}
