"""Random sequences of one-sided verbs against what any legal order of them may leave behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.guard import OpenGuard
from hal.errors import RemoteAccessError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS
from hal.testing.kinds.rnic_bench import connect
from hal_mocks.machine import Machine
from hal_mocks.profile import load_profile
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.rnic_queue import Lateness

WORDS = 4
SOON = Deadline.after(3600)


@pytest.fixture(scope="module")
def nics(tmp_path_factory):
    driver = MockRnicDriver(Machine(load_profile("dgx-h100"), tmp_path_factory.mktemp("machine")))
    near, far = (driver.open(device.id, OpenGuard(), SOON) for device in driver.discover(SOON).devices[:2])
    yield near, far
    near.close()
    far.close()


word = st.integers(0, WORDS - 1)
value = st.integers(0, (1 << 64) - 1)
step = st.one_of(
    st.tuples(st.just("put"), word, value),
    st.tuples(st.just("get"), word, value),
    st.tuples(st.just("add"), word, value),
    st.tuples(st.just("swap"), word, value),
    st.tuples(st.just("fence"), word, value),
    st.tuples(st.just("flush"), word, value),
)


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(step, max_size=30), seed=st.integers(0, 1 << 16), own=st.booleans())
def test_every_word_is_what_some_legal_order_makes_of_it(nics, steps, seed, own):
    near, far = nics
    connection, back = connect(near, far)
    connection._lateness = Lateness(str(seed))
    connection._next_late = connection._lateness.turns()
    # A word's possible values: one where everything is fenced, more while puts to it are under way.
    settled: list[int] = [0] * WORDS
    late: list[set[int]] = [set() for _ in range(WORDS)]

    def order():
        for index, values in enumerate(late):
            if values:
                found = region.view[8 * index : 8 * index + 8].cast("Q")[0]
                assert found in values, "after a fence and a flush one of the puts must have won"
                settled[index] = found
                values.clear()

    with connection, back, far.register(bytearray(8 * WORDS) if own else 8 * WORDS, ALL_ACCESS) as region:
        for verb, index, number in steps:
            address = region.address + 8 * index
            if verb == "put":
                connection.put(number.to_bytes(8, "little"), address, region.rkey).wait()
                late[index].add(number)
            elif verb == "get":
                into = bytearray(8)
                connection.get(into, address, region.rkey).wait()
                assert int.from_bytes(into, "little") in {settled[index], *late[index]}
            elif verb in ("add", "swap"):
                if late[index]:
                    connection.fence()
                    order()
                before = settled[index]
                if verb == "add":
                    assert connection.fetch_add(address, region.rkey, number).wait() == before
                    settled[index] = (before + number) % (1 << 64)
                else:
                    assert connection.compare_and_swap(address, region.rkey, before, number).wait() == before
                    assert connection.compare_and_swap(address, region.rkey, ~number % (1 << 64), 0).wait() == number
                    settled[index] = number
            elif verb == "fence":
                connection.fence()
                order()
            else:
                connection.flush().wait()
                order()
        connection.flush().wait()
        order()
        assert list(region.view.cast("Q")) == settled


@settings(max_examples=30, deadline=None)
@given(rkey=st.binary(max_size=40))
def test_no_garbage_is_a_key(nics, rkey):
    near, far = nics
    connection, back = connect(near, far)
    with connection, back, far.register(8, ALL_ACCESS) as region:
        with pytest.raises(RemoteAccessError):
            connection.put(b"x", region.address, rkey).wait()
        assert region.view[0] == 0


def test_a_key_of_another_session_of_the_same_nic_is_nobodys(nics, tmp_path):
    near, far = nics
    machine = far._machine
    stranger = MockRnicDriver(machine).open(far.device.id, OpenGuard(), SOON)
    connection, back = connect(near, far)
    with stranger, connection, back, stranger.register(8, ALL_ACCESS) as region, pytest.raises(RemoteAccessError):
        connection.put(b"x", region.address, region.rkey).wait()
