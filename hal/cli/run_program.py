"""A program on a lease: started near its devices, told when it has to go, ended when its lease is over."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from hal.agent.launch import Orders
from hal.api.held import HeldLease
from hal.cli.run_lines import Line
from hal.errors import HalError, LeaseEnded, LeaseNotFound
from hal.model.lease import Lease, LeaseState
from hal.model.words import are

_LOG = logging.getLogger(__name__)
FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT")
)
LAST_SECONDS = 5.0
"""How long a program has after its signal if its lease is over without notice."""
_RETRY_SECONDS = 0.5
Say = Callable[[str], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended: a shell's exit code, and why it had to leave (empty: by itself)."""

    code: int
    revoked: str = ""


class Keeper:
    """Renews a lease in a thread of its own and tells what becomes of it, through a pipe that can be polled."""

    def __init__(self, line: Line, lease: Lease) -> None:
        self.lease = lease
        # The broker's steady time is not the wall clock, which may jump. It is at least what it was at the grant.
        self._ahead = lease.granted_at - _boottime()
        self.over = ""
        self.stop = threading.Event()
        self.news, self._write = os.pipe()
        self._line = line
        self._thread = threading.Thread(target=self._run, name="hal-run-keeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        expires = time.monotonic() + self.lease.ttl_seconds
        renew = time.monotonic() + self.lease.ttl_seconds / 3
        while not self.stop.is_set():
            try:
                left = renew - time.monotonic()
                if left > 0:
                    lease = self._line.look(self.lease.id, left, self.stop)
                else:
                    asked = time.monotonic()
                    lease = self._line.renew(self.lease.id)
                    # Counted from when it was asked: that the answer took long is no reason to stay longer.
                    expires, renew = asked + lease.ttl_seconds, asked + lease.ttl_seconds / 3
                    if lease.ends_at is None or lease.expires_at < lease.ends_at:  # then it was renewed at the rest
                        self._ahead = max(self._ahead, lease.expires_at - lease.ttl_seconds - _boottime())
            except (LeaseEnded, LeaseNotFound) as error:
                self._end(error.message)
                return
            except HalError as error:
                _LOG.info("lease %s: %s", self.lease.id, error)
                if time.monotonic() >= expires:
                    self._end(f"it could not be renewed: {error.message}")
                    return
                self.stop.wait(_RETRY_SECONDS)
                continue
            if lease.state in (LeaseState.SUSPECT, LeaseState.RELEASING, LeaseState.ENDED):
                self._end(lease.why_ended or lease.state.value)
                return
            if lease != self.lease:
                self.lease = lease
                os.write(self._write, b".")

    def seconds_until(self, at: float) -> float:
        """Return how long it is until a time of the broker's, or a little more (by what a claim took to answer)."""
        return max(0.0, at - _boottime() - self._ahead)

    def _end(self, why: str) -> None:
        self.over = why
        os.write(self._write, b".")

    def close(self) -> None:
        """End the thread; what it is about to say is not heard."""
        self.stop.set()
        self._thread.join(LAST_SECONDS)
        if not self._thread.is_alive():
            os.close(self.news)
            os.close(self._write)


class Program:
    """One run of a command: ``run`` returns when it has ended and nothing of it is left in its process group."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], orders: Orders, revoke_signal: int, say: Say
    ) -> None:
        self.revoke_signal = revoke_signal
        self.say = say
        self._told = ""
        self._told_at = 0.0
        self._kill_at: float | None = None
        self._revoked = ""
        terminal = _foreground()
        orders = msgspec.structs.replace(orders, parent=os.getpid(), foreground=terminal)
        self._terminal = terminal
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hal.agent.launch", msgspec.json.encode(orders).decode(), *command],
            env=dict(environ),
            process_group=0,
        )

    def run(self, line: Line, held: HeldLease) -> Outcome:
        """Wait for the end, renewing the lease and passing on what is heard of it, and signals."""
        before = {number: signal.signal(number, self._forward) for number in FORWARDED}
        keeper = Keeper(line, held.lease)
        pidfd = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(keeper.news, select.POLLIN)
            self._hear(keeper)
            while self.process.poll() is None:
                left = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic()) * 1000
                ready = [descriptor for descriptor, _ in poll.poll(left)]
                if keeper.news in ready:
                    os.read(keeper.news, 4096)
                    self._hear(keeper)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self.signal(signal.SIGKILL)
                    self._kill_at = None
            self.signal(signal.SIGKILL)  # what it left behind in its group must not go on with the devices
        finally:
            if self.process.poll() is None:  # whatever it was that broke off here: nobody looks after it any more
                self.signal(signal.SIGKILL)
                self.process.wait()
            keeper.close()
            held.lease = keeper.lease
            os.close(pidfd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._take_terminal()
        status = self.process.returncode
        return Outcome(code=128 - status if status < 0 else status, revoked=self._revoked)

    def _hear(self, keeper: Keeper) -> None:
        """Pass on what became of the lease."""
        lease = keeper.lease
        if keeper.over:
            if not self._revoked:
                self._revoked = keeper.over
                self.say(f"the lease is over: {keeper.over}; the program is asked to stop")
                self.signal(self.revoke_signal)
                self._told_at = time.monotonic()
                self._kill_at = self._told_at + LAST_SECONDS
            elif self._kill_at is not None:  # sooner than it was told; it has had its signal
                self._kill_at = min(self._kill_at, self._told_at + LAST_SECONDS)
        elif lease.state is LeaseState.DRAINING and not self._revoked:
            grace = keeper.seconds_until(lease.leave_by)
            self._revoked = lease.notice or "told to leave"
            name = signal.Signals(self.revoke_signal).name
            self.say(f"told to leave within {grace:.0f} s ({self._revoked}); the program gets {name}")
            self.signal(self.revoke_signal)
            self._told_at = time.monotonic()
            self._kill_at = self._told_at + grace
        elif lease.leaving and self._told != str(lease.leaving):
            self._told = str(lease.leaving)
            self.say(
                f"{len(lease.leaving)} of {lease.replicas} replicas {are(len(lease.leaving))} to leave: {lease.notice}"
            )

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended

    def _forward(self, number: int, _frame: object) -> None:
        self.signal(number)

    def _take_terminal(self) -> None:
        if self._terminal:
            handler = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            try:
                os.tcsetpgrp(0, os.getpgrp())
            except OSError:
                pass  # the terminal has gone
            signal.signal(signal.SIGTTOU, handler)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _foreground() -> bool:
    """Return whether this process has the terminal, to hand it to the program."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
