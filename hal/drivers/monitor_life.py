"""How a nursery comes to be and how it ends, seen from the daemon: started afresh, or forked from the stem."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from hal.drivers.monitor_child import Ended, Recipe
from hal.drivers.monitor_wire import ANSWER, Broken, decoder, patient, receive
from hal.errors import DriverError, NotReady
from hal.interfaces.deadline import Deadline

STEM_SECONDS = 5.0
"""A stem that has not forked after this time is replaced."""


class Life(Protocol):
    """A process that was begun, from its birth to its end."""

    def born(self, deadline: Deadline) -> bool:
        """True if there is, or was, such a process; false if it will never be. Raises ``TimeoutError``."""
        ...

    def wait(self, seconds: float) -> int | None:
        """Return its exit status (negative: the signal), None if nobody knows; raises ``TimeoutError``."""
        ...

    def end(self, seconds: float) -> bool:
        """Kill it and let go of it; False if it does not die within that time."""
        ...


class Afresh:
    """The life of a child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def born(self, deadline: Deadline) -> bool:
        """It is: it was started."""
        return True

    def wait(self, seconds: float) -> int | None:
        """Return its exit status; raises ``TimeoutError``."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def end(self, seconds: float) -> bool:
        """Kill it; False if it does not die within that time."""
        self.process.kill()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


class Forked:
    """The life of a child of the stem, which tells of it on ``line``: first the pid with a pidfd, last the end."""

    def __init__(self, line: socket.socket, stem: Stem) -> None:
        self.line = patient(line)
        self.stem = stem
        self.pidfd = -1
        self._patience = Deadline.after(STEM_SECONDS)
        self._lost = False
        self._status: int | None = None

    def born(self, deadline: Deadline) -> bool:
        """True once the stem has forked it, false if the stem ended before."""
        if self.pidfd < 0 and not self._lost:
            poll = select.poll()
            poll.register(self.line, select.POLLIN)
            if not poll.poll(deadline.remaining_seconds * 1000):
                raise TimeoutError
            data, descriptors, _, _ = socket.recv_fds(self.line, 64, 1, socket.MSG_CMSG_CLOEXEC)
            if data[4:5] == bytes((ANSWER,)) and descriptors:
                self.pidfd = descriptors[0]
            else:
                self._lost = True
        return self.pidfd >= 0

    def wait(self, seconds: float) -> int | None:
        """Return what the stem says of its end, None if it ended and the stem does not say how.

        Raises ``TimeoutError`` if it has not ended.
        """
        deadline = Deadline.after(seconds)
        if self._status is None and self.born(deadline):
            try:
                ended: Ended = decoder(Ended).decode(receive(self.line, deadline)[1])
                self._status = ended.status
            except (Broken, OSError):  # TimeoutError is one
                if not self._gone(0.0):
                    raise TimeoutError from None
        return self._status

    def _gone(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def end(self, seconds: float) -> bool:
        """Kill it; False if it does not die within that time. One not born yet ends because its line is closed."""
        try:
            born = self.born(Deadline.after(0.0))
        except TimeoutError:
            born = False
            if self._patience.expired:
                self.stem.replace()
        self.line.close()
        if not born:
            return True
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        gone = self._gone(seconds)
        os.close(self.pidfd)
        self.pidfd, self._lost = -1, True
        return gone


class Stem:
    """The process that has imported what all nurseries need (``modules`` besides this package's) and forks them.

    It is started with the first nursery, again if it was lost, and ends with :meth:`end`; a nursery that is wanted
    later is started afresh. Thread-safe.
    """

    def __init__(self, environ: Mapping[str, str], user: str | None = None, modules: tuple[str, ...] = ()) -> None:
        self.environ = dict(environ)
        self.user = user
        self.modules = modules
        self.ended = False
        self._lock = threading.Lock()
        self._running: tuple[socket.socket, Afresh] | None = None

    def fork(self, recipe: Recipe, line: int, said: int) -> Life | None:
        """Ask for a nursery; does not wait for it. None if that cannot be: then one is to be started afresh."""
        tell, its_tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock:
                for _ in range(0 if self.ended else 2):
                    if self._running is None:
                        self._running = self._start(recipe.name)
                    control, _ = self._running
                    try:
                        descriptors = [line, said, its_tell.fileno()]
                        socket.send_fds(control, [msgspec.json.encode(recipe)], descriptors, flags=socket.MSG_DONTWAIT)
                        return Forked(tell, self)
                    except OSError:
                        self._kill()  # it has ended, or reads no more
        except BaseException:
            tell.close()
            raise
        finally:
            its_tell.close()
        tell.close()
        return None

    def _start(self, name: str) -> tuple[socket.socket, Afresh]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            life = start_afresh(
                "hal.drivers.monitor_stem",
                self.modules,
                theirs.fileno(),
                subprocess.DEVNULL,
                environ=self.environ,
                user=self.user,
                name=name,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours, life

    @property
    def pid(self) -> int | None:
        """Its process id, None while there is none."""
        return None if self._running is None else self._running[1].pid

    def replace(self) -> None:
        """Kill it; the next nursery that is asked for starts a new one. The nurseries live on."""
        with self._lock:
            self._kill()

    def end(self) -> None:
        """Kill it for good. The nurseries live on."""
        with self._lock:
            self.ended = True
            self._kill()

    def _kill(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            control, life = running
            control.close()
            life.end(1.0)


def start_afresh(
    module: str,
    arguments: tuple[str, ...],
    line: int,
    said: int,
    *,
    environ: Mapping[str, str],
    user: str | None,
    name: str,
) -> Afresh:
    """Start an interpreter that runs a module with the number of its line, our pid, and the arguments.

    It inherits ``line`` and nothing else of ours, is a process group of its own, and has the rights of ``user``.
    """
    identity = _identity(user, name)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(line), str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=(line,),
            env=dict(environ),
            cwd="/",
            process_group=0,
            **identity,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DriverError(
            f"the process of driver {name} cannot be started: {error}",
            during="load",
            hint="look at the limits of processes and memory",
        ) from error
    return Afresh(process)


def _identity(user: str | None, name: str) -> dict[str, Any]:
    """Return how to run as another user; only root can."""
    if user is None:
        return {}
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise NotReady(
            f"there is no user {user} for the process of {name}", during="load", hint=f"useradd --system {user}"
        ) from None
    if os.getuid() == entry.pw_uid:
        return {}
    if os.getuid() != 0:
        raise NotReady(
            f"only root can run the process of {name} as {user}", during="load", hint="run the daemon as root"
        )
    groups = [group for group in os.getgrouplist(user, entry.pw_gid) if group != 0]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
