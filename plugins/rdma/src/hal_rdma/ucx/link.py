"""What both ends of a connection tell each other beside the data, and the state that follows from it.

Short control messages travel with the data, under the endpoint's token: receives that were posted, messages that
arrived, keys that are asked about and keys that die, the end of the connection and why. A key is used only after its
owner has said that its region lives, and a region is unmapped only after everybody who asked has put its key away, or
has been cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_rdma.ucx import declarations as c
from hal_rdma.ucx.changes import decode_change
from hal_rdma.ucx.keys import Address
from hal_rdma.ucx.link_state import (
    ANSWER,
    ARRIVED,
    ASK,
    BROKEN,
    BYE,
    BYE_TOO,
    CHANGE,
    CHANGED,
    CONTROL,
    CONTROL_TAG,
    CREDIT,
    DATA_TAG,
    REVOKE,
    REVOKED,
    LinkState,
    settle,
)
from hal_rdma.ucx.operations import Request

_MOST_BYTES = 4096
_GOODBYE_SECONDS = 0.25
_IN_A_ROW = 64


class Turn(NamedTuple):
    """What a look at a link found: something moved, something to do at once or soon, a descriptor that will speak."""

    moved: bool
    busy: bool
    soon: bool
    armed: bool


class Link(LinkState):
    """One endpoint's worker and its state; ``lock`` orders the user's thread and the one that makes progress."""

    # Connecting

    def connect(self, peer: Address) -> None:
        """Point the worker at the peer's. Raises ``TransferError`` if UCX cannot reach it."""
        with self.lock:
            self._out_control, self._out_data = CONTROL_TAG | peer.token, DATA_TAG | peer.token
            watch = None if self.transport.shares_memory else self._notice_failure
            self.worker.connect(peer.worker, watch=watch)
            self.state = ConnectionState.RTS
            self.quiet = True
        self.rouse()

    def _notice_failure(self, status: int) -> None:
        self._failed = status  # called by UCX while it makes progress, under the lock

    # Progress

    def poll(self) -> None:
        """Move what can be moved, and complete what has ended. Any thread."""
        if self.transport.forked:
            return
        with self.lock:
            if self._destroyed:
                return
            self._advance()
            ended, self._ended = self._ended, []
        settle(ended)

    def turn(self) -> Turn:
        """Poll for the thread that makes progress, and let the descriptor speak unless a user's thread polls itself."""
        with self.lock:
            if self._destroyed:
                return Turn(moved=False, busy=False, soon=False, armed=False)
            moved = self._advance()
            ended, self._ended = self._ended, []
            armed = self.watchers == 0 and self.worker.arm()
            busy = self.watchers == 0 and not armed
            soon = bool(
                moved or self.watchers or self.pending or self.changes or self.sends or self.sent or self._outgoing
            )
        settle(ended)
        return Turn(moved=moved, busy=busy, soon=soon, armed=armed)

    def _advance(self) -> bool:
        worker, moved = self.worker, False
        for _ in range(_IN_A_ROW):
            if not worker.progress():
                break
            moved = True
        if self.state is ConnectionState.INIT:
            return moved  # what has come waits in UCX until there is a way back
        if moved or self._asking or self.changes:
            while (told := worker.take(self._control_tag, _MOST_BYTES)) is not None:
                self._hear(told)
        if self.pending:
            self._collect()
        if self.receives:
            self._collect_receives()
        if self._outgoing:
            self._outgoing = [(handle, keep) for handle, keep in self._outgoing if worker.status(handle) == 1]
        if self._failed is not None and self.error is None:
            self._peer_gone = True
            words = self.worker.library.describe(self._failed)
            self.break_(self.transfer_error("use", f"UCX lost the peer: {words}"))
        if self.sends and self.sends[0][2] < time.monotonic() and self.state is ConnectionState.RTS:
            code = CompletionCode.RNR_RETRY_EXCEEDED
            self.break_(self.transfer_error("send", "the peer posted no receive in time", code), self.sends[0][1])
        return moved

    def _collect(self) -> None:
        requests, self.pending = self.pending, []
        for request in requests:
            status = self.worker.status(request.handle)
            if status == c.INPROGRESS:
                self.pending.append(request)
                continue
            request.handle = 0
            if status == c.OK:
                self._ended.append((request, request.value() if request.value is not None else None, None))
            else:
                self.break_(self.failure(request.step, status), request)
        if self.error is not None and self.pending:
            self._flush_all()

    def _collect_receives(self) -> None:
        arrived = 0
        while self.receives:
            _, request = self.receives[0]
            status, length = self.worker.received(request.handle)
            if status == c.INPROGRESS:
                break
            self.receives.popleft()
            request.handle = 0
            if status != c.OK:
                self.break_(self.failure("recv", status), request)
                return
            arrived += 1
            self.in_bytes += length
            self._ended.append((request, length, None))
        if arrived:
            self.tell(ARRIVED, arrived)

    # Control messages

    def _hear(self, told: bytes) -> None:
        kind, number = CONTROL.unpack_from(told)
        if kind == CREDIT:
            self.credits.append(number)
            self.deliver()
        elif kind == ARRIVED:
            for _ in range(min(number, len(self.sent))):
                self._ended.append((self.sent.popleft(), None, None))
        elif kind == ASK:
            region = self.transport.region_of(told[CONTROL.size :])
            granted = region is not None and region.admit(self)
            self.tell(ANSWER, number, b"\1" if granted else b"\0")
        elif kind == ANSWER:
            self._answers[number] = told[CONTROL.size :] == b"\1"
        elif kind == REVOKE:
            self._put_away(number)
        elif kind == REVOKED:
            self._revoked.add(number)
        elif kind == BYE:
            self.tell(BYE_TOO)
            self._peer_gone = True
            self.break_(self.transfer_error("use", "the peer has closed the connection"))
        elif kind == BYE_TOO:
            self._peer_gone = True
        elif kind == BROKEN:
            self._hear_broken(number)
        elif kind == CHANGE:
            self._change(number, told[CONTROL.size :])
        elif kind == CHANGED:
            request = self.changes.pop(number, None)
            if request is not None:
                self._ended.append((request, int.from_bytes(told[CONTROL.size :], "little"), None))

    def _hear_broken(self, code: int) -> None:
        if code == CompletionCode.LOCAL_LENGTH and self.receives:
            why = self.transfer_error("recv", "the message is longer than the buffer", code)
            self.break_(why, self.receives[0][1], tell=False)
        else:
            self.break_(self.transfer_error("use", f"the peer's side broke (code {code})", code), tell=False)

    def _change(self, number: int, told: bytes) -> None:
        change = decode_change(told)
        before = None if change is None else self.transport.changer.apply(change)
        if before is not None:
            self.tell(CHANGED, number, before.to_bytes(8, "little"))
        elif self.state is ConnectionState.RTS:
            code = CompletionCode.REMOTE_ACCESS
            self.break_(self.transfer_error("use", "the peer asked for a change that is not its right", code))

    def _put_away(self, number: int) -> None:
        """Forget a region's key for good; say so once nothing of ours can still be under way to it."""
        in_flight = self.targets.forget(number)
        if in_flight and self.posted and self.state is ConnectionState.RTS:
            handle = self.worker.flush()
            if handle > 0:
                request = Request(self, "revoke", handle, None, lambda: self.tell(REVOKED, number))
                self.pending.append(request)
                return
        self.tell(REVOKED, number)

    def ask(self, sealed: bytes, until: float) -> bool | None:
        """Ask the key's owner whether its region lives; None if there was no answer in time."""
        with self.lock:
            self._asking += 1
            self._asked += 1
            number = self._asked
            self.tell(ASK, number, sealed)
        try:
            return self._wait_for(lambda: self._answers.pop(number, None), until)
        finally:
            with self.lock:
                self._asking -= 1

    def drain_changes(self, until: float) -> None:
        """Wait until the peer has carried out every atomic."""
        if self.changes:
            self._wait_for(lambda: None if self.changes else True, until)

    def revoke(self, number: int) -> None:
        """Tell the peer that a region is going."""
        with self.lock:
            if self.state is ConnectionState.RTS:
                self.tell(REVOKE, number)

    def await_revoked(self, number: int, until: float) -> bool:
        """Wait until the peer has put a region's key away, or can do nothing any more."""
        done = self._wait_for(lambda: True if number in self._revoked else None, until)
        return bool(done) or self._peer_gone or self._destroyed

    def _wait_for(self, found: Callable[[], bool | None], until: float) -> bool | None:
        self.watchers += 1
        try:
            spun = 0
            while (answer := found()) is None and self.state is ConnectionState.RTS and time.monotonic() < until:
                self.poll()
                spun += 1
                if spun > _IN_A_ROW:
                    time.sleep(50e-6)  # whoever shall answer may need this processor
            return answer if answer is not None else found()
        finally:
            self.watchers -= 1

    # Messages; the lock is held

    def deliver(self) -> None:
        """Send what waits for a receive, as far as the peer has posted some."""
        while self.sends and self.credits and self.state is ConnectionState.RTS:
            message, request, _ = self.sends.popleft()
            self.transmit(message, request)

    def transmit(self, message: memoryview, request: Request) -> None:
        """Send a message into the oldest receive of the peer's; one that does not fit breaks both sides."""
        if message.nbytes > self.credits.popleft():
            self.tell(BROKEN, CompletionCode.LOCAL_LENGTH)
            words = f"the message of {message.nbytes} bytes is longer than the peer's buffer"
            error = self.transfer_error("send", words, CompletionCode.REMOTE_INVALID_REQUEST)
            self.break_(error, request, tell=False)
            return
        data = self.worker.library.address_of(message)
        handle = self.worker.send(data, message.nbytes, self._out_data)
        if handle < 0:
            self.break_(self.failure("send", handle), request)
            return
        if handle:
            self._outgoing.append((handle, message))
        self.out_bytes += message.nbytes
        self.sent.append(request)

    # The end

    def orphan(self) -> None:
        """In a forked child: leave the short ways, so that every verb finds out whose the connection is."""
        self.quiet = False
        self.targets.orphan()

    def rouse(self) -> None:
        """Let the thread that makes progress look at this link soon."""
        self.transport.progress.rouse(self)

    def close(self) -> None:
        """Say goodbye to a living peer and give everything back. Idempotent."""
        with self.lock:
            if self._destroyed or self.state is ConnectionState.RESET:
                return
            polite = self.state is ConnectionState.RTS
            self.targets.clear()
            if polite:
                self.tell(BYE)
            self.state = ConnectionState.RESET
            self.quiet = False
            self._flush_all()
            ended, self._ended = self._ended, []
        settle(ended)
        until = time.monotonic() + _GOODBYE_SECONDS
        while polite and not self._peer_gone and time.monotonic() < until:
            self.poll()
            time.sleep(50e-6)
        self.transport.progress.forget(self)
        self._destroy(quietly=polite and self._peer_gone)

    def cut(self) -> None:
        """End it at once: nothing that the peer sends arrives any more."""
        self.lose("cut off: the peer did not put a closed region's key away in time")
        self.transport.progress.forget(self)
        self._destroy(quietly=False)

    def _destroy(self, *, quietly: bool) -> None:
        with self.lock:
            if self._destroyed:
                return
            self._destroyed = True
            self.targets.destroy(self.worker.library)
            for handle, _ in self._outgoing:
                self.worker.free(handle)
            self._outgoing.clear()
            self.worker.destroy(quietly=quietly)
