"""The process from which the nurseries of all drivers are forked, seen from inside.

Every nursery needs the same modules of ours; to import them once (``python -m hal.drivers.monitor_stem``) and fork is
ten times as fast as to import them for each driver. The *stem* imports nothing of a plugin, calls no driver and has one
thread: what it copies is whole, and nothing that a driver does can reach it. A nursery needs it no more once it is
forked: it watches the daemon by itself, and lives on if the stem is killed. The stem only waits for its end, to tell
how it was.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import socket
import sys
from typing import NoReturn

import msgspec

from hal.drivers.monitor_child import Ended, Recipe, be_nursery, warm_up
from hal.drivers.monitor_wire import ANSWER, ITEM, frame

DESCRIPTORS = 3
"""What comes with a recipe: the nursery's line to the daemon, its standard error, and ours to tell how it fares."""
_MOST_BYTES = 1 << 16


def main(control_fd: int, parent: int, *modules: str) -> int:
    """Be the stem: import, then fork a nursery for every recipe, until the daemon is gone."""
    control = socket.socket(fileno=control_fd)
    watch = os.pidfd_open(parent)
    if os.getppid() != parent:
        return 0  # it had ended before it could be watched
    for name in modules:
        importlib.import_module(name)
    warm_up()
    gc.collect()
    gc.freeze()  # what is shared with the nurseries stays shared
    Stem(control, watch).serve()
    return 0


class Stem:
    """Forks nurseries and waits for their ends."""

    def __init__(self, control: socket.socket, watch: int) -> None:
        self.control = control
        self.watch = watch
        self.nurseries: dict[int, tuple[int, socket.socket]] = {}
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.poll.register(watch, select.POLLIN)

    def serve(self) -> None:
        """Do what the daemon asks until it closes the line, or is no more. The nurseries end by themselves then."""
        while True:
            ready = {descriptor for descriptor, _ in self.poll.poll()}
            for pid, (pidfd, line) in list(self.nurseries.items()):
                if pidfd in ready:
                    self._bury(pid, pidfd, line)
            if self.watch in ready or (self.control.fileno() in ready and not self._fork()):
                return

    def _fork(self) -> bool:
        """Fork a nursery for the recipe that has come; False at the end of the line."""
        data, descriptors, _, _ = socket.recv_fds(self.control, _MOST_BYTES, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        if len(descriptors) < DESCRIPTORS:  # no room for them: the daemon sees them closed, and starts one afresh
            for descriptor in descriptors:
                os.close(descriptor)
            return True
        line_fd, said, tell_fd = descriptors
        tell = socket.socket(fileno=tell_fd)
        pid = os.fork()
        if pid == 0:
            tell.close()
            self._be_nursery(data, line_fd, said)
        os.close(line_fd)
        os.close(said)
        pidfd = os.pidfd_open(pid)
        self.nurseries[pid] = (pidfd, tell)
        self.poll.register(pidfd, select.POLLIN)
        try:
            os.setpgid(pid, pid)  # both sides do it: nobody may see the child in the stem's group
        except OSError:
            pass  # it did, or has ended already
        try:
            socket.send_fds(tell, [frame(ANSWER, pid)], [pidfd])
        except OSError:
            pass  # who asked has given up; its nursery finds the line closed, and ends
        return True

    def _be_nursery(self, recipe: bytes, line_fd: int, said: int) -> NoReturn:
        code = 70
        try:
            os.setpgid(0, 0)
            os.dup2(said, 2)
            os.close(said)
            for pidfd, tell in self.nurseries.values():
                os.close(pidfd)
                tell.close()
            self.nurseries.clear()
            self.control.close()
            importlib.invalidate_caches()  # a plugin may have been installed since
            code = be_nursery(socket.socket(fileno=line_fd), self.watch, msgspec.json.decode(recipe, type=Recipe))
        except BaseException as error:  # the end of this process, not of the stem whose copy it is
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(code)

    def _bury(self, pid: int, pidfd: int, tell: socket.socket) -> None:
        _, status = os.waitpid(pid, 0)
        del self.nurseries[pid]
        self.poll.unregister(pidfd)
        os.close(pidfd)
        try:
            tell.sendall(frame(ITEM, Ended(pid=pid, status=os.waitstatus_to_exitcode(status), said="")))
        except OSError:
            pass  # nobody wants to know
        tell.close()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
