"""Software NICs as devices: what the variable may say, and what a device of software honestly tells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.contract import HostRoot
from hal.errors import InvalidArgument, NotReady
from hal.model.attributes import Absence
from hal.model.kind import Kind
from hal_rdma.software import SOFTWARE, parse_software, software_devices, software_id, transports_of

HERE = HostRoot(node="here", rack="r7")


def devices(text, **environ):
    return software_devices({SOFTWARE: text, **environ}, HERE, driver="rdma")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (" ; ", {}),
        ("shm", {"shm": ("posix", "cma")}),
        ("shm;tcp", {"shm": ("posix", "cma"), "tcp": ("tcp",)}),
        ("a=shm; b = posix,cma ;c=tcp", {"a": ("posix", "cma"), "b": ("posix", "cma"), "c": ("tcp",)}),
        ("ib0=rc_verbs,ud", {"ib0": ("rc_verbs", "ud")}),
    ],
)
def test_the_variable_names_devices_and_transports(text, found):
    assert {nic.name: nic.transports for nic in parse_software({SOFTWARE: text})} == found


@pytest.mark.parametrize("text", ["ib0", "=shm", "a=", "a=shm;a=tcp", "a b=shm", "a=sh/m", "é=shm", "shm;shm"])
def test_what_cannot_be_read_is_refused_with_an_example(text):
    with pytest.raises(InvalidArgument) as caught:
        parse_software({SOFTWARE: text})
    assert SOFTWARE in str(caught.value)
    assert "a=shm;b=shm" in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        nics = parse_software({SOFTWARE: text})
    except InvalidArgument:
        return
    assert all(nic.name and nic.transports for nic in nics)


def test_a_software_nic_says_that_it_is_one():
    (device,) = devices("shm")
    assert device.kind is Kind.RNIC
    assert device.value("software") is True
    assert device.value("model") == "software RDMA over UCX (shared memory)"
    assert device.why_absent("rate_gbps") is Absence.UNSUPPORTED
    assert device.why_absent("node_guid") is Absence.UNSUPPORTED
    assert all(attribute.detail for attribute in device.attributes.values() if attribute.absent)
    assert device.allocatable
    assert (device.location.node, device.location.rack) == ("here", "r7")
    assert transports_of(device) == ("posix", "cma")


def test_ids_are_stable_and_of_this_machine(tmp_path):
    (first,), (again,) = devices("a=shm"), devices("a=tcp")
    assert first.id == again.id, "the name makes the id, not what carries its bytes"
    prefix, _, digits = first.id.partition("-")
    assert prefix == "rnic"
    assert len(digits) == 16
    int(digits, 16)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    elsewhere = software_id("a", "here", tmp_path)
    assert elsewhere != first.id
    assert elsewhere == software_id("a", "renamed", tmp_path)
    assert software_id("a", "here", tmp_path / "none") != software_id("a", "there", tmp_path / "none")


def test_a_recorded_tree_has_no_software_nics(tmp_path):
    tree = HostRoot(node="there", root=str(tmp_path))
    assert software_devices({SOFTWARE: "shm"}, tree, driver="rdma") == ()


def test_without_a_library_there_is_one_line(monkeypatch):
    monkeypatch.setattr("hal_rdma.ucx.library._wheel_path", lambda: None)
    monkeypatch.setattr("hal_rdma.ucx.library._system_has", lambda environ: False)
    with pytest.raises(NotReady) as caught:
        devices("shm")
    assert "libucp" in str(caught.value)
    assert "pip install" in str(caught.value)
    assert devices("") == ()
