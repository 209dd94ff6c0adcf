"""A mock queue pair in RTS: who may start, what is late, messages, and how it comes to its end."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from hal.errors import (
    DeviceGone,
    FlushedError,
    InvalidArgument,
    RemoteAccessError,
    TransferError,
)
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_mocks.rnic_files import (
    ACCESS,
    ERROR,
    IN_BYTES,
    IN_PACKETS,
    INIT,
    OUT_BYTES,
    OUT_PACKETS,
    OWN_TAG,
    PEER_TAG,
    RTR,
    RTS,
    STATE,
    SYMBOLS,
    SharedFile,
    name_ends,
    port_key,
    sweep,
    tally,
)
from hal_mocks.rnic_memory import Courier, Target
from hal_mocks.rnic_path import ACK_TIMEOUT_SECONDS, RETRIES, Address, Route
from hal_mocks.rnic_queue import Lateness, Mailbox, Queues

if TYPE_CHECKING:
    from hal_mocks.rnic_endpoint import MockEndpoint

MTU_BYTES = 4096


LIVE: WeakSet[QueuePair] = WeakSet()
"""This process's connections, so that whoever reads counters here reads them up to now."""


def packets(size: int) -> int:
    """Return how many packets carry so many bytes."""
    return max(1, -(-size // MTU_BYTES))


class QueuePair(ABC):
    """What one- and two-sided verbs share. One user's thread calls the verbs; the engine's thread calls
    :meth:`advance` and :meth:`_gone`.
    """

    def __init__(
        self,
        endpoint: MockEndpoint,
        route: Route,
        told: Address,
        peer: SharedFile,
        doorbell: socket.socket,
        session: Path,
    ) -> None:
        nic = endpoint.nic
        self._endpoint, self._nic, self._route = endpoint, nic, route
        self._id = nic.device.id
        self._check, self._be_in_time = nic._guard.check, nic._be_in_time
        self._control = route.generations
        self._clear = -1
        self._words, self._peer = endpoint.page.words, peer.words
        self._own_key, self._peer_key = port_key(self._id, endpoint.port), port_key(told.device, told.port)
        self._targets: dict[bytes, Target] = {}
        self._session, self._courier = session, Courier(session, f"qp-{told.queue}.sock")
        self._doorbell = doorbell
        self._queues = Queues()
        self._inbox, self._outbox = Mailbox(endpoint.page), Mailbox(peer)
        self._lateness = Lateness(f"{nic._machine.graph.seed}/{self._id}/{endpoint.number}")
        self._next_late = self._lateness.turns()
        # The user's thread counts the first four, whoever has the queues' lock the others.
        self._out_bytes = self._out_packets = self._in_bytes = self._in_packets = 0
        self._mail_bytes = self._mail_packets = 0
        self._done: Operation[None] = Operation.completed(None, self._id, "put")
        self._error: TransferError | None = None
        self._closed = False
        doorbell.setblocking(False)
        name_ends(endpoint.page, self._own_key, self._peer_key)
        self._words[PEER_TAG] = told.tag
        self._words[STATE] = RTR
        self._words[STATE] = RTS
        nic.engine.watch(doorbell, self._gone)
        LIVE.add(self)

    @property
    def state(self) -> ConnectionState:
        """The queue pair's state."""
        return self._endpoint.state

    @property
    def error(self) -> TransferError | None:
        """What broke the connection."""
        if self._error is None and not self._closed and self._words[STATE] == ERROR:
            self._notice()
        return self._error

    @abstractmethod
    def advance(self) -> bool:
        """Take messages that have come and deliver those that wait; True while some still wait. Any thread."""

    @abstractmethod
    def _drive(self) -> None:
        """Let late work happen, in any order: none was promised."""

    # Admission

    def _enter(self, step: str, deadline: Deadline | None) -> Operation[Any] | None:
        """Return a failed operation if the step cannot run. The verbs with a microsecond have this in line."""
        self._check()
        if deadline is not None:
            self._be_in_time(step, deadline)
        if self._control[0] != self._clear or self._words[0] != RTS or self._peer[0] != RTS:
            return self._admit(step, deadline)
        return None

    def _admit(self, step: str, deadline: Deadline | None) -> Operation[Any] | None:
        """Look at everything that can be in the way: the device, the state, the cable, the peer."""
        self._require_open(step)
        try:
            self._nic._enter(step, deadline)
        except DeviceGone as gone:
            self._break(self._transfer(step, f"the device is gone: {gone.message}", CompletionCode.FLUSHED))
            raise
        if self._words[STATE] == ERROR:
            self._notice()
            return Operation.failed(self._flushed(step), self._id, step)
        why = self._in_the_way(step, or_default(deadline))
        if why:
            error = self._break(self._transfer(step, f"retries exceeded: {why}", CompletionCode.RETRY_EXCEEDED))
            return Operation.failed(error, self._id, step)
        if self._route.is_degraded():
            self._words[SYMBOLS] += 1
        self._clear = self._route.clear_generation()
        return None

    def _in_the_way(self, step: str, deadline: Deadline) -> str:
        """Send, wait for the acknowledgement, send again; what is in the way if none comes."""
        machine, peer = self._nic._machine, self._peer
        for attempt in range(RETRIES + 1):
            why = ""
            if self._route.was_rebooted():
                why = "a DPU on the way has booted and forgot the queue pair"
            elif not self._route.is_up():
                why = "no link"
            elif peer[STATE] == INIT:
                why = "the peer's endpoint has not connected"
            elif peer[STATE] != RTS or peer[PEER_TAG] != self._words[OWN_TAG]:
                # Waiting would not help: what has ended does not begin again.
                tally(machine, self._own_key, local_ack_timeout_err=RETRIES + 1 - attempt)
                return "the peer's queue pair is closed, in error or connected elsewhere"
            if not why:
                break
            deadline.check(device=self._id, during=step)
            tally(machine, self._own_key, local_ack_timeout_err=1)
            if peer[STATE] == INIT and self._route.is_up():
                # Another process's doing, which takes real time whatever the machine's clock is.
                threading.Event().wait(min(ACK_TIMEOUT_SECONDS, deadline.remaining_seconds))
            elif attempt < RETRIES:
                machine.clock.sleep(ACK_TIMEOUT_SECONDS)
        return why

    def _require_open(self, step: str) -> None:
        if self._closed:
            raise self._invalid(step, "the connection is closed", "connect again")

    def _resolve(self, rkey: bytes) -> Target | None:
        """Map the region that a key names, if the peer's session has it."""
        if not isinstance(rkey, bytes | bytearray | memoryview):
            return None
        try:
            target = self._targets[bytes(rkey)] = Target(self._session, bytes(rkey), self._courier)
        except (OSError, ValueError):  # no such file, too long a name
            return None
        return target

    def _allows(self, target: Target, offset: int, size: int, right: int) -> bool:
        return 0 <= offset <= target.length - size and bool(target.words[ACCESS] & right)

    def _attempt(self, step: str, work: Callable[[], object]) -> bool:
        """Run work on the target's memory; False if that broke the connection."""
        try:
            work()
        except PermissionError:
            self._refuse(step, "the owner says no")
            return False
        except ConnectionError:
            self._lose_peer()
            return False
        return True

    def _count(self, sent_bytes: int, fetched_bytes: int) -> None:
        if sent_bytes or not fetched_bytes:
            self._out_bytes += sent_bytes
            self._out_packets += packets(sent_bytes)
        if fetched_bytes:
            self._in_bytes += fetched_bytes
            self._in_packets += packets(fetched_bytes)
        self.publish()

    def publish(self) -> None:
        """Let other processes see what was counted. The verbs with a microsecond leave it to the next slower one."""
        words = self._words
        words[OUT_BYTES] = self._out_bytes + self._mail_bytes
        words[OUT_PACKETS] = self._out_packets + self._mail_packets
        words[IN_BYTES], words[IN_PACKETS] = self._in_bytes, self._in_packets

    # Errors

    def _refuse(self, step: str, why: str) -> Operation[Any]:
        """The target refuses: both sides break, as verbs have it."""
        machine = self._nic._machine
        tally(machine, self._own_key, req_remote_access_errors=1)
        tally(machine, self._peer_key, resp_remote_access_errors=1)
        error = RemoteAccessError(
            f"the target refused the request: {why}",
            device=self._id,
            during=step,
            hint="check rkey, address, length and access; then make a new connection",
            code=CompletionCode.REMOTE_ACCESS,
        )
        return Operation.failed(self._break(error, tell_peer=True), self._id, step)

    def _break(self, error: TransferError, *, tell_peer: bool = False) -> TransferError:
        """Enter the error state once; everything posted flushes. Returns the error that broke the connection."""
        if self._error is None:
            self._error = error
            self._words[STATE] = ERROR
            if tell_peer and self._peer[STATE] == RTS:
                self._peer[STATE] = ERROR
                self._ring()
            for request in self._queues.requests():
                request.fail(self._flushed(request.step))
        return error

    def _notice(self) -> None:
        """The other side, or the driver, has broken the connection."""
        if self._error is None:
            self._break(self._transfer("progress", "the other side broke the connection", CompletionCode.FLUSHED))

    def _lose_peer(self) -> None:
        if self._error is None:
            tally(self._nic._machine, self._own_key, local_ack_timeout_err=RETRIES + 1)
            self._break(self._transfer("progress", "retries exceeded: the peer is gone", CompletionCode.RETRY_EXCEEDED))

    def _gone(self, _: socket.socket) -> None:
        """The peer's process died or closed its end; what it had sent before still counts."""
        self._nic.engine.forget(self._doorbell.fileno())
        self.advance()
        if not self._closed:
            self._lose_peer()
            sweep(self._nic._machine, self._route.peer.id)

    def _ring(self) -> None:
        try:
            self._doorbell.send(b"!")
        except BlockingIOError:
            pass  # the peer has unread rings; it will look
        except OSError:
            self._lose_peer()

    def _transfer(self, step: str, why: str, code: int) -> TransferError:
        return TransferError(
            why, device=self._id, during=step, hint="look at the ports on both sides; make a new connection", code=code
        )

    def _too_long(self, size: int) -> TransferError:
        return self._transfer(
            "send", f"{size} bytes do not fit the receive that was posted", CompletionCode.REMOTE_INVALID_REQUEST
        )

    def _flushed(self, step: str) -> FlushedError:
        return FlushedError(
            f"flushed: the connection is in error ({self._error})",
            device=self._id,
            during=step,
            hint="make a new connection",
            code=CompletionCode.FLUSHED,
        )

    def _invalid(self, step: str, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._id, during=step, hint=hint)

    # The end

    def close(self) -> None:
        """End the connection and its endpoint."""
        self._endpoint.close()

    def abandon(self) -> None:
        """A forked child's part of the end: nothing that the parent shares is touched."""
        self._clear = -1

    def shut(self) -> None:
        """The connection's part of the end; the endpoint calls it once."""
        if self._error is None and self._words[STATE] == RTS and self._peer[STATE] == RTS and self._route.is_up():
            self._drive()
        self.publish()
        self._closed = True
        for request in self._queues.requests():
            request.fail(self._flushed(request.step))
        self._nic.engine.forget(self._doorbell.fileno())
        self._doorbell.close()
        self._courier.close()
        for target in self._targets.values():
            target.close()
        self._targets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
