"""Two-sided verbs of a mock queue pair, and the work that the seed makes late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hal.errors import DeviceBusy, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import CompletionCode
from hal_mocks.buffers import as_bytes
from hal_mocks.rnic_engine import is_gone
from hal_mocks.rnic_files import ACCESS, ERROR, STATE, tally
from hal_mocks.rnic_memory import GET, NEEDED, PUT
from hal_mocks.rnic_pair import QueuePair, packets
from hal_mocks.rnic_queue import Receive, Send, Staged, WorkRequest

if TYPE_CHECKING:
    from hal.interfaces.rnic import Readable, Writable


class Messages(QueuePair):
    """Send and receive, fence and flush."""

    def send(self, local: Readable, *, deadline: Deadline | None = None) -> Operation[None]:
        """Deliver at once if the peer has posted a receive; else try again until the endpoint's patience ends."""
        refused = self._enter("send", deadline)
        if refused is not None:
            return refused
        message = as_bytes(local, self._id, "send")
        queues = self._queues
        with queues.lock:
            if queues.sends or not self._outbox.is_ready:
                request = WorkRequest(self._id, "send", self.progress)
                expires_at = time.monotonic() + self._endpoint.rnr_timeout_seconds
                queues.sends.append(Send(message, request, expires_at))
            else:
                request = None
                fits = self._outbox.deliver(message)
        if request is not None:
            tally(self._nic._machine, self._own_key, rnr_nak_retry_err=1)
            self._nic.engine.tick(self.advance)
            return request
        self._ring()
        if not fits:
            return Operation.failed(self._break(self._too_long(message.nbytes)), self._id, "send")
        self._count(message.nbytes, 0)
        return self._done

    def recv(self, local: Writable, *, deadline: Deadline | None = None) -> Operation[int]:
        """Post a buffer for the next message."""
        self._check()
        buffer = as_bytes(local, self._id, "recv", writable=True)
        self._nic._enter("recv", deadline)
        self._require_open("recv")
        request = WorkRequest(self._id, "recv", self.progress)
        with self._queues.lock:
            if self._words[STATE] != ERROR:
                if self._inbox.full:
                    raise DeviceBusy(
                        "the receive queue is full",
                        device=self._id,
                        during="recv",
                        hint="wait for a posted receive before posting another",
                    )
                self._queues.receives.append(Receive(buffer, request))
                self._inbox.post(buffer.nbytes)
                return request
        self._notice()
        return Operation.failed(self._flushed("recv"), self._id, "recv")

    # Order and visibility

    def fence(self, *, deadline: Deadline | None = None) -> None:
        """Let late work happen before anything that is posted from now on."""
        self._check()
        if deadline is not None:
            self._be_in_time("fence", deadline)
        if self._queues.staged:
            self._drive()

    def flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Let late work happen, and make sure that the peer still lives."""
        refused = self._enter("flush", deadline)
        if refused is not None:
            return refused
        self._drive()
        self.publish()
        if self._error is None and is_gone(self._doorbell):
            self._lose_peer()
        return self._done if self._error is None else Operation.failed(self._error, self._id, "flush")

    def progress(self) -> None:
        """Poll: late work happens, messages are taken and delivered."""
        if self._queues.staged and self._route.is_up():
            self._drive()
        self.advance()

    def advance(self) -> bool:
        """Take messages that have come and deliver those that wait; True while some still wait. Any thread."""
        queues, inbox, outbox = self._queues, self._inbox, self._outbox
        finished: list[tuple[WorkRequest, int | None]] = []
        broken: TransferError | None = None
        delivered = 0
        with queues.lock:
            while broken is None and queues.receives and inbox.has_mail:
                receive = queues.receives.popleft()
                length = inbox.take(receive.buffer)
                if length is None:
                    broken = self._transfer(
                        "recv", "the message is longer than the buffer", CompletionCode.LOCAL_LENGTH
                    )
                    receive.request.fail(broken)
                else:
                    finished.append((receive.request, length))
            while broken is None and queues.sends and outbox.is_ready and self._route.is_up():
                send = queues.sends.popleft()
                delivered += 1
                if not outbox.deliver(send.message):
                    broken = self._too_long(send.message.nbytes)
                    send.request.fail(broken)
                else:
                    self._mail_bytes += send.message.nbytes
                    self._mail_packets += packets(send.message.nbytes)
                    finished.append((send.request, None))
            if broken is None and queues.sends and queues.sends[0].expires_at < time.monotonic():
                broken = self._transfer("send", "the peer posted no receive in time", CompletionCode.RNR_RETRY_EXCEEDED)
                queues.sends.popleft().request.fail(broken)
            waiting = bool(queues.sends) and broken is None
        if delivered:
            self._ring()
        for request, result in finished:
            request.succeed(result)
        if broken is not None:
            self._break(broken, tell_peer=True)
        elif self._words[STATE] == ERROR and self._error is None:
            self._notice()
        return waiting

    def _stage(self, work: Staged) -> None:
        with self._queues.lock:
            self._queues.staged.append(work)

    def _drive(self) -> None:
        """Let late work happen, in any order: none was promised."""
        queues = self._queues
        with queues.lock:
            staged, queues.staged = queues.staged, []
        if len(staged) > 1:
            self._lateness.shuffle(staged)
        for target, offset, data, into, request in staged:
            if self._error is None and not target.words[ACCESS] & int(NEEDED[GET if data is None else PUT]):
                self._refuse("get" if data is None else "put", "deregistered meanwhile")
            if self._error is None:
                if data is not None:
                    self._attempt("put", lambda: target.put(offset, data))  # noqa: B023 - called at once
                elif into is not None:
                    self._attempt("get", lambda: target.get(offset, into))  # noqa: B023 - called at once
            if request is not None:
                if self._error is None:
                    request.succeed(None)
                else:
                    request.fail(self._flushed(request.step))
