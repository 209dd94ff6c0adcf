"""A reliable connection by verbs: one- and two-sided verbs on a queue pair in RTS."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from hal.errors import DeviceBusy, InvalidArgument, Unsupported
from hal.interfaces.deadline import or_default
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import ATOMIC_BYTES, Access, CompletionCode, ConnectionState
from hal_rdma.buffers import address_of, as_bytes
from hal_rdma.verbs.memory import register
from hal_rdma.verbs.queue import DEPTH
from hal_rdma.verbs.wire import Address, RemoteKey, unpack_key
from hal_rdma.verbs.work import WorkRequest, error_of

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import Readable, Writable
    from hal_rdma.verbs.endpoint import VerbsEndpoint

_WORD = 1 << 64
_SCRATCH_BYTES = DEPTH * ATOMIC_BYTES
_MOST_KEYS = 4096


class VerbsConnection:
    """See :class:`hal.interfaces.rnic.Connection`."""

    def __init__(self, endpoint: VerbsEndpoint, peer: Address) -> None:
        transport = endpoint.transport
        self._endpoint = endpoint
        self._transport = transport
        self._queue = endpoint.queue
        self._peer = peer
        self._id = transport.device
        self._check = transport.check
        self._inline_bytes = endpoint.inline_bytes
        self._keys: dict[bytes, RemoteKey] = {}
        self._fenced = False
        enums = transport.verbs.enums
        self._write, self._read = enums.IBV_WR_RDMA_WRITE, enums.IBV_WR_RDMA_READ
        self._add, self._swap = enums.IBV_WR_ATOMIC_FETCH_AND_ADD, enums.IBV_WR_ATOMIC_CMP_AND_SWP
        self._message = enums.IBV_WR_SEND
        self._answered = frozenset({self._read, self._add, self._swap})
        self._signaled, self._inline, self._fence = (
            enums.IBV_SEND_SIGNALED,
            enums.IBV_SEND_INLINE,
            enums.IBV_SEND_FENCE,
        )
        # Where atomics and pulses land: a word for each request that can be under way.
        self._scratch = memoryview(mmap.mmap(-1, _SCRATCH_BYTES))
        self._words = self._scratch.cast("Q")
        self._scratch_at = address_of(self._scratch)
        self._scratch_registration = register(
            transport.verbs, transport.domain, self._scratch_at, _SCRATCH_BYTES, Access.LOCAL_WRITE, self._id
        )
        self._free = list(range(DEPTH))
        self._queue.pulse = self._post_pulse

    @property
    def state(self) -> ConnectionState:
        """The queue pair's state, after a look at what has completed."""
        self._queue.progress()
        return self._queue.state

    @property
    def error(self) -> BaseException | None:
        """What broke the connection."""
        self._queue.progress()
        return self._queue.error

    # One-sided

    def put(
        self, local: Readable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Write; done when the target's NIC has acknowledged it."""
        self._enter("put", deadline)
        data = as_bytes(local, self._id, "put")
        return self._reach("put", self._write, data, remote_address, rkey, Access.REMOTE_WRITE, deadline)

    def get(
        self, local: Writable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Read; done when the bytes are here."""
        self._enter("get", deadline)
        into = as_bytes(local, self._id, "get", writable=True)
        return self._reach("get", self._read, into, remote_address, rkey, Access.REMOTE_READ, deadline)

    def _reach(
        self,
        step: str,
        opcode: int,
        local: memoryview,
        remote_address: int,
        rkey: bytes,
        right: Access,
        deadline: Deadline | None,
    ) -> Operation[None]:
        refused = self._refused(step)
        if refused is not None:
            return refused
        key = self._allowed(step, remote_address, local.nbytes, rkey, right)
        if key is None:
            return self._refuse(step)
        self._hold_back(step, deadline)
        writes = opcode == self._read
        request, segments, flags = self._local(step, local, Access.LOCAL_WRITE if writes else Access(0), deadline)
        return self._post(request, opcode, segments, flags, lambda work: work.set_wr_rdma(key.key, remote_address))

    def fetch_add(
        self, remote_address: int, rkey: bytes, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Add as one step among all NICs' atomics."""
        self._enter("fetch_add", deadline)
        return self._change("fetch_add", self._add, remote_address, rkey, value, 0, deadline)

    def compare_and_swap(
        self, remote_address: int, rkey: bytes, expected: int, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Swap as one step among all NICs' atomics."""
        self._enter("compare_and_swap", deadline)
        return self._change("compare_and_swap", self._swap, remote_address, rkey, expected, value, deadline)

    def _change(
        self, step: str, opcode: int, address: int, rkey: bytes, first: int, second: int, deadline: Deadline | None
    ) -> Operation[int]:
        if address % ATOMIC_BYTES:
            raise self._invalid(step, f"address {address:#x} is not a multiple of 8", "align the word")
        if not (0 <= first < _WORD and 0 <= second < _WORD):
            raise self._invalid(step, "an operand does not fit an unsigned 64-bit word", "take it modulo 2**64")
        if not self._transport.atomics:
            raise Unsupported("the NIC has no atomics", device=self._id, during=step, hint="ibv_devinfo -v: atomic_cap")
        refused = self._refused(step)
        if refused is not None:
            return refused
        key = self._allowed(step, address, ATOMIC_BYTES, rkey, Access.REMOTE_ATOMIC)
        if key is None:
            return self._refuse(step)
        self._hold_back(step, deadline)
        request, segments = self._word(step, deadline)
        return self._post(
            request, opcode, segments, 0, lambda work: work.set_wr_atomic(key.key, address, first, second)
        )

    def fence(self, *, deadline: Deadline | None = None) -> None:
        """Have the next request wait for reads and atomics; writes and messages are in order by themselves."""
        self._enter("fence", deadline)
        self._fenced = True

    def flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Read one byte of the peer's: its NIC answers once what was written before is in memory."""
        self._enter("flush", deadline)
        refused = self._refused("flush")
        if refused is not None:
            return refused
        return self._read_pulse("flush", deadline)

    def _read_pulse(self, step: str, deadline: Deadline | None) -> Operation[None]:
        self._hold_back(step, deadline)
        request, segments = self._word(step, deadline, length=1)
        take = request.finish
        assert take is not None

        def finish(length: int) -> None:
            take(length)

        request.finish = finish
        peer = self._peer
        return self._post(request, self._read, segments, 0, lambda work: work.set_wr_rdma(peer.pulse_key, peer.pulse))

    def _post_pulse(self) -> None:
        self._read_pulse("pulse", None)

    # Two-sided

    def send(self, local: Readable, *, deadline: Deadline | None = None) -> Operation[None]:
        """Send a message; done when it is in the peer's buffer."""
        self._enter("send", deadline)
        data = as_bytes(local, self._id, "send")
        refused = self._refused("send")
        if refused is not None:
            return refused
        self._hold_back("send", deadline)
        request, segments, flags = self._local("send", data, Access(0), deadline)
        return self._post(request, self._message, segments, flags, None)

    def recv(self, local: Writable, *, deadline: Deadline | None = None) -> Operation[int]:
        """Post a buffer for one message."""
        self._enter("recv", deadline)
        into = as_bytes(local, self._id, "recv", writable=True)
        refused = self._refused("recv")
        if refused is not None:
            return refused
        if self._queue.receives >= DEPTH:
            self._queue.progress()
            if self._queue.receives >= DEPTH:
                raise DeviceBusy(
                    f"{DEPTH} receives are posted already", device=self._id, during="recv", hint="wait for one of them"
                )
        request, segments, _ = self._local("recv", into, Access.LOCAL_WRITE, deadline)
        request.is_receive = True
        request.finish = int
        return self._queue.post(request, self._transport.verbs.RecvWR(num_sge=len(segments), sg=segments))

    # What they have in common

    def _enter(self, step: str, deadline: Deadline | None) -> None:
        if deadline is None:
            self._check()
        else:
            self._transport.enter(step, deadline)

    def _refused(self, step: str) -> Operation[Any] | None:
        """Return the failed operation that anything is on a connection that is broken or closed."""
        if self._queue.state is ConnectionState.RTS:
            return None
        if self._queue.state is ConnectionState.RESET:
            raise self._invalid(step, "the connection is closed", "connect again")
        return Operation.failed(error_of(CompletionCode.FLUSHED, self._id, step), self._id, step)

    def _hold_back(self, step: str, deadline: Deadline | None) -> None:
        """Where the NIC's own fence cannot be used, wait for what the request must come after."""
        if self._fenced and not self._transport.fences:
            self._queue.wait_for_answers(or_default(deadline), step)

    def _allowed(self, step: str, address: int, length: int, rkey: bytes, right: Access) -> RemoteKey | None:
        """Return the NIC's key if the bytes are a key of the peer's handle and allow this; the NIC checks again."""
        rkey = bytes(rkey)
        key = self._keys.get(rkey)
        if key is None:
            key = unpack_key(rkey)
            if key is None or key.session != self._peer.session:
                return None
            if len(self._keys) >= _MOST_KEYS:
                self._keys.clear()
            self._keys[rkey] = key
        if not (key.start <= address and address + length <= key.end and right in key.access):
            return None
        return key

    def _refuse(self, step: str) -> Operation[Any]:
        """What the target would refuse breaks the connection, as if it had."""
        error = error_of(CompletionCode.REMOTE_ACCESS, self._id, step)
        self._queue.break_off(error)
        return Operation.failed(error, self._id, step)

    def _local(
        self, step: str, data: memoryview, access: Access, deadline: Deadline | None
    ) -> tuple[WorkRequest, list[Any], int]:
        """Return a request for a buffer: copied into it if small and read, else used where it is."""
        transport = self._transport
        request = self._request(step, deadline)
        request.keep = data
        size = request.size_bytes = data.nbytes
        if not size:
            return request, [], 0
        address = address_of(data)
        if not access and size <= self._inline_bytes:
            return request, [transport.verbs.SGE(address, size, 0)], self._inline
        key = transport.local_key(address, size, access)
        if key is None:
            request.registration = register(transport.verbs, transport.domain, address, size, access, self._id)
            key = request.registration.lkey
        return request, [transport.verbs.SGE(address, size, key)], 0

    def _word(self, step: str, deadline: Deadline | None, length: int = ATOMIC_BYTES) -> tuple[WorkRequest, list[Any]]:
        """Return a request whose result is a word of the scratch memory."""
        self._queue.make_room(or_default(deadline), step)
        request = self._request(step, deadline)
        free = self._free
        slot = free.pop()
        words = self._words

        def take(_: int) -> int:
            found = words[slot]
            free.append(slot)
            return found

        request.finish = take
        segment = self._transport.verbs.SGE(
            self._scratch_at + slot * ATOMIC_BYTES, length, self._scratch_registration.lkey
        )
        return request, [segment]

    def _request(self, step: str, deadline: Deadline | None) -> WorkRequest:
        request = WorkRequest(self._queue, step)
        if deadline is not None and deadline.timeout is not None:
            request.expires_at = request.posted_at + deadline.remaining_seconds
        return request

    def _post(
        self,
        request: WorkRequest,
        opcode: int,
        segments: list[Any],
        flags: int,
        aim: Callable[[Any], None] | None,
    ) -> Operation[Any]:
        self._queue.make_room(or_default(None), request.step)
        flags |= self._signaled
        if self._fenced:
            self._fenced = False
            if self._transport.fences:
                flags |= self._fence
        request.is_answered = opcode in self._answered
        work = self._transport.verbs.SendWR(opcode=opcode, num_sge=len(segments), sg=segments or None, send_flags=flags)
        if aim is not None:
            aim(work)
        return self._queue.post(request, work)

    def _invalid(self, step: str, what: str, hint: str) -> InvalidArgument:
        return InvalidArgument(what, device=self._id, during=step, hint=hint)

    def close(self) -> None:
        """End the connection and its endpoint."""
        self._endpoint.close()

    def give_back(self) -> None:
        """Deregister what the connection has of its own; its queue pair is gone."""
        registration, self._scratch_registration = self._scratch_registration, None
        if registration is not None:
            registration.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
