"""A queue pair's completions: found by whoever waits, or by the transport's thread, and never lost between them."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from hal.errors import DeadlineExceeded, DeviceGone, TransferError
from hal.interfaces.rnic import CompletionCode, ConnectionState
from hal_rdma.verbs.timing import PULSE_SECONDS
from hal_rdma.verbs.work import WorkRequest, error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal.interfaces.deadline import Deadline
    from hal_rdma.verbs.binding import Verbs
    from hal_rdma.verbs.watcher import Watcher

DEPTH = 128
"""Requests that may be posted at once, for each of the two directions."""

SPIN_SECONDS = 50e-6
LONGEST_SLEEP_SECONDS = 0.05
_BATCH = 16
_CHANNEL = "anon_inode:[infinibandevent]"
_LOOK_SECONDS = 0.005
_SLOWEST_BYTES_PER_SECOND = 10e6
"""A long message that is still on its way is not waiting for a receive: so much time it is given besides."""

_Ready = list[tuple[WorkRequest, BaseException | None, Any]]
_opening = threading.Lock()


class WorkQueue:
    """Send and receive queue of one queue pair over one completion queue and one completion channel."""

    def __init__(self, verbs: Verbs, context: Any, watcher: Watcher, device: str) -> None:
        self.device = device
        self.state = ConnectionState.INIT
        self.error: TransferError | DeviceGone | None = None
        self.pulse: Callable[[], None] | None = None
        self._verbs = verbs
        self._watcher = watcher
        self._lock = threading.RLock()
        self._pending: dict[int, WorkRequest] = {}
        self._next = 1
        self._closed = False
        self._heard_at = 0.0  # when the peer last answered; never yet
        self._sent_at = 0.0
        self._look_at = 0.0
        self._patience = float("inf")
        self.sends = self.receives = 0
        self.answers = 0  # of the sends, those that bring something back: reads and atomics
        self._channel, self.descriptor = _open_channel(verbs, context)
        self._completions = verbs.CQ(context, 2 * DEPTH + 8, None, self._channel, 0)
        self._queue: Any = None

    @property
    def completions(self) -> Any:
        """The completion queue, to make the queue pair with."""
        return self._completions

    def begin(self, queue: Any) -> None:
        """Take the queue pair."""
        self._queue = queue

    def connected(self, patience_by_clock: float) -> None:
        """Note that the queue pair is in RTS; how long its sends wait for receives, if not the NIC sees to that."""
        self._patience = patience_by_clock
        self.state = ConnectionState.RTS

    # Posting

    def post(self, request: WorkRequest, work: Any) -> WorkRequest:
        """Post one request (``SendWR`` or ``RecvWR``, whose ``wr_id`` is set here)."""
        with self._lock:
            if not self._is_alive:
                self._drop(request)
                request.fail(error_of(CompletionCode.FLUSHED, self.device, request.step))
                return request
            number = self._next
            self._next = number + 1
            work.wr_id = number
            self._pending[number] = request
            try:
                if request.is_receive:
                    self._queue.post_recv(work)
                    self.receives += 1
                else:
                    self._queue.post_send(work)
                    self.sends += 1
                    self.answers += request.is_answered
            except self._verbs.Error as error:
                del self._pending[number]
                self._drop(request)
                self._break(_gone(error, self.device, request.step))
                assert self.error is not None
                request.fail(self.error)
        return request

    def make_room(self, deadline: Deadline, step: str) -> None:
        """Return once a send can be posted. Raises ``DeadlineExceeded`` if none completes in time."""
        while self.sends >= DEPTH and self._is_alive:
            self._wait_a_little(deadline, step, f"{DEPTH} requests are under way and none has completed")

    def wait_for_answers(self, deadline: Deadline, step: str) -> None:
        """Return once no read and no atomic is under way: a fence, where the NIC's own cannot be used."""
        while self.answers and self._is_alive:
            self._wait_a_little(deadline, step, "the reads and atomics before the fence have not completed")

    @property
    def _is_alive(self) -> bool:
        return self.error is None and not self._closed

    def _wait_a_little(self, deadline: Deadline, step: str, what: str) -> None:
        sends, answers = self.sends, self.answers
        self.progress()
        if (self.sends, self.answers) != (sends, answers):
            return
        if deadline.expired:
            raise DeadlineExceeded(what, device=self.device, during=step, hint="wait for earlier operations first")
        self._sleep(time.monotonic() + min(LONGEST_SLEEP_SECONDS, deadline.remaining_seconds))

    # Progress

    def progress(self) -> None:
        """Take what has completed, and see to what is overdue. Somebody else doing so is as good."""
        if not self._lock.acquire(blocking=False):
            return
        ready: _Ready = []
        try:
            if not self._closed:
                self._take(ready)
                self._see_to_time(ready)
        finally:
            self._lock.release()
        _settle(ready)

    def wait_for(self, request: WorkRequest, deadline: Deadline | None) -> None:
        """Progress until a request is settled or the deadline has passed."""
        spin_until = time.monotonic() + SPIN_SECONDS
        end = float("inf")
        if deadline is not None:
            end = time.monotonic() + deadline.remaining_seconds
        while True:
            self.progress()
            now = time.monotonic()
            if request.settled or now >= end or self._closed:
                return
            if now >= spin_until:
                self._sleep(min(end, now + LONGEST_SLEEP_SECONDS))

    @property
    def busy(self) -> bool:
        """True if anything is pending."""
        return bool(self._pending) and not self._closed

    def have_watched(self) -> None:
        """Have the transport's thread look after this queue while something is pending."""
        self._watcher.add(self)

    def prepare_sleep(self) -> bool:
        """Ask the NIC for an event at the next completion; returns whether anything is pending."""
        with self._lock:
            if self._closed or not self._pending:
                return False
            self._completions.req_notify()
        self.progress()  # what completed before the NIC was asked makes no event
        return bool(self._pending)

    def take_event(self) -> None:
        """Take an event off the channel, if another thread has not."""
        with self._lock:
            if not self._closed and _readable(self.descriptor, 0):
                self._channel.get_cq_event(self._completions)
                self._completions.ack_events(1)

    def _sleep(self, until: float) -> None:
        if self.prepare_sleep() and _readable(self.descriptor, max(0.0, until - time.monotonic())):
            self.take_event()

    def _take(self, ready: _Ready) -> None:
        while True:
            try:
                count, completions = self._completions.poll(_BATCH)
            except self._verbs.Error as error:
                self._break(_gone(error, self.device, "progress"))
                self._flush_all()
                return
            for completion in completions:
                request = self._pending.pop(completion.wr_id, None)
                if request is None:
                    continue
                if request.is_receive:
                    self.receives -= 1
                else:
                    self.sends -= 1
                    self.answers -= request.is_answered
                    self._sent_at = time.monotonic()
                status = completion.status
                if status == 0:
                    self._heard_at = time.monotonic()
                    value = request.finish(completion.byte_len) if request.finish is not None else None
                    ready.append((request, None, value))
                else:
                    failure = error_of(status, self.device, request.step)
                    if status != CompletionCode.FLUSHED:
                        self._break(failure)
                    ready.append((request, failure, None))
                self._drop(request)
            if count < _BATCH:
                return

    def _see_to_time(self, ready: _Ready) -> None:
        """End what is overdue; ask a silent peer whether it lives."""
        now = time.monotonic()
        if not self._pending or now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        oldest: WorkRequest | None = None
        for request in self._pending.values():
            if request.expires_at <= now:
                request.expires_at = float("inf")
                ready.append((request, _late(self.device, request.step), None))
            if oldest is None and not request.is_receive:
                oldest = request  # sends complete in order: this one is under way
        if oldest is not None:
            self._see_to_patience(oldest, now, ready)
        elif self.pulse is not None and self._heard_at and now - self._heard_at > PULSE_SECONDS:
            self._heard_at = now
            if self.state is ConnectionState.RTS:
                self.pulse()

    def _see_to_patience(self, oldest: WorkRequest, now: float, ready: _Ready) -> None:
        if oldest.step != "send" or self.error is not None or self._patience == float("inf"):
            return
        patience = self._patience + oldest.size_bytes / _SLOWEST_BYTES_PER_SECOND
        if now - max(oldest.posted_at, self._sent_at) > patience:
            error = error_of(CompletionCode.RNR_RETRY_EXCEEDED, self.device, oldest.step)
            self._break(error)
            ready.append((oldest, error, None))

    def break_off(self, error: TransferError) -> None:
        """Put the queue pair into its error state, for something that was found out here."""
        with self._lock:
            self._break(error)
        self.progress()

    def _break(self, error: TransferError | DeviceGone) -> None:
        if not self._is_alive:
            return
        self.error = error
        self.state = ConnectionState.ERROR
        verbs = self._verbs
        try:
            self._queue.modify(verbs.QPAttr(qp_state=verbs.enums.IBV_QPS_ERR), verbs.enums.IBV_QP_STATE)
        except verbs.Error:  # the device is gone: nothing completes any more
            self._flush_all()

    def _flush_all(self) -> None:
        pending, self._pending = self._pending, {}
        for request in pending.values():
            self._drop(request)
            request.fail(error_of(CompletionCode.FLUSHED, self.device, request.step))

    def _drop(self, request: WorkRequest) -> None:
        registration, request.registration = request.registration, None
        if registration is not None:
            registration.close()
        request.keep = None

    def close(self) -> None:
        """Destroy the queue pair, after which the NIC touches no buffer, and flush what was posted. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.state = ConnectionState.RESET
            if self._queue is not None:
                self._queue.close()
            self._flush_all()
            self._completions.close()
            self._channel.close()
        self._watcher.forget(self)

    def leak(self) -> list[Any]:
        """Return what must never be destroyed in a forked child: the kernel would take it for the parent's wish."""
        self._closed = True
        self._pending = {}
        self._lock = threading.RLock()  # whoever held it is in the parent
        self.state = ConnectionState.RESET
        return [self._queue, self._completions, self._channel]


def _settle(ready: _Ready) -> None:
    # Outside of the lock: a callback may use the connection.
    for request, error, value in ready:
        if error is None:
            request.succeed(value)
        else:
            request.fail(error)


def _late(device: str, step: str) -> DeadlineExceeded:
    return DeadlineExceeded(
        "not finished in time; the outcome is unknown",
        device=device,
        during=step,
        hint="look at the connection's state, then connect again",
    )


def _gone(error: Exception, device: str, step: str) -> TransferError | DeviceGone:
    return DeviceGone(
        f"the NIC does not take the request: {error}",
        device=device,
        during=step,
        hint="look at dmesg: the device may have been removed",
    )


def _readable(descriptor: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _open_channel(verbs: Verbs, context: Any) -> tuple[Any, int]:
    """Return a completion channel and its descriptor, which pyverbs keeps to itself: the one that was not there before.

    Without it, waiting would be ``get_cq_event``, which holds Python's lock while it sleeps.
    """
    with _opening:
        before = _channels()
        channel = verbs.CompChannel(context)
        new = _channels() - before
    if len(new) != 1:
        from hal.errors import NotReady

        raise NotReady(
            f"the completion channel cannot be told from {len(new)} new ones",
            during="endpoint",
            hint="open verbs devices from one thread at a time",
        )
    return channel, new.pop()


def _channels() -> set[int]:
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == _CHANNEL:
                found.add(int(name))
        except OSError:
            continue
    return found
