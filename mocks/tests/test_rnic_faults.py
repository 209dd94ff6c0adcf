from __future__ import annotations

import msgspec
import pytest

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded, DeviceGone, FlushedError, InvalidArgument, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, ConnectionState, PhysicalState, PortState
from hal.model.health import Health, Presence
from hal.testing.kinds.rnic_bench import connect
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu_state import begin_boot, card_id
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.rnic_link import damping

SOON = Deadline.after(3600)


def graph(seed=1):
    return load_profile("dgx-h100", seed=seed)


class Bench:
    """Two InfiniBand NICs on a virtual clock, connected, with 4 KiB between them."""

    def __init__(self, folder, shape=None):
        self.machine = Machine(shape or graph(), folder, VirtualClock())
        self.driver = MockRnicDriver(self.machine)
        self.ids = [device.id for device in self.driver.discover(SOON).devices]
        self.near, self.far = (self.driver.open(device_id, OpenGuard(), SOON) for device_id in self.ids[:2])
        self.connection, self.back = connect(self.near, self.far)
        self.region = self.far.register(4096, ALL_ACCESS)

    def put(self, data=b"x"):
        return self.connection.put(data, self.region.address, self.region.rkey)

    def advance(self, seconds):
        self.machine.clock.advance(seconds)

    def conditions(self, index=0):
        return {condition.type: condition for condition in self.driver.sample([self.ids[index]], SOON)}


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.near.close()
    bench.far.close()


@pytest.mark.parametrize("end", [0, 1])
def test_a_cut_cable_at_either_end_fails_a_put_after_its_retries(bench, end):
    bench.put().wait()
    bench.machine.inject(bench.ids[end], FaultType.LINK_DOWN)
    before = bench.machine.clock.now()
    with pytest.raises(TransferError) as caught:
        bench.put().wait()
    assert caught.value.code == 12
    assert bench.machine.clock.now() - before == pytest.approx(7 * 4.096e-6 * 2**14)
    assert bench.connection.state is ConnectionState.ERROR
    with pytest.raises(FlushedError):
        bench.put().wait()
    assert bench.near.counters()["local_ack_timeout_err"].value == 8


def test_a_link_that_comes_back_between_retries_costs_only_timeouts(bench):
    bench.machine.inject(bench.ids[1], FaultType.LINK_DOWN, duration_seconds=0.2)
    bench.put(b"late").wait()
    bench.connection.flush().wait()
    assert bytes(bench.region.view[:4]) == b"late"
    assert bench.connection.state is ConnectionState.RTS
    assert 1 <= bench.near.counters()["local_ack_timeout_err"].value <= 7


def test_an_impatient_caller_of_a_downed_link_learns_that_the_outcome_is_unknown(bench):
    bench.machine.inject(bench.ids[0], FaultType.LINK_DOWN)
    with pytest.raises(DeadlineExceeded):
        bench.connection.put(b"x", bench.region.address, bench.region.rkey, deadline=Deadline.after(-1))


def test_a_downed_port_says_so_and_recovers(bench):
    fault = bench.machine.inject(bench.ids[0], FaultType.LINK_DOWN)
    (port,) = bench.near.ports()
    assert (port.state, port.physical_state) == (PortState.DOWN, PhysicalState.POLLING)
    device = bench.driver.find(bench.ids[0])
    assert device.value("port_state") == "down"
    assert device.links[0].state == "down"
    assert device.health is Health.SUSPECT
    assert bench.conditions()["PortDown"].blocks_new_leases
    assert bench.near.counters()["link_downed"].value == 1
    with pytest.raises(TransferError):
        bench.near.endpoint()
    bench.machine.heal(id=fault.id)
    assert bench.near.ports()[0].up
    assert bench.conditions() == {}
    assert bench.near.counters()["link_downed"].value == 1


@pytest.mark.parametrize(
    ("left", "rate"),
    [({"width": 1}, 100.0), ({"width": 2, "generation": 5}, 50.0), ({"generation": 6}, 200.0), ({}, 200.0)],
)
def test_a_degraded_link_works_at_its_rate_and_counts_symbol_errors(bench, left, rate):
    bench.machine.inject(bench.ids[0], FaultType.LINK_DEGRADED, **left)
    bench.put().wait()
    assert bench.near.ports()[0].rate_gbps == rate
    assert bench.near.ports()[0].max_rate_gbps == 400.0
    assert bench.conditions()["LinkDegraded"].blocks_new_leases
    assert bench.near.counters()["symbol_error"].value > 0


def test_a_flapping_link_is_suppressed_until_its_penalty_has_decayed(bench):
    fault = bench.machine.inject(bench.ids[0], FaultType.FLAP, seconds=60.0)
    assert not bench.near.ports()[0].up
    assert set(bench.conditions()) == {"PortDown"}
    bench.advance(30)
    assert bench.near.ports()[0].up
    assert bench.conditions() == {}, "one down is no flapping"
    bench.advance(60 * 2)
    assert set(bench.conditions()) == {"LinkFlapping"}
    assert bench.near.counters()["link_downed"].value == 3
    bench.machine.heal(id=fault.id)
    bench.advance(600)
    assert set(bench.conditions()) == {"LinkFlapping"}, "damping outlives the fault"
    bench.advance(3600)
    assert bench.conditions() == {}


def test_damping_halves_in_a_quarter_of_an_hour_and_has_a_ceiling():
    assert damping([], 100.0) == (0.0, False)
    assert damping([0.0], 900.0) == (pytest.approx(500.0), False)
    assert damping([0.0, 0.0, 0.0], 0.0) == (3000.0, True)
    assert damping([0.0, 0.0, 0.0], 1790.0)[1]
    assert not damping([0.0, 0.0, 0.0], 1801.0)[1]
    penalty, suppressed = damping([float(second) for second in range(60)], 60.0)
    assert penalty <= 12_000
    assert suppressed
    assert not damping([float(second) for second in range(60)], 60.0 + 3600)[1], "an hour clears the worst"


def test_a_lost_nic_raises_and_breaks_its_connections(bench):
    bench.machine.inject(bench.ids[0], FaultType.LOST)
    with pytest.raises(DeviceGone):
        bench.put()
    bench.machine.heal(bench.ids[0])
    with pytest.raises(FlushedError):
        bench.put().wait()


def test_a_lost_peer_exceeds_the_retries(bench):
    bench.machine.inject(bench.ids[1], FaultType.FALLEN_OFF_BUS)
    with pytest.raises(TransferError):
        bench.put().wait()


def test_a_reset_brings_a_lost_nic_back_with_counters_at_zero_and_nothing_registered(bench):
    bench.put(b"x" * 100).wait()
    bench.machine.inject(bench.ids[1], FaultType.LOST)
    bench.driver.reset(bench.ids[1]).wait(SOON)
    assert bench.driver.find(bench.ids[1]).health is Health.HEALTHY
    with pytest.raises(TransferError):
        bench.put().wait()
    assert bench.back.state is ConnectionState.ERROR
    assert bench.near.counters()["port_xmit_data_bytes"].value == 100
    bench.driver.reset(bench.ids[0]).wait(SOON)
    assert bench.near.counters()["port_xmit_data_bytes"].value == 0


def test_a_nic_off_the_bus_is_not_reset(bench):
    bench.machine.inject(bench.ids[0], FaultType.FALLEN_OFF_BUS)
    assert bench.driver.find(bench.ids[0]).presence is Presence.MISSING
    with pytest.raises(DeviceGone):
        bench.driver.reset(bench.ids[0]).wait(SOON)


def test_a_lying_nic_says_what_it_was_told_to(bench):
    bench.machine.inject(bench.ids[0], FaultType.LIE, attribute="rate_gbps", value="800")
    assert bench.driver.find(bench.ids[0]).value("rate_gbps") == 800.0
    bench.machine.inject(bench.ids[0], FaultType.LIE, attribute="symbol_error", value="77")
    assert bench.near.counters()["symbol_error"].value == 77


def test_different_link_layers_do_not_connect(bench):
    devices = bench.driver.discover(SOON).devices
    third_id = next(device.id for device in devices if device.value("link_layer") == "Ethernet")
    third = bench.driver.open(third_id, OpenGuard(), SOON)
    with third.endpoint() as there, bench.near.endpoint() as here, pytest.raises(InvalidArgument, match="link layer"):
        here.connect(there.address)
    third.close()


def test_both_sides_count_the_bytes_of_puts_and_gets(bench):
    bench.put(b"x" * 4096).wait()
    bench.connection.get(bytearray(1000), bench.region.address, bench.region.rkey).wait()
    near, far = bench.near.counters(), bench.far.counters()
    assert near["port_xmit_data_bytes"].value == far["port_rcv_data_bytes"].value == 4096
    assert near["port_rcv_data_bytes"].value == far["port_xmit_data_bytes"].value == 1000
    bench.connection.close()
    assert bench.near.counters()["port_xmit_data_bytes"].value == 4096, "counters outlive the connection"


def test_refused_requests_are_counted_at_both_ends(bench):
    bench.connection.get(bytearray(1), bench.region.address, bytes(16))
    assert bench.near.counters()["req_remote_access_errors"].value == 1
    assert bench.far.counters()["resp_remote_access_errors"].value == 1
    assert bench.back.state is ConnectionState.ERROR, "the responder's queue pair breaks too"


def test_a_taken_back_nic_refuses_its_former_holders_peers(bench):
    bench.put().wait()
    bench.driver.unprepare(bench.ids[1], Grant(lease="x", fence=9), SOON)
    with pytest.raises(TransferError):
        bench.put(b"y").wait()
    assert bytes(bench.region.view[:1]) != b"y"


def test_the_same_seed_is_late_in_the_same_places(tmp_path):
    def visible(seed, folder):
        bench = Bench(folder, graph(seed=seed))
        seen = []
        for number in range(1, 65):
            bench.connection.put(bytes([number]), bench.region.address, bench.region.rkey).wait()
            seen.append(bench.region.view[0])
        bench.connection.flush().wait()
        bench.near.close()
        bench.far.close()
        return seen

    first, again, other = visible(1, tmp_path / "1"), visible(1, tmp_path / "2"), visible(2, tmp_path / "3")
    assert first == again
    assert first != other
    assert first != list(range(1, 65)), "some puts are visible late"


def test_a_nic_is_down_while_its_dpu_is_down(tmp_path):
    whole = load_profile("bluefield-host")
    host = whole.hosts[0]
    card = host.dpus[0]
    on_card = next(rnic for rnic in host.rnics if rnic.dpu == card.name)
    alone = msgspec.structs.replace(on_card, dpu="", pci="", node_guid="0011:2233:4455:6677")
    plain = msgspec.structs.replace(host, name="b", rack=host.name, pci=(), dpus=(), rnics=(alone,))
    host = msgspec.structs.replace(host, rack=host.name, rnics=(on_card,))
    shape = msgspec.structs.replace(whole, hosts=(host, plain))
    bench = Bench(tmp_path, shape)
    bench.put().wait()
    assert bench.driver.find(bench.ids[0]).parent == card_id(card)
    boot = begin_boot(bench.machine, card_id(card))
    device = bench.driver.find(bench.ids[0])
    assert device.presence is Presence.GHOST
    assert device.value("port_state") == "down"
    assert "ParentDown" in bench.conditions()
    for verb in (bench.near.ports, bench.put, lambda: bench.driver.open(bench.ids[0], OpenGuard(), SOON)):
        with pytest.raises(DeviceGone, match="DPU"):
            verb()
    bench.advance(boot.ready_at - bench.machine.clock.now() + 1)
    assert bench.near.ports()[0].up
    with pytest.raises(FlushedError):
        bench.put().wait()
    fresh, _ = connect(bench.near, bench.far)
    fresh.put(b"again", bench.region.address, bench.region.rkey).wait()
    bench.near.close()
    bench.far.close()
