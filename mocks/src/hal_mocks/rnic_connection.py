"""One-sided verbs of a mock RDMA NIC: put, get and atomics.

They run in the caller's thread on the target's mapped memory; the target's process has no part in them. The way
through a verb without trouble is written out in line: it has a microsecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal_mocks.buffers import as_bytes
from hal_mocks.rnic_files import RTS
from hal_mocks.rnic_memory import ADD, GET, NEEDED, PUT, SWAP, Target
from hal_mocks.rnic_messages import Messages
from hal_mocks.rnic_pair import MTU_BYTES
from hal_mocks.rnic_queue import Lateness, Staged, WorkRequest

if TYPE_CHECKING:
    from hal.interfaces.rnic import Readable, Writable

_MAY_WRITE, _MAY_READ, _MAY_CHANGE = int(NEEDED[PUT]), int(NEEDED[GET]), int(NEEDED[ADD])
_WORD = 1 << 64
_PLAIN = (bytes, bytearray)


class MockConnection(Messages):
    """A reliable connection; see :class:`hal.interfaces.rnic.Connection`."""

    def put(
        self, local: Readable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Write into the target's memory, now or a little later, as the seed says."""
        self._check()
        if deadline is not None:
            self._be_in_time("put", deadline)
        if self._control[0] != self._clear or self._words[0] != RTS or self._peer[0] != RTS:
            refused = self._admit("put", deadline)
            if refused is not None:
                return refused
        try:
            target = self._targets.get(rkey) or self._resolve(rkey)
        except TypeError:  # a bytearray
            target = self._resolve(rkey)
        if target is None:
            return self._refuse("put", "no region has this key")
        late = self._next_late()
        offset = remote_address - target.base
        try:
            size = len(local)  # type: ignore[arg-type]
            if (
                late
                or offset < 0
                or offset + size > target.length
                or not target.words[0] & _MAY_WRITE
                or (not local.c_contiguous if type(local) is memoryview else type(local) not in _PLAIN)
            ):
                return self._put(target, offset, local, late)
            target.view[offset : offset + size] = local  # type: ignore[index, assignment]
        except (TypeError, ValueError):  # elements that are not bytes, or memory of another process: the long way
            return self._put(target, offset, local, 0)
        self._out_bytes += size
        self._out_packets += 1 if size <= MTU_BYTES else -(-size // MTU_BYTES)
        return self._done

    def _put(self, target: Target, offset: int, local: Readable, late: int) -> Operation[None]:
        data = as_bytes(local, self._id, "put")
        if not self._allows(target, offset, data.nbytes, _MAY_WRITE):
            return self._refuse("put", "range or right")
        if late == Lateness.LATE:
            # The caller may change its buffer once the put is complete, which it is: only the target sees it late.
            self._stage(Staged(target, offset, memoryview(bytes(data)), None, None))
        else:
            if late:
                self._drive()
            if self._error is not None or not self._attempt("put", lambda: target.put(offset, data)):
                return Operation.failed(self._error or self._flushed("put"), self._id, "put")
        self._count(data.nbytes, 0)
        return self._done

    def get(
        self, local: Writable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Read from the target's memory; the bytes land now, or when the operation is looked at, as the seed says."""
        self._check()
        if deadline is not None:
            self._be_in_time("get", deadline)
        if self._control[0] != self._clear or self._words[0] != RTS or self._peer[0] != RTS:
            refused = self._admit("get", deadline)
            if refused is not None:
                return refused
        try:
            target = self._targets.get(rkey) or self._resolve(rkey)
        except TypeError:  # a bytearray
            target = self._resolve(rkey)
        if target is None:
            return self._refuse("get", "no region has this key")
        late = self._next_late()
        offset = remote_address - target.base
        try:
            size = len(local)  # type: ignore[arg-type]
            if (
                late
                or offset < 0
                or offset + size > target.length
                or not target.words[0] & _MAY_READ
                or (not local.c_contiguous if type(local) is memoryview else type(local) is not bytearray)
            ):
                return self._get(target, offset, local, late)
            local[:] = target.view[offset : offset + size]  # type: ignore[index]
        except (TypeError, ValueError):
            return self._get(target, offset, local, 0)
        self._in_bytes += size
        self._in_packets += 1 if size <= MTU_BYTES else -(-size // MTU_BYTES)
        return self._done

    def _get(self, target: Target, offset: int, local: Writable, late: int) -> Operation[None]:
        into = as_bytes(local, self._id, "get", writable=True)
        if not self._allows(target, offset, into.nbytes, _MAY_READ):
            return self._refuse("get", "range or right")
        self._count(0, into.nbytes)
        if late == Lateness.LATE:
            request = WorkRequest(self._id, "get", self.progress)
            self._stage(Staged(target, offset, None, into, request))
            return request
        if late:
            self._drive()
        if self._error is not None or not self._attempt("get", lambda: target.get(offset, into)):
            return Operation.failed(self._error or self._flushed("get"), self._id, "get")
        return self._done

    def fetch_add(
        self, remote_address: int, rkey: bytes, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Add as one step among all processes."""
        return self._change("fetch_add", ADD, remote_address, rkey, value, 0, deadline)

    def compare_and_swap(
        self, remote_address: int, rkey: bytes, expected: int, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Swap as one step among all processes."""
        return self._change("compare_and_swap", SWAP, remote_address, rkey, expected, value, deadline)

    def _change(
        self, step: str, verb: int, address: int, rkey: bytes, first: int, second: int, deadline: Deadline | None
    ) -> Operation[int]:
        self._check()
        if address % 8:
            raise self._invalid(step, f"address {address:#x} is not a multiple of 8", "align the word")
        if not (0 <= first < _WORD and 0 <= second < _WORD):
            raise self._invalid(step, "an operand does not fit an unsigned 64-bit word", "take it modulo 2**64")
        refused = self._enter(step, deadline)
        if refused is not None:
            return refused
        try:
            target = self._targets.get(rkey) or self._resolve(rkey)
        except TypeError:  # a bytearray
            target = self._resolve(rkey)
        if target is None:
            return self._refuse(step, "no region has this key")
        offset = address - target.base
        if not self._allows(target, offset, 8, _MAY_CHANGE):
            return self._refuse(step, "range or right")
        found: list[int] = []
        if not self._attempt(step, lambda: found.append(target.change(verb, offset, first, second))):
            return Operation.failed(self._error or self._flushed(step), self._id, step)
        self._count(8, 8)
        return Operation.completed(found[0], self._id, step)
