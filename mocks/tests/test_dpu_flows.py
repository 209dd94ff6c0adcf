"""The mock DPU's flow table against a plain model, and its engines against other implementations."""

from __future__ import annotations

import binascii
import hashlib
import ipaddress
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import AuthenticationFailed, DeviceBusy, DeviceGone, InvalidArgument
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import DpuMode, FlowAction, FlowMatch, FlowVerdict
from hal_mocks import dpu_flows
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.dpu_flows import Packet, inject_packets
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.dpu_offloads import offloads_of, start_offload
from hal_mocks.dpu_state import begin_boot
from hal_mocks.graph import Dpu
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile

SOON = 10.0
DROP = FlowAction(verdict=FlowVerdict.DROP)
PASS = FlowAction(verdict=FlowVerdict.PASS)
SAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(load_profile("bluefield-host", seed=7), tmp_path / "state", VirtualClock())


@pytest.fixture
def dpu(machine: Machine) -> MockDpu:
    driver = MockDpuDriver(machine)
    dpu_id = driver.describe()[0].id
    driver.prepare(dpu_id, Grant(lease="a", fence=1), Deadline.after(SOON))
    return driver.open(dpu_id, OpenGuard("a", 1), Deadline.after(SOON))


def test_the_first_rule_that_fits_decides_and_counts(machine: Machine, dpu: MockDpu) -> None:
    to_arm = FlowAction(verdict=FlowVerdict.REDIRECT, port="pf0hpf")
    all_tcp = dpu.add_flow(FlowMatch(protocol=6), DROP, priority=50)
    web = dpu.add_flow(FlowMatch(protocol=6, destination_port=443, destination="10.1.0.0/16"), to_arm, priority=1)
    outcome = inject_packets(
        machine,
        dpu.device.id,
        [
            Packet(protocol=6, destination="10.1.2.3", destination_port=443, length_bytes=1500),
            Packet(protocol=6, destination="10.2.2.3", destination_port=443, length_bytes=64),
            Packet(protocol=6, destination="10.1.2.3", destination_port=443, length_bytes=100),
            Packet(protocol=17),
        ],
    )
    assert outcome == (to_arm, DROP, to_arm, PASS)
    counted = {rule.id: (rule.packets, rule.bytes) for rule in dpu.flows()}
    assert counted == {web.id: (2, 1600), all_tcp.id: (1, 64)}


def test_counters_go_on_over_calls_and_another_process_sees_them(machine: Machine, dpu: MockDpu) -> None:
    dpu.add_flow(FlowMatch(), DROP)
    for _ in range(3):
        inject_packets(machine, dpu.device.id, [Packet()] * 10)
    other = Machine(machine.graph, machine.state.folder, machine.clock)
    observer = MockDpuDriver(other).open(dpu.device.id, OpenGuard(), Deadline.after(SOON))
    assert [rule.packets for rule in observer.flows()] == [30]


def test_there_is_no_link_while_the_card_boots(machine: Machine, dpu: MockDpu) -> None:
    begin_boot(machine, dpu.device.id)
    with pytest.raises(DeviceGone):
        inject_packets(machine, dpu.device.id, [Packet()])


def test_a_full_table_takes_no_more(dpu: MockDpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpu_flows, "TABLE_SIZE", 3)
    rules = [dpu.add_flow(FlowMatch(), DROP) for _ in range(3)]
    with pytest.raises(DeviceBusy):
        dpu.add_flow(FlowMatch(), DROP)
    dpu.delete_flow(rules[0].id)
    assert dpu.add_flow(FlowMatch(), DROP).id not in {rule.id for rule in rules}


addresses = st.builds(
    lambda number: str(ipaddress.ip_address(0x0A000000 | number)), st.integers(min_value=0, max_value=255)
)
matches = st.builds(
    FlowMatch,
    protocol=st.none() | st.sampled_from([6, 17]),
    destination=st.none() | st.builds("{}/{}".format, addresses, st.integers(min_value=20, max_value=32)),
    source=st.none() | addresses,
    destination_port=st.none() | st.integers(min_value=80, max_value=82),
    vlan=st.none() | st.sampled_from([1, 2]),
)
packets = st.builds(
    Packet,
    protocol=st.sampled_from([6, 17]),
    destination=addresses,
    source=addresses,
    destination_port=st.integers(min_value=80, max_value=82),
    vlan=st.none() | st.sampled_from([1, 2]),
    length_bytes=st.integers(min_value=64, max_value=9000),
)


def _fits(match: FlowMatch, packet: Packet) -> bool:
    for address, prefix in ((packet.source, match.source), (packet.destination, match.destination)):
        if prefix is not None:
            network, _, bits = prefix.partition("/")
            shift = 32 - int(bits or 32)
            if int(ipaddress.ip_address(network)) >> shift != int(ipaddress.ip_address(address)) >> shift:
                return False
    return (
        match.protocol in (None, packet.protocol)
        and match.destination_port in (None, packet.destination_port)
        and match.vlan in (None, packet.vlan)
    )


@SAMPLES
@given(
    rules=st.lists(st.tuples(matches, st.integers(min_value=0, max_value=3)), max_size=6),
    traffic=st.lists(packets, max_size=8),
)
def test_every_packet_counts_where_a_plain_search_says(
    machine: Machine, dpu: MockDpu, rules: list[tuple[FlowMatch, int]], traffic: list[Packet]
) -> None:
    for rule in dpu.flows():
        dpu.delete_flow(rule.id)
    added = [dpu.add_flow(match, DROP, priority=priority) for match, priority in rules]
    outcome = inject_packets(machine, dpu.device.id, traffic)
    expected = {rule.id: [0, 0] for rule in added}
    verdicts = []
    for packet in traffic:
        hit = min((r for r in added if _fits(r.match, packet)), key=lambda r: (r.priority, r.id), default=None)
        verdicts.append(PASS if hit is None else DROP)
        if hit is not None:
            expected[hit.id][0] += 1
            expected[hit.id][1] += packet.length_bytes
    assert list(outcome) == verdicts
    assert {rule.id: [rule.packets, rule.bytes] for rule in dpu.flows()} == expected


CARD = Dpu(
    name="dpu0", serial="S", psid="", generation="BlueField-2", pci=(), rshim="", rnics=(), cores=8, memory_bytes=1
)


ENGINES = {offload.name: offload for offload in offloads_of(CARD, DpuMode.DPU)}


def compute(name: str, data: bytes, **parameters: object) -> bytes:
    return start_offload("dpu-S", ENGINES, name, data, parameters).wait(Deadline.after(SOON))


@SAMPLES
@given(data=st.binary(max_size=200_000) | st.binary(max_size=64), level=st.integers(min_value=1, max_value=9))
def test_engines_agree_with_other_implementations(data: bytes, level: int) -> None:
    assert compute("crc32", data) == binascii.crc32(data).to_bytes(4, "big")
    half = len(data) // 2
    begun = int.from_bytes(compute("crc32", data[:half]), "big")
    assert compute("crc32", data[half:], initial=begun) == compute("crc32", data)
    for name in ("sha1", "sha256", "sha512"):
        assert compute(name, data) == hashlib.new(name, data).digest()
    packed = compute("compress", data, level=level)
    assert zlib.decompress(packed, wbits=-15) == data
    assert compute("decompress", packed, max_output_bytes=len(data)) == data
    if data:
        with pytest.raises(InvalidArgument):
            compute("decompress", packed, max_output_bytes=len(data) - 1)
    with pytest.raises(InvalidArgument):
        compute("decompress", packed + b"\0")


@SAMPLES
@given(
    data=st.binary(max_size=300),
    key=st.binary(min_size=16, max_size=16) | st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=12, max_size=12),
    aad=st.binary(max_size=40),
    bit=st.integers(min_value=0),
)
def test_one_altered_bit_anywhere_gives_nothing_out(
    data: bytes, key: bytes, nonce: bytes, aad: bytes, bit: int
) -> None:
    sealed = compute("aes-gcm-encrypt", data, key=key, nonce=nonce, aad=aad)
    assert len(sealed) == len(data) + 16
    assert compute("aes-gcm-decrypt", sealed, key=key, nonce=nonce, aad=aad) == data
    altered = bytearray(sealed)
    place = bit % (len(altered) * 8)
    altered[place // 8] ^= 1 << place % 8
    with pytest.raises(AuthenticationFailed):
        compute("aes-gcm-decrypt", bytes(altered), key=key, nonce=nonce, aad=aad)
    with pytest.raises(InvalidArgument):
        compute("aes-gcm-decrypt", sealed[:15], key=key, nonce=nonce, aad=aad)


def test_a_buffer_above_the_engines_bound_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than the engine's"):
        compute("aes-gcm-encrypt", bytes((2 << 20) + 1), key=bytes(16), nonce=bytes(12))


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="contiguous"):
        compute("crc32", memoryview(bytes(64))[::2])
