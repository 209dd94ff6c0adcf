"""A driver whose hardware is a folder that all processes share: who prepared what, under which fence."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from hal.api.local import LocalBroker
from hal.broker.journal.memory import MemoryStore
from hal.drivers.contract import READY, Discovery
from hal.errors import DeviceGone, DeviceNotFound, JournalError, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.attributes import known
from hal.model.health import Condition, Severity


class FakeHandle:
    def __init__(self, device, guard):
        self.device = device
        self._guard = guard
        self.closed = False

    def telemetry(self, *, deadline=None):
        self._guard.check()
        return {"temperature_celsius": known(40.0, "fake")}

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class FakeDriver:
    """``sick`` devices have a fatal condition, ``stuck`` ones cannot be prepared, ``clinging`` ones not unprepared."""

    name = "fake"

    def __init__(self, devices, folder: Path):
        self.devices = {device.id: device for device in devices}
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.sick: set[str] = set()
        self.stuck: set[str] = set()
        self.clinging: set[str] = set()
        self.mute = False

    def readiness(self):
        return READY

    def discover(self, deadline):
        found = []
        for device in self.devices.values():
            conditions = tuple(self.sample([device.id], deadline))
            found.append(msgspec.structs.replace(device, conditions=conditions) if conditions else device)
        return Discovery(devices=tuple(found))

    def sample(self, device_ids, deadline):
        if self.mute:
            raise RuntimeError("no answer")
        return [
            Condition(device=i, type="Broken", severity=Severity.FATAL, evidence="it broke", source="fake")
            for i in device_ids
            if i in self.sick
        ]

    def _file(self, device_id):
        if device_id not in self.devices:
            raise DeviceNotFound("no such device", device=device_id)
        return self.folder / device_id.replace("/", "_")

    def holder(self, device_id) -> tuple[str, int]:
        """Who has it prepared ("" for nobody), and the highest fence it has seen."""
        try:
            lease, fence = self._file(device_id).read_text().split("\n")
        except FileNotFoundError:
            return "", 0
        return lease, int(fence)

    def _write(self, device_id, lease, fence):
        path = self._file(device_id)
        fresh = path.with_suffix(".new")
        fresh.write_text(f"{lease}\n{fence}")
        os.replace(fresh, path)

    def prepare(self, device_id, grant, deadline):
        if device_id in self.stuck:
            raise DeviceGone("it does not answer", device=device_id, during="prepare", hint="reset")
        lease, fence = self.holder(device_id)
        if grant.fence < fence:
            raise StaleFence(f"{grant.fence} < {fence}", device=device_id)
        assert lease in ("", grant.lease), f"{device_id} is prepared for {lease} and now for {grant.lease}"
        self._write(device_id, grant.lease, grant.fence)

    def unprepare(self, device_id, grant, deadline):
        if device_id in self.clinging:
            raise DeviceGone("it does not let go", device=device_id, during="unprepare", hint="reset")
        if grant.fence < self.holder(device_id)[1]:
            raise StaleFence("older", device=device_id)
        self._write(device_id, "", grant.fence)

    def open(self, device_id, guard, deadline):
        guard.check()
        return FakeHandle(self.devices[device_id], guard)

    def close(self):
        pass


class ManualClock:
    def __init__(self, now=1000.0):
        self.time = now

    def now(self):
        return self.time


class World:
    """A machine with a fake driver, and a broker that can be stopped and started again."""

    def __init__(self, folder, devices):
        self.folder = folder
        self.driver = FakeDriver([d for d in devices if d.allocatable], folder / "hardware")
        self.others = [d for d in devices if not d.allocatable]
        self.store = MemoryStore()
        self.clock = ManualClock()
        self.boot_id = "boot-1"
        self.broker = self.start()

    def observe(self):
        return [*self.others, *self.driver.discover(Deadline.after(1)).devices]

    def start(self, drivers=None, observe=True):
        self.broker = LocalBroker(
            {"fake": self.driver} if drivers is None else drivers,
            self.store,
            self.folder / "run",
            observe=self.observe if observe else None,
            clock=self.clock,
            boot_id=self.boot_id,
            deadline_seconds=1.0,
        )
        return self.broker

    def fail_the_second_append(self):
        """Let the journal fail once, not at the next commit but at the one after it."""
        append, calls = self.store.append, []

        def failing(records, revision, audit=()):
            calls.append(records)
            if len(calls) == 2:
                raise JournalError("I/O error")
            return append(records, revision, audit)

        self.store.append = failing

    def prepared(self):
        return {d for d in self.driver.devices if self.driver.holder(d)[0]}
