"""Remote keys and addresses: only what their owner made is believed, and nothing of it may be changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.drivers.contract import HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import InvalidArgument, RemoteAccessError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, ConnectionState
from hal.testing.kinds.rnic_bench import connect, finish
from hal_rdma.driver import RdmaDriver
from hal_rdma.ucx.keys import Address, Key, decode_address, encode_address, open_key, seal_key

OWNER, SECRET = bytes(range(16)), bytes(range(32))
KEY = Key(OWNER, 7, 0x7F00_0000_1000, 4096, 15, b"packed by UCX")


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=1, max_size=32),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=200),
)
def test_a_key_opens_to_what_was_sealed(owner, secret, region, address, packed):
    key = Key(owner, region, address, 4096, 15, packed)
    assert open_key(seal_key(key, secret), owner, secret) == key


@given(st.data())
def test_a_key_with_any_bit_changed_or_cut_is_none(data):
    sealed = bytearray(seal_key(KEY, SECRET))
    if data.draw(st.booleans()):
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        start = data.draw(st.integers(0, len(sealed) - 1))
        del sealed[start : start + data.draw(st.integers(1, len(sealed)))]
    assert open_key(bytes(sealed), OWNER, SECRET) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_no_key_and_no_address(told):
    assert open_key(told, OWNER, SECRET) is None
    assert decode_address(told) is None


def test_a_key_of_somebody_else_is_none():
    assert open_key(seal_key(KEY, SECRET), bytes(16), SECRET) is None
    assert open_key(seal_key(KEY, b"another secret"), OWNER, SECRET) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_an_address_with_a_byte_changed_is_none(at, change):
    address = Address("TCP", "1.22", "boot", 1, 2, 3, OWNER, SECRET, 4, b"worker")
    told = bytearray(encode_address(address))
    assert decode_address(bytes(told)) == address
    told[at % len(told)] ^= change
    assert decode_address(bytes(told)) is None


@pytest.fixture(params=["shm", "tcp"])
def nics(request, tmp_path):
    environ = {"HAL_RDMA_SOFTWARE": f"a={request.param};b={request.param}", "XDG_RUNTIME_DIR": str(tmp_path)}
    driver = RdmaDriver((HostRoot(node="here"),), environ)
    opened = [
        driver.open(device.id, OpenGuard(), Deadline.after(10))
        for device in driver.discover(Deadline.after(10)).devices
    ]
    yield opened
    for nic in opened:
        nic.close()


def test_forged_keys_are_refused_before_anything_crosses(nics):
    near, far = nics
    region = far.register(64, ALL_ACCESS)
    good = bytearray(region.rkey)
    for at in range(0, len(good), 7):
        forged = bytearray(good)
        forged[at] ^= 0x40
        here, _there = connect(near, far)
        posted = here._link.posted
        with pytest.raises(RemoteAccessError):
            finish(here, here.put(b"forged", region.address, bytes(forged)))
        assert here._link.posted == posted
        assert here.state is ConnectionState.ERROR
        here.close()
    assert bytes(region.view) == bytes(64)


def test_a_key_of_another_nic_is_foreign_and_refused(nics):
    near, far = nics
    mine = near.register(64, ALL_ACCESS)
    here, _there = connect(near, far)
    with pytest.raises(RemoteAccessError):
        finish(here, here.put(b"foreign", mine.address, mine.rkey))
    assert bytes(mine.view) == bytes(64)


def test_no_write_lands_in_memory_of_the_user_after_its_region_was_closed(nics):
    near, far = nics
    buffer = bytearray(64)
    here, _there = connect(near, far)
    region = far.register(buffer, ALL_ACCESS)
    address, rkey = region.address, region.rkey
    finish(here, here.put(b"before", address, rkey))
    region.close()
    with pytest.raises(RemoteAccessError):
        finish(here, here.put(b"after!", address, rkey))
    assert buffer[:6] == b"before"
    buffer.extend(b"free to move again")


def test_memory_that_somebody_still_looks_at_outlives_its_region(nics):
    _, far = nics
    region = far.register(4096, ALL_ACCESS)
    view = region.view
    view[:4] = b"kept"
    region.close()
    with pytest.raises(InvalidArgument):
        region.view  # noqa: B018 - asking is what fails
    assert bytes(view[:4]) == b"kept"


def test_nics_of_different_media_do_not_connect(tmp_path):
    driver = RdmaDriver(
        (HostRoot(node="here"),), {"HAL_RDMA_SOFTWARE": "a=shm;b=tcp", "XDG_RUNTIME_DIR": str(tmp_path)}
    )
    a, b = (driver.open(d.id, OpenGuard(), Deadline.after(10)) for d in driver.discover(Deadline.after(10)).devices)
    with a, b, a.endpoint() as here, b.endpoint() as there, pytest.raises(InvalidArgument, match="talks over"):
        here.connect(there.address)
