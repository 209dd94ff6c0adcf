"""Services and flow rules: who finds and ends them, what is refused, and the words that tc is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.errors import InvalidArgument, Unsupported
from hal.interfaces.dpu import FlowMatch, ServiceSpec, ServiceState
from hal_bluefield.handle import BlueField
from hal_bluefield.matches import variants
from plugins.bluefield.tests.standin import StandIn
from plugins.bluefield.tests.ways import make, soon


def test_a_service_is_found_and_ended_by_another_process(card: StandIn, dpu: BlueField) -> None:
    dpu.deploy(ServiceSpec(name="web", command=("/bin/sh", "-c", "exec sleep 600"), env={"A": "it's b"})).wait(soon())
    with make(card).open(card.id, OpenGuard(fence=5), soon()) as other:
        (service,) = other.services()
        assert (service.spec.name, service.state, service.spec.env) == ("web", ServiceState.RUNNING, {"A": "it's b"})
        other.stop("web", grace_seconds=0.1).wait(soon())
    assert [found.state for found in dpu.services()] == [ServiceState.STOPPED]


@pytest.mark.parametrize(
    "spec",
    [
        ServiceSpec(name="", command=("true",)),
        ServiceSpec(name="a b", command=("true",)),
        ServiceSpec(name="a;reboot", command=("true",)),
        ServiceSpec(name="a"),
        ServiceSpec(name="a", command=("true",), cores=0),
        ServiceSpec(name="a", command=("true",), memory_bytes=1 << 50),
        ServiceSpec(name="a", command=("true",), ports=(0,)),
    ],
)
def test_a_service_that_makes_no_sense_is_refused(dpu: BlueField, spec: ServiceSpec) -> None:
    with pytest.raises(InvalidArgument):
        dpu.deploy(spec).wait(soon())
    assert dpu.services() == ()


def test_without_an_image_for_commands_one_must_be_named(card: StandIn) -> None:
    driver = make(card, service_image=None)
    with driver.open(card.id, OpenGuard(), soon()) as dpu, pytest.raises(Unsupported, match="names no image"):
        dpu.deploy(ServiceSpec(name="a", command=("true",))).wait(soon())


def test_a_match_without_an_ip_version_is_a_filter_for_each() -> None:
    assert variants(FlowMatch(), "d", "s") == (("all", ()),)
    assert variants(FlowMatch(protocol=6, destination_port=80), "d", "s") == (
        ("ip", ("ip_proto", "tcp", "dst_port", "80")),
        ("ipv6", ("ip_proto", "tcp", "dst_port", "80")),
    )
    assert variants(FlowMatch(source="fe80::/10"), "d", "s") == (("ipv6", ("src_ip", "fe80::/10")),)
    assert variants(FlowMatch(vlan=7), "d", "s") == (("802.1Q", ("vlan_id", "7")),)
    assert variants(FlowMatch(vlan=7, source="10.1.0.0/16"), "d", "s") == (
        ("802.1Q", ("vlan_id", "7", "vlan_ethtype", "ip", "src_ip", "10.1.0.0/16")),
    )
    assert variants(FlowMatch(ethertype=0x0806), "d", "s") == (("arp", ()),)


@given(
    match=st.builds(
        FlowMatch,
        ethertype=st.none() | st.integers(-1, 70000),
        protocol=st.none() | st.integers(-1, 300),
        source=st.none() | st.sampled_from(["10.0.0.1", "10.0.0.0/33", "fe80::1", "x", "::/0", "10.1.2.3/8"]),
        destination=st.none() | st.sampled_from(["10.0.0.1", "::1", "; reboot"]),
        source_port=st.none() | st.integers(-1, 70000),
        destination_port=st.none() | st.integers(-1, 70000),
        vlan=st.none() | st.integers(-1, 5000),
    )
)
def test_any_match_is_words_without_a_trick_or_a_clear_refusal(match: FlowMatch) -> None:
    try:
        found = variants(match, "dpu-1", "add_flow")
    except InvalidArgument:
        return
    assert 1 <= len(found) <= 2
    for protocol, words in found:
        for word in (protocol, *words):
            assert word
            assert not set(word) - set("abcdefghijklmnopqrstuvwxyzQ0123456789_.:/"), word
