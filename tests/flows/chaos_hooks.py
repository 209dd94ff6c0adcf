"""A process that kills itself at a numbered step: installed from outside, so that nothing of it is in the product.

A *step* is a moment before or after anything that lasts beyond the process: an append to the journal, each statement of
SQLite in it, a driver's prepare and unprepare, a part made or destroyed, each word of a guard page, an answer of the
server, a request of a client. At one of them the process dies by SIGKILL.

The devices keep a log of their own (one line of JSON each time they are prepared, shut, parted), in a file that the
dead process cannot take back. Time runs on by the number of seconds in a file, so that nobody has to wait for it.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import types
from pathlib import Path

PLANT = "HAL_CHAOS_PLANT"
HARDWARE, TIME, DEATH, STEPS = "hardware.jsonl", "time", "death", "steps"


class Steps:
    """Counts the steps from :meth:`begin` on; dies at one, and leaves its name in a file."""

    def __init__(self, folder: Path, last: int, trace: bool = False) -> None:
        self.folder, self.last, self.trace = folder, last, trace
        self.counting = False
        self.count = 0
        self.names: list[str] = []
        self._lock = threading.Lock()

    def begin(self) -> None:
        self.counting = True

    def step(self, name: str) -> None:
        if not self.counting:
            return
        with self._lock:
            self.count += 1
            if self.trace:
                self.names.append(name)
            if self.count == self.last:
                (self.folder / DEATH).write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name, work):
        def stepping(*arguments, **named):
            self.step(f"before {name}")
            result = work(*arguments, **named)
            self.step(f"after {name}")
            return result

        return stepping


class Hardware:
    """What the devices remember."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / HARDWARE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def note(self, what: str, device: str, **more: object) -> None:
        os.write(self._file, json.dumps({"what": what, "device": device, **more}).encode() + b"\n")


def travel(folder: Path, seconds: float) -> None:
    """Let so much time pass for all processes of the folder."""
    path = folder / TIME
    passed = struct.unpack("<d", path.read_bytes())[0] if path.exists() else 0.0
    fresh = folder / "time.new"
    fresh.write_bytes(struct.pack("<d", passed + seconds))
    os.replace(fresh, path)


def install_clock(folder: Path) -> None:
    """Let the broker's steady clock run ahead by what :func:`travel` said."""
    from hal.agent.clock import SteadyClock

    real, path = SteadyClock.now, folder / TIME

    def now(self):
        try:
            ahead = struct.unpack("<d", path.read_bytes())[0]
        except FileNotFoundError:
            ahead = 0.0
        return real(self) + ahead

    SteadyClock.now = now


def install(steps: Steps, folder: Path) -> None:
    """Put the steps and the devices' log into this process, whichever broker it runs."""
    from hal.agent.calling import DriverCalls
    from hal.broker.journal import schema
    from hal.broker.journal.sqlite import SqliteStore
    from hal.drivers import guard

    install_clock(folder)
    hardware = Hardware(folder)

    append = SqliteStore.append

    def appending(self, records, revision, audit=()):
        name = "append " + ("+".join(sorted({type(record).__name__ for record in records})) or "trail")
        return steps.around(name, append)(self, records, revision, audit)

    SqliteStore.append = appending

    def watched(make):
        def opened(path):
            connection = make(path)
            connection.set_trace_callback(lambda text: steps.step("sql " + " ".join(text.split()[:2])[:24]))
            return connection

        return opened

    schema.connect, schema.prepare = watched(schema.connect), watched(schema.prepare)

    pages = types.SimpleNamespace(**vars(os))
    pages.pwrite = steps.around("page", os.pwrite)
    guard.os = pages

    plant(os.environ.get(PLANT, ""))
    find = DriverCalls.driver

    def driver(self, device, step):
        found = find(self, device, step)
        if not getattr(found, "_watched", False):
            found._watched = True
            _watch(found, steps, hardware)
        return found

    DriverCalls.driver = driver


def plant(mistake: str) -> None:
    """Make the broker wrong, to see that it is found: ``late-write`` answers first and writes with the next commit,
    ``free-unshut`` calls a device free that its driver never shut.
    """
    from hal.agent.prepare import Agent
    from hal.broker.journal.sqlite import SqliteStore

    if mistake == "free-unshut":
        Agent._shut = lambda self, device, grant, slot: None
    elif mistake == "late-write":
        append, late = SqliteStore.append, []

        def appending(self, records, revision, audit=()):
            if late:
                append(self, *late.pop())
            late.append((records, revision, audit))
            return revision + len(records)

        SqliteStore.append = appending
    else:
        assert not mistake, mistake


def _watch(driver, steps: Steps, hardware: Hardware) -> None:
    def told(name, work):
        def calling(device_id, grant, deadline):
            work(device_id, grant, deadline)
            hardware.note(name, device_id, lease=grant.lease, fence=grant.fence)

        return steps.around(name, calling)

    driver.prepare = told("prepare", driver.prepare)
    driver.unprepare = told("unprepare", driver.unprepare)
    if hasattr(driver, "create_partition"):
        create, destroy = driver.create_partition, driver.destroy_partition

        def creating(device_id, profile, start=None, *, deadline=None):
            operation = create(device_id, profile, start, deadline=deadline)
            made = operation.wait(deadline)
            hardware.note("made", made.id, parent=device_id, part=f"{profile}@{start}")
            return operation

        def destroying(device_id, partition_id, *, deadline=None):
            operation = destroy(device_id, partition_id, deadline=deadline)
            operation.wait(deadline)
            hardware.note("destroyed", partition_id, parent=device_id)
            return operation

        driver.create_partition = steps.around("make a part", creating)
        driver.destroy_partition = steps.around("destroy a part", destroying)


def install_server(steps: Steps) -> None:
    """Steps around the answers of a server."""
    from hal.api.server.app import App

    reply = App.reply

    async def replying(self, send, status, body, headers, name):
        steps.step(f"before answer {name}")
        await reply(self, send, status, body, headers, name)
        steps.step(f"after answer {name}")

    App.reply = replying

    from hal.api.server.serve import Service

    run = Service.run

    def running(self, ready=lambda addresses: None):
        def begin(addresses):
            ready(addresses)
            steps.begin()

        run(self, begin)

    Service.run = running


def install_client(steps: Steps) -> None:
    """Steps of a client: before it asks, when it has asked and not heard, and when it has heard."""
    import socket

    from hal.api import http1

    take = http1.Connections._take

    class End:
        def __init__(self, end: socket.socket) -> None:
            self._end = end

        def sendall(self, data):
            steps.step("before a request")
            self._end.sendall(data)
            steps.step("after a request")

        def recv(self, *arguments):
            found = self._end.recv(*arguments)
            steps.step("after an answer")
            return found

        def __getattr__(self, name):
            return getattr(self._end, name)

    http1.Connections._take = lambda self, deadline: End(take(self, deadline))
