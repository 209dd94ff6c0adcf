"""The verbs of a connection over UCX. :mod:`hal_rdma.ucx.quick` stands in front for what is plain.

Where the target's memory is mapped here, put and get are copies and atomics are the processor's own; everything else
goes through UCX under the link's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from hal.errors import DeviceBusy, InvalidArgument, RemoteAccessError
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import Access, CompletionCode, ConnectionState
from hal_rdma.buffers import as_bytes
from hal_rdma.ucx import declarations as c
from hal_rdma.ucx.changes import ADD, SWAP, Change
from hal_rdma.ucx.keys import Address, open_key
from hal_rdma.ucx.link import Link
from hal_rdma.ucx.link_state import CHANGE, CREDIT
from hal_rdma.ucx.operations import Request, finished
from hal_rdma.ucx.quick import quick_verbs
from hal_rdma.ucx.targets import Target, unpack

if TYPE_CHECKING:
    from hal.interfaces.rnic import Readable, Writable
    from hal_rdma.ucx.endpoint import UcxEndpoint

_WORD = 1 << 64
_QUEUE_DEPTH = 1024
_ASKING_SECONDS = 2.0


class UcxConnection:
    """A reliable connection; see :class:`hal.interfaces.rnic.Connection`."""

    def __init__(self, endpoint: UcxEndpoint, link: Link, peer: Address) -> None:
        transport = link.transport
        self._endpoint = endpoint
        self._link = link
        self._peer = peer
        self._check = transport.check
        self._enter_handle = transport.enter
        self._device = link.device
        self._targets = link.targets
        self._library = link.worker.library
        self._done: Operation[None] = finished(link.device, "put")(None)
        self._flushed: Operation[None] = finished(link.device, "flush")(None)
        self._counted = finished(link.device, "fetch_add")
        self._swapped = finished(link.device, "compare_and_swap")
        self._by_owner = transport.software and not transport.shares_memory
        self._fenced = False
        self._next_change = 1
        for name, verb in quick_verbs(self, link).items():
            setattr(self, name, verb)  # in front of the methods, which they call for whatever is not plain

    @property
    def state(self) -> ConnectionState:
        """``rts``, ``error`` or ``reset``."""
        return self._link.state

    @property
    def error(self) -> BaseException | None:
        """What broke the connection."""
        return self._link.error

    # One-sided

    def put(
        self, local: Readable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Write into the target's memory."""
        found = self._reach("put", Access.REMOTE_WRITE, local, remote_address, rkey, deadline)
        if not isinstance(found, tuple):
            return found
        target, data = found
        if target.view is not None:
            try:
                target.view[remote_address - target.key.address :][: data.nbytes] = data
            except ValueError:
                return self._refuse("put", "its region was closed meanwhile")
            self._link.out_bytes += data.nbytes
            return self._done
        start, size, worker = self._library.address_of(data), data.nbytes, self._link.worker
        call = self._library.ucp.ucp_put_nbx
        return self._post(
            "put",
            lambda: call(worker.ep, start, size, remote_address, target.rkey, worker.plain),
            data,
            target,
            out=size,
        )

    def get(
        self, local: Writable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Read from the target's memory."""
        found = self._reach("get", Access.REMOTE_READ, local, remote_address, rkey, deadline)
        if not isinstance(found, tuple):
            return found
        target, into = found
        if target.view is not None:
            try:
                into[:] = target.view[remote_address - target.key.address :][: into.nbytes]
            except ValueError:
                return self._refuse("get", "its region was closed meanwhile")
            self._link.in_bytes += into.nbytes
            return self._done
        start = self._library.address_of(into)
        worker, size = self._link.worker, into.nbytes
        call = self._library.ucp.ucp_get_nbx
        return self._post(
            "get",
            lambda: call(worker.ep, start, size, remote_address, target.rkey, worker.plain),
            into,
            target,
            into=size,
        )

    def fetch_add(
        self, remote_address: int, rkey: bytes, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Add as one step among all processes."""
        self._check()
        return self._change("fetch_add", remote_address, rkey, value, None, deadline)

    def compare_and_swap(
        self, remote_address: int, rkey: bytes, expected: int, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Swap as one step among all processes."""
        self._check()
        return self._change("compare_and_swap", remote_address, rkey, expected, value, deadline)

    def _change(
        self, step: str, address: int, rkey: bytes, first: int, second: int | None, deadline: Deadline | None
    ) -> Operation[int]:
        if address % 8:
            raise self._invalid(step, f"address {address:#x} is not a multiple of 8", "align the word")
        if not (0 <= first < _WORD and 0 <= (second or 0) < _WORD):
            raise self._invalid(step, "an operand does not fit an unsigned 64-bit word", "take it modulo 2**64")
        found = self._reach(step, Access.REMOTE_ATOMIC, _WORD_BYTES, address, rkey, deadline)
        if not isinstance(found, tuple):
            return found
        target, _ = found
        library, worker = self._library, self._link.worker
        ffi = library.ffi
        if target.view is not None and library.atomics is not None:
            pointer = target.pointer + address - target.key.address
            if second is None:
                return self._counted(library.atomics.fetch_add(pointer, first, c.SEQ_CST))
            word = ffi.new("uint64_t*", first)
            library.atomics.compare_exchange(pointer, word, second, c.SEQ_CST, c.SEQ_CST)
            return self._swapped(int(word[0]))
        if self._by_owner:
            return self._ask_owner(step, target, address, first, second)
        argument, reply = ffi.new("uint64_t*", first), ffi.new("uint64_t*", second or 0)
        params = ffi.new("ucp_request_param_t*")
        params.op_attr_mask = c.OP_DATATYPE | c.OP_REPLY_BUFFER
        params.datatype = c.WORD_DATATYPE
        params.reply_buffer = reply
        verb = c.ATOMIC_ADD if second is None else c.ATOMIC_COMPARE_SWAP
        call = library.ucp.ucp_atomic_op_nbx
        return self._post(
            step,
            lambda: call(worker.ep, verb, argument, 1, address, target.rkey, params),
            (argument, reply, params),
            target,
            value=lambda: int(reply[0]),
            out=8,
            into=8,
        )

    def _ask_owner(self, step: str, target: Target, address: int, first: int, second: int | None) -> Operation[int]:
        link = self._link
        if self._fenced:
            self._fenced = False  # what was put before the fence is there before this is asked
            self.flush().wait(Deadline.after(_ASKING_SECONDS))
        change = Change(ADD if second is None else SWAP, target.key.region, address, first, second or 0)
        request = Request(link, step, 0, None)
        with link.lock:
            if link.state is not ConnectionState.RTS:
                return Operation.failed(link.flushed(step), self._device, step)
            number = self._next_change
            self._next_change += 1
            link.changes[number] = request
            link.quiet = False
            link.tell(CHANGE, number, change.encode())
            link.out_bytes += 8
            link.in_bytes += 8
        link.rouse()
        return request

    # Keys, and what UCX does

    def _reach(
        self, step: str, right: Access, local: Any, address: int, rkey: bytes, deadline: Deadline | None
    ) -> tuple[Target, memoryview] | Operation[Any]:
        """Return the target and the local bytes, or the operation that has failed."""
        refused = self._begin(step, deadline)
        if refused is not None:
            return refused
        data = as_bytes(local, self._device, step, writable=right is Access.REMOTE_READ)
        sealed = bytes(rkey)
        target = self._targets.all.get(sealed)
        if target is None:
            key = open_key(sealed, self._peer.owner, self._peer.secret)
            if key is None:
                return self._refuse(step, "the key is none of the peer's")
            until = time.monotonic() + _ASKING_SECONDS
            if deadline is not None:
                until = min(until, time.monotonic() + deadline.remaining_seconds)
            alive = self._link.ask(sealed, until)
            if self._link.error is not None:
                return Operation.failed(self._link.flushed(step), self._device, step)
            if alive is None:
                self._link.refuse(self._link.transfer_error(step, "the peer does not answer for its key"))
                return self._fail(step)
            if not alive:
                return self._refuse(step, "the key's region is closed")
            status = c.INVALID_ADDR
            with self._link.lock:
                # Under the lock the owner cannot have heard that the key was put away: the region is there still.
                if self._link.state is ConnectionState.RTS and key.region not in self._targets.dead:
                    status, target = unpack(key, self._link.worker.ep, self._library)
                    if target is not None:
                        self._targets.add(sealed, target, atomics=self._library.atomics is not None)
            if target is None:
                return self._refuse(step, f"UCX cannot read the key: {self._library.describe(status)}")
        if not target.allows(right, address, data.nbytes):
            return self._refuse(step, "range or right")
        return target, data

    def _post(
        self,
        step: str,
        call: Callable[[], int],
        keep: Any,
        target: Target,
        *,
        value: Callable[[], Any] | None = None,
        out: int = 0,
        into: int = 0,
    ) -> Operation[Any]:
        link = self._link
        request: Request | None = None
        with link.lock:
            if link.state is not ConnectionState.RTS or target.key.region in link.targets.dead:
                return Operation.failed(link.flushed(step), self._device, step)
            handle = call()
            if handle > 0:
                request = Request(link, step, handle, keep, value)
                link.pending.append(request)
            if handle >= 0:
                link.posted += 1
                link.quiet = False
                link.out_bytes += out
                link.in_bytes += into
        if handle < 0:
            link.refuse(link.failure(step, handle))
            return self._fail(step)
        link.rouse()
        if request is not None:
            return request
        return finished(self._device, step)(None if value is None else value())

    def _begin(self, step: str, deadline: Deadline | None) -> Operation[Any] | None:
        self._enter_handle(step, deadline)
        state = self._link.state
        if state is ConnectionState.RTS:
            return None
        if state is ConnectionState.RESET:
            raise self._invalid(step, "the connection is closed", "connect again with a new endpoint")
        return Operation.failed(self._link.flushed(step), self._device, step)

    def _refuse(self, step: str, why: str) -> Operation[Any]:
        self._link.refuse(
            RemoteAccessError(
                f"refused: {why}",
                device=self._device,
                during=step,
                hint="ask the peer for the region's address, length, rights and a fresh key",
                code=CompletionCode.REMOTE_ACCESS,
            )
        )
        return self._fail(step)

    def _fail(self, step: str) -> Operation[Any]:
        return Operation.failed(self._link.error or self._link.flushed(step), self._device, step)

    def _invalid(self, step: str, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._device, during=step, hint=hint)

    # Two-sided

    def send(self, local: Readable, *, deadline: Deadline | None = None) -> Operation[None]:
        """Send into the peer's oldest receive, or wait for one as long as the endpoint is patient."""
        self._check()
        refused = self._begin("send", deadline)
        if refused is not None:
            return refused
        message = as_bytes(local, self._device, "send")
        link = self._link
        request = Request(link, "send", 0, message)
        with link.lock:
            if link.state is not ConnectionState.RTS:
                return Operation.failed(link.flushed("send"), self._device, "send")
            link.sends.append((message, request, time.monotonic() + link.rnr_timeout_seconds))
            link.deliver()
        link.poll()
        link.rouse()
        return request

    def recv(self, local: Writable, *, deadline: Deadline | None = None) -> Operation[int]:
        """Post a buffer for the next message."""
        self._check()
        refused = self._begin("recv", deadline)
        if refused is not None:
            return refused
        into = as_bytes(local, self._device, "recv", writable=True)
        link, start = self._link, self._library.address_of(into)
        with link.lock:
            if link.state is not ConnectionState.RTS:
                return Operation.failed(link.flushed("recv"), self._device, "recv")
            if len(link.receives) >= _QUEUE_DEPTH:
                raise DeviceBusy(
                    "the receive queue is full",
                    device=self._device,
                    during="recv",
                    hint="wait for a posted receive before posting another",
                )
            handle = link.worker.receive(start, into.nbytes, link.data_tag)
            request = Request(link, "recv", handle, into)
            link.receives.append((into, request))
            link.tell(CREDIT, into.nbytes)
        link.rouse()
        return request

    # Order and visibility

    def fence(self, *, deadline: Deadline | None = None) -> None:
        """Order what was posted before in front of what is posted after."""
        self._enter_handle("fence", deadline)
        link = self._link
        link.drain_changes(time.monotonic() + _ASKING_SECONDS)
        if not link.posted:
            link.order()
        elif link.targets.writes or link.targets.words:
            # A copy does not wait for what UCX has under way, so here order needs the target.
            self.flush(deadline=deadline).wait(deadline or Deadline.after(_ASKING_SECONDS))
        else:
            self._fenced = True
            with link.lock:
                if link.state is ConnectionState.RTS:
                    self._library.ucp.ucp_worker_fence(link.worker.handle)

    def flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Make everything visible: at once where all was copied, else when the peer has answered."""
        self._check()
        link = self._link
        refused = self._begin("flush", deadline)
        if refused is not None:
            return refused
        link.order()
        link.drain_changes(time.monotonic() + _ASKING_SECONDS)
        with link.lock:
            if link.state is not ConnectionState.RTS:
                return Operation.failed(link.flushed("flush"), self._device, "flush")
            posted = link.posted
            handle = link.worker.flush() if posted else 0

            def settled() -> None:
                if link.posted == posted:
                    link.posted = 0
                    link.quiet = link.state is ConnectionState.RTS and not link.changes

            if handle > 0:
                request = Request(link, "flush", handle, None, settled)
                link.pending.append(request)
            elif handle == 0:
                settled()
        if handle < 0:
            link.refuse(link.failure("flush", handle))
            return self._fail("flush")
        link.rouse()
        return request if handle > 0 else self._flushed

    def close(self) -> None:
        """End the connection. Idempotent."""
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_WORD_BYTES = memoryview(bytes(8))
