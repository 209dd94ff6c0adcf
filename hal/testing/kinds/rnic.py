"""What every driver of an RDMA NIC must do: give ``driver``, and be examined between two NICs, or one and itself.

Checks with a second process need :meth:`RnicConformance.peer_driver_spec`; a driver that cannot be built again in
another process declares ``lacks = frozenset({"second-process"})``.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from hal.drivers.contract import Grant
from hal.drivers.guard import GuardPages
from hal.errors import (
    FlushedError,
    InvalidArgument,
    LeaseEnded,
    RemoteAccessError,
    TransferError,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import ALL_ACCESS, Access, CompletionCode, ConnectionState, Port, Rnic
from hal.model.device import Device
from hal.testing.conformance import assert_error_is_for_people, needs
from hal.testing.kinds.rnic_bench import WITHIN, Pair, RnicBench, connect, finish, flush_until_it_ends
from hal.testing.kinds.rnic_peer import PeerProcess

RKEY_OF_NOBODY = bytes(range(16))


class RnicConformance(RnicBench):
    """The checks for RDMA NICs."""

    interface = Rnic

    def test_ports_are_numbered_and_complete(self, nic: Rnic) -> None:
        ports = nic.ports()
        assert ports
        assert len({port.number for port in ports}) == len(ports)
        for port in ports:
            assert isinstance(port, Port)
            assert 0 < port.rate_gbps <= port.max_rate_gbps
            assert all(len(gid.gid.split(":")) == 8 for gid in port.gids)

    def test_counters_speak_bytes_and_never_invent_zeros(self, nic: Rnic) -> None:
        counters = nic.counters()
        assert not {"port_xmit_data", "port_rcv_data"} & set(counters), "these are in words of four bytes"
        for name, attribute in counters.items():
            assert attribute.source, name
            assert (attribute.value is None) == (attribute.absent is not None), name

    def test_counters_count_what_is_put(self, nic: Rnic, pair: Pair) -> None:
        before = nic.counters()["port_xmit_data_bytes"]
        pair.near.put(b"x" * 1000, pair.region.address, pair.region.rkey).wait(Deadline.after(WITHIN))
        pair.near.flush().wait(Deadline.after(WITHIN))
        after = nic.counters()["port_xmit_data_bytes"]
        if before.known:
            assert cast(int, after.value) >= cast(int, before.value) + 1000

    def test_a_port_that_does_not_exist_is_refused(self, nic: Rnic) -> None:
        with pytest.raises(InvalidArgument) as caught:
            nic.counters(99)
        assert_error_is_for_people(caught.value, nic.device.id)
        with pytest.raises(InvalidArgument):
            nic.endpoint(99)

    # Memory

    def test_a_region_says_where_and_how_long_it_is(self, nic: Rnic) -> None:
        with nic.register(100, ALL_ACCESS) as region:
            assert region.length_bytes == len(region.view) == 100
            assert region.access == ALL_ACCESS
            assert bytes(region.view) == bytes(100)
            assert isinstance(region.rkey, bytes)
            assert region.rkey

    def test_registering_the_users_buffer_copies_nothing(self, nic: Rnic) -> None:
        buffer = bytearray(64)
        with nic.register(buffer) as region:
            region.view[3] = 7
            assert buffer[3] == 7

    @pytest.mark.parametrize("access", [Access.REMOTE_WRITE, Access.REMOTE_ATOMIC])
    def test_remote_writing_needs_local_writing(self, nic: Rnic, access: Access) -> None:
        with pytest.raises(InvalidArgument):
            nic.register(64, access)

    def test_memory_that_cannot_be_registered_is_refused(self, nic: Rnic) -> None:
        for memory in (0, bytearray(), b"read-only", memoryview(bytearray(64))[::2]):
            with pytest.raises(InvalidArgument):
                nic.register(memory, Access.LOCAL_WRITE)

    # Connecting

    def test_a_connection_goes_through_its_states(self, nic: Rnic, peer: Rnic) -> None:
        with nic.endpoint() as near, peer.endpoint() as far:
            assert near.state is ConnectionState.INIT
            connection = near.connect(far.address)
            far.connect(near.address)
            states = [connection.state]
            connection.close()
            states.append(connection.state)
            assert states == [ConnectionState.RTS, ConnectionState.RESET]
            connection.close()

    def test_bytes_that_are_no_address_are_refused(self, nic: Rnic) -> None:
        with nic.endpoint() as endpoint:
            for nonsense in (b"", b"nonsense", bytes(64)):
                with pytest.raises(InvalidArgument):
                    endpoint.connect(nonsense)

    # One-sided

    def test_what_is_put_is_there_after_a_flush(self, pair: Pair) -> None:
        pair.near.put(b"remote memory", pair.region.address + 100, pair.region.rkey).wait(Deadline.after(WITHIN))
        pair.near.flush().wait(Deadline.after(WITHIN))
        assert bytes(pair.region.view[100:113]) == b"remote memory"

    def test_a_buffer_may_be_used_again_once_its_put_is_done(self, pair: Pair) -> None:
        buffer = bytearray(8)
        for number in range(64):
            buffer[:] = number.to_bytes(8, "little")
            pair.near.put(buffer, pair.region.address + 8 * number, pair.region.rkey).wait(Deadline.after(WITHIN))
        pair.near.flush().wait(Deadline.after(WITHIN))
        assert list(pair.region.view[:512].cast("Q")) == list(range(64))

    def test_arrays_are_put_and_got_as_their_bytes(self, pair: Pair) -> None:
        import numpy as np

        sent, got = np.arange(12.0).reshape(3, 4), np.zeros((3, 4))
        for _ in range(32):
            pair.near.put(sent, pair.region.address, pair.region.rkey).wait(Deadline.after(WITHIN))
            pair.near.fence()
            pair.near.get(got, pair.region.address, pair.region.rkey).wait(Deadline.after(WITHIN))
            assert (got == sent).all()
            sent, got = sent + 1, np.zeros((3, 4))

    def test_a_get_is_complete_when_it_is_done(self, pair: Pair) -> None:
        pair.region.view[:] = bytes(number % 251 for number in range(4096))
        for start in range(64):
            into = bytearray(512)
            pair.near.get(into, pair.region.address + start, pair.region.rkey).wait(Deadline.after(WITHIN))
            assert into == pair.region.view[start : start + 512]

    def test_fetch_add_gives_what_was_there_and_wraps(self, pair: Pair) -> None:
        address, rkey = pair.region.address + 16, pair.region.rkey
        assert pair.near.fetch_add(address, rkey, (1 << 64) - 1).wait(Deadline.after(WITHIN)) == 0
        assert pair.near.fetch_add(address, rkey, 3).wait(Deadline.after(WITHIN)) == (1 << 64) - 1
        assert pair.region.view[16:24].cast("Q")[0] == 2

    def test_compare_and_swap_stores_only_what_it_expected(self, pair: Pair) -> None:
        address, rkey = pair.region.address, pair.region.rkey
        assert pair.near.compare_and_swap(address, rkey, 0, 11).wait(Deadline.after(WITHIN)) == 0
        assert pair.near.compare_and_swap(address, rkey, 0, 22).wait(Deadline.after(WITHIN)) == 11
        assert pair.region.view[:8].cast("Q")[0] == 11

    def test_an_atomic_that_is_not_aligned_is_refused_and_breaks_nothing(self, pair: Pair) -> None:
        with pytest.raises(InvalidArgument):
            pair.near.fetch_add(pair.region.address + 4, pair.region.rkey, 1)
        with pytest.raises(InvalidArgument):
            pair.near.compare_and_swap(pair.region.address, pair.region.rkey, 1 << 64, 0)
        assert pair.near.state is ConnectionState.RTS

    def test_memory_of_the_user_is_reached_too(self, peer: Rnic, pair: Pair) -> None:
        buffer = bytearray(64)
        with peer.register(buffer, ALL_ACCESS) as region:
            pair.near.put(b"mine", region.address + 8, region.rkey).wait(Deadline.after(WITHIN))
            pair.near.flush().wait(Deadline.after(WITHIN))
            assert buffer[8:12] == b"mine"

    def test_any_order_of_verbs_ends_as_the_model_says(self, pair: Pair) -> None:
        model = bytearray(4096)
        choose = random.Random(7)
        pending: list[tuple[int, int]] = []

        def order(start: int, end: int) -> None:
            # Nothing is ordered without a fence, so whoever touches the same bytes again asks for one.
            if any(start < late_end and late_start < end for late_start, late_end in pending):
                pair.near.fence()
                pending.clear()

        for _ in range(400):
            verb, start = choose.choice(("put", "get", "add", "swap")), 8 * choose.randrange(500)
            address = pair.region.address + start
            if verb == "put":
                data = choose.randbytes(choose.randrange(1, 80))
                order(start, start + len(data))
                pair.near.put(data, address, pair.region.rkey).wait(Deadline.after(WITHIN))
                model[start : start + len(data)] = data
                pending.append((start, start + len(data)))
            elif verb == "get":
                order(start, start + 64)
                into = bytearray(64)
                pair.near.get(into, address, pair.region.rkey).wait(Deadline.after(WITHIN))
                assert into == model[start : start + 64]
            else:
                order(start, start + 8)
                before = int.from_bytes(model[start : start + 8], "little")
                value = choose.getrandbits(64)
                if verb == "add":
                    found = pair.near.fetch_add(address, pair.region.rkey, value)
                    after = (before + value) % (1 << 64)
                else:
                    expected = before if choose.random() < 0.5 else value
                    found = pair.near.compare_and_swap(address, pair.region.rkey, expected, value)
                    after = value if expected == before else before
                assert found.wait(Deadline.after(WITHIN)) == before
                model[start : start + 8] = after.to_bytes(8, "little")
                pending.append((start, start + 8))
        pair.near.flush().wait(Deadline.after(WITHIN))
        assert pair.region.view == model

    def test_operations_can_be_awaited(self, pair: Pair) -> None:
        async def work() -> int:
            await pair.near.put(b"x", pair.region.address + 64, pair.region.rkey)
            await pair.near.flush()
            received = pair.far.recv(bytearray(16))
            await pair.near.send(b"five!")
            assert await received == 5
            return await pair.near.fetch_add(pair.region.address, pair.region.rkey, 1)

        assert asyncio.run(work()) == 0

    # Errors

    def test_a_key_of_nobody_is_refused_and_breaks_the_connection(self, pair: Pair) -> None:
        with pytest.raises(RemoteAccessError) as caught:
            finish(pair.near, pair.near.put(b"x", pair.region.address, RKEY_OF_NOBODY))
        assert caught.value.code == CompletionCode.REMOTE_ACCESS
        assert pair.near.state is ConnectionState.ERROR
        assert isinstance(pair.near.error, RemoteAccessError)
        for operation in (
            pair.near.put(b"x", pair.region.address, pair.region.rkey),
            pair.near.get(bytearray(1), pair.region.address, pair.region.rkey),
            pair.near.fetch_add(pair.region.address, pair.region.rkey, 1),
            pair.near.send(b"x"),
            pair.near.recv(bytearray(1)),
            pair.near.flush(),
        ):
            with pytest.raises(FlushedError):
                operation.wait(Deadline.after(WITHIN))
        assert pair.region.view[0] == 0, "what is flushed never ran"

    @pytest.mark.parametrize("offset", [-1, 4096 - 7, 1 << 40])
    def test_outside_of_a_region_is_refused(self, pair: Pair, offset: int) -> None:
        with pytest.raises(RemoteAccessError):
            finish(pair.near, pair.near.put(bytes(8), pair.region.address + offset, pair.region.rkey))

    @pytest.mark.parametrize(
        ("verb", "right"),
        [("put", Access.REMOTE_WRITE), ("get", Access.REMOTE_READ), ("fetch_add", Access.REMOTE_ATOMIC)],
    )
    def test_a_right_that_was_not_given_is_refused(self, peer: Rnic, pair: Pair, verb: str, right: Access) -> None:
        near = pair.near
        with peer.register(64, ALL_ACCESS & ~right) as region:
            operation: Operation[Any]
            if verb == "put":
                operation = near.put(b"x", region.address, region.rkey)
            elif verb == "get":
                operation = near.get(bytearray(1), region.address, region.rkey)
            else:
                operation = near.fetch_add(region.address, region.rkey, 1)
            with pytest.raises(RemoteAccessError):
                finish(near, operation)

    def test_a_key_is_dead_once_its_region_is_closed(self, peer: Rnic, pair: Pair) -> None:
        region = peer.register(64, ALL_ACCESS)
        pair.near.put(b"x", region.address, region.rkey).wait(Deadline.after(WITHIN))
        pair.near.flush().wait(Deadline.after(WITHIN))
        region.close()
        region.close()
        with pytest.raises(RemoteAccessError):
            finish(pair.near, pair.near.put(b"y", region.address, region.rkey))

    def test_a_connection_ends_with_its_lease(
        self, pair: Pair, device: Device, pages: GuardPages, grant: Grant
    ) -> None:
        pages.revoke(device.id, grant.fence)
        for verb in (
            lambda: pair.near.put(b"x", pair.region.address, pair.region.rkey),
            lambda: pair.near.get(bytearray(1), pair.region.address, pair.region.rkey),
            lambda: pair.near.fetch_add(pair.region.address, pair.region.rkey, 1),
            lambda: pair.near.send(b"x"),
            lambda: pair.near.recv(bytearray(1)),
            lambda: pair.near.flush(),
        ):
            with pytest.raises(LeaseEnded):
                verb()
        assert pair.region.view[0] == 0

    def test_a_closed_peer_is_a_typed_error(self, pair: Pair) -> None:
        pair.far.close()
        with pytest.raises(TransferError):
            flush_until_it_ends(pair.near, Deadline.after(WITHIN))
        assert pair.near.state is ConnectionState.ERROR

    # Two-sided

    @pytest.mark.parametrize("size", [1, 64, 4096, 1 << 20])
    def test_messages_arrive_in_order_and_whole(self, pair: Pair, size: int) -> None:
        buffers = [bytearray(size) for _ in range(4)]
        posted = [pair.far.recv(buffer) for buffer in buffers]
        for number in range(4):
            pair.near.send(bytes([number + 1]) * size).wait(Deadline.after(WITHIN))
        assert [receive.wait(Deadline.after(WITHIN)) for receive in posted] == [size] * 4
        assert buffers == [bytes([number + 1]) * size for number in range(4)]

    def test_a_send_waits_for_a_receive_that_comes_in_time(self, pair: Pair) -> None:
        sent = pair.near.send(b"early")
        assert not sent.done
        into = bytearray(16)
        assert pair.far.recv(into).wait(Deadline.after(WITHIN)) == 5
        sent.wait(Deadline.after(WITHIN))
        assert into[:5] == b"early"

    def test_no_receive_in_time_breaks_the_connection(self, nic: Rnic, peer: Rnic) -> None:
        near, _far = connect(nic, peer, rnr_timeout_seconds=0.01)
        with pytest.raises(TransferError) as caught:
            near.send(b"nobody listens").wait(Deadline.after(WITHIN))
        assert caught.value.code == CompletionCode.RNR_RETRY_EXCEEDED
        assert near.state is ConnectionState.ERROR

    def test_a_message_longer_than_its_receive_breaks_both_sides(self, pair: Pair) -> None:
        received = pair.far.recv(bytearray(4))
        with pytest.raises(TransferError):
            pair.near.send(b"too long").wait(Deadline.after(WITHIN))
        with pytest.raises(TransferError):
            received.wait(Deadline.after(WITHIN))
        assert pair.near.state is pair.far.state is ConnectionState.ERROR

    def test_posted_receives_flush_when_the_connection_breaks(self, pair: Pair) -> None:
        received = pair.near.recv(bytearray(4))
        pair.near.put(b"x", pair.region.address, RKEY_OF_NOBODY)
        pair.near.flush()
        with pytest.raises(FlushedError):
            received.wait(Deadline.after(WITHIN))

    # Two processes

    @needs("second-process")
    def test_memory_of_another_process_is_really_written(self, nic: Rnic, other_process: PeerProcess) -> None:
        for memory in (other_process.register(4096), other_process.register_own(64)):
            connection = other_process.connect(nic)
            connection.put(b"from afar", memory.address + 10, memory.rkey).wait(Deadline.after(WITHIN))
            connection.flush().wait(Deadline.after(WITHIN))
            assert other_process.read(memory, 10, 9) == b"from afar"
            into = bytearray(9)
            connection.get(into, memory.address + 10, memory.rkey).wait(Deadline.after(WITHIN))
            assert into == b"from afar"
            assert connection.fetch_add(memory.address, memory.rkey, 5).wait(Deadline.after(WITHIN)) == 0
            assert connection.fetch_add(memory.address, memory.rkey, 5).wait(Deadline.after(WITHIN)) == 5

    @needs("second-process")
    def test_fetch_adds_of_two_processes_lose_nothing(self, nic: Rnic, other_process: PeerProcess) -> None:
        rounds = 2000
        for own in (False, True):
            with nic.register(bytearray(64) if own else 64, ALL_ACCESS) as region, nic.endpoint() as loop:
                connection = other_process.connect(nic)
                with nic.endpoint() as back:
                    here = loop.connect(back.address)
                    back.connect(loop.address)
                    address = region.address + -region.address % 8
                    other_process.start("fetch_add", address, region.rkey, rounds)
                    for _ in range(rounds):
                        here.fetch_add(address, region.rkey, 1).wait(Deadline.after(WITHIN))
                    other_process.finish()
                    offset = address - region.address
                    assert region.view[offset : offset + 8].cast("Q")[0] == 2 * rounds
                connection.close()

    @needs("second-process")
    def test_messages_cross_processes_both_ways(self, nic: Rnic, other_process: PeerProcess) -> None:
        connection = other_process.connect(nic)
        other_process.start("echo", 50)
        into = bytearray(64)
        for number in range(50):
            received = connection.recv(into)
            connection.send(f"ping {number}".encode()).wait(Deadline.after(WITHIN))
            length = received.wait(Deadline.after(WITHIN))
            assert into[:length] == f"ping {number}".encode()[::-1]
        other_process.finish()

    @needs("second-process")
    def test_a_killed_peer_is_a_typed_error_within_a_second(self, nic: Rnic, other_process: PeerProcess) -> None:
        memory = other_process.register(4096)
        connection = other_process.connect(nic)
        connection.put(b"alive", memory.address, memory.rkey).wait(Deadline.after(WITHIN))
        connection.flush().wait(Deadline.after(WITHIN))
        waiting = connection.recv(bytearray(16))
        other_process.kill()
        with pytest.raises(TransferError):
            waiting.wait(Deadline.after(1))
        with pytest.raises(TransferError):
            finish(connection, connection.put(b"dead", memory.address, memory.rkey), within_seconds=1)
        assert connection.state is ConnectionState.ERROR
