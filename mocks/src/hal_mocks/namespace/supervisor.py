"""Whoever stands beside the programs in a namespace: keeps the tree true, and tells them of what changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress

from hal.errors import HalError
from hal_mocks.machine import Machine
from hal_mocks.namespace.changes import Event, events_between
from hal_mocks.namespace.nodes import place, remove
from hal_mocks.namespace.room import Room, show_sys
from hal_mocks.namespace.system import IN_DELETE_SELF, IN_MOVED_TO, watch_folder
from hal_mocks.namespace.uevents import UeventSender
from hal_mocks.sysfs import host_folder, render, shown, tree_of
from hal_mocks.sysfs_files import Entry

_LOG = logging.getLogger(__name__)
_VIRTUAL_LOOK_SECONDS = 0.05
"""How often virtual time, which any process moves without a word, is looked at while something is scheduled."""


class Supervisor:
    """Waits for changes of one host's tree. Use it inside the namespace, from the process that made it.

    ``fileno`` becomes readable when a process has changed the tree; at ``timeout`` seconds something that is scheduled
    is due. After either, :meth:`step`.
    """

    def __init__(self, machine: Machine, room: Room, host: str) -> None:
        self._machine = machine
        self._room = room
        self._host = next(one for one in machine.graph.hosts if one.name == host)
        self._sender = UeventSender() if room.own_network else None
        self._inotify = -1
        self._watch()
        self._mounted = self._identity()
        self._state = shown(machine)
        self._entries = tree_of(self._host, self._state.faults, self._state.made)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._inotify

    def timeout(self) -> float | None:
        """Return how long to wait at most; None for ever."""
        until = self._state.until
        if until is None:
            return None
        left = until - self._machine.clock.now()
        return max(0.0, min(left, _VIRTUAL_LOOK_SECONDS if self._virtual() else 3600.0))

    def _virtual(self) -> bool:
        from hal_mocks.clock import RealClock

        return not isinstance(self._machine.clock, RealClock)

    def step(self) -> list[Event]:
        """Bring tree, nodes and listeners up to date; returns the events sent. Never raises for a sick machine."""
        self._drain()
        try:
            return self._update()
        except (OSError, HalError) as error:
            _LOG.warning("the namespace of %s lags behind: %s", self._host.name, error)
            time.sleep(_VIRTUAL_LOOK_SECONDS)
            return []

    def _update(self) -> list[Event]:
        render(self._machine)
        if self.timeout() == 0.0:  # nobody else tells the libraries that something scheduled is due
            self._machine.show()
        if self._identity() != self._mounted:  # forgotten and rendered anew: what is mounted is a folder without name
            show_sys(self._room)
            self._mounted = self._identity()
            self._watch()
        state = shown(self._machine)
        if (state.faults, state.made) == (self._state.faults, self._state.made):
            self._state = state
            return []
        entries = tree_of(self._host, state.faults, state.made)
        events = events_between(self._entries, entries)
        self._move_nodes(entries)
        self._state, self._entries = state, entries
        if self._sender is not None:
            for event in events:
                self._sender.send(event.action, event.devpath, event.subsystem, event.properties)
        return events

    def _move_nodes(self, entries: Mapping[str, Entry]) -> None:
        before = {path: entry for path, entry in self._entries.items() if path.startswith("dev/")}
        after = {path: entry for path, entry in entries.items() if path.startswith("dev/")}
        for path, entry in before.items():
            if after.get(path) != entry:
                remove(path.removeprefix("dev/"))
        for path, entry in after.items():
            if before.get(path) != entry and isinstance(entry, bytes):
                place(self._room.root, path.removeprefix("dev/"))

    def _identity(self) -> tuple[int, int]:
        found = os.stat(host_folder(self._machine.state.folder, self._host.name) / "sys")
        return found.st_dev, found.st_ino

    def _watch(self) -> None:
        folder = self._machine.state.folder / "sys"
        descriptor = watch_folder(str(folder), IN_MOVED_TO | IN_DELETE_SELF)
        if self._inotify < 0:
            self._inotify = descriptor
        else:  # the same number stays: others wait for it
            os.dup2(descriptor, self._inotify, inheritable=False)
            os.close(descriptor)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._inotify, 4096):
                pass

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1
        if self._sender is not None:
            self._sender.close()
