"""A plugin that does what a test says, and the place where it is installed."""

from __future__ import annotations

import json
import os
import textwrap
import time
from pathlib import Path

from hal.drivers.monitor import monitor
from hal.drivers.monitor_calls import Monitor
from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_restarts import Restarts
from hal.interfaces.deadline import Deadline

PLUGIN = '''
import ctypes, json, os, signal, sys, threading, time
from hal import errors
from hal.drivers.contract import Discovery, Problem, Readiness, Cause
from hal.interfaces.operation import Operation
from hal.model.device import Device, Location
from hal.model.event import Event, EventType
from hal.model.health import Condition, Severity
from hal.model.kind import Kind

class Own(errors.UncorrectableError):
    "A plugin's own error, unknown outside."

def device(name, **words):
    return Device(id=name, kind=Kind.GPU, name=name, driver="odd", location=Location(node="n0"), **words)

class Odd:
    """Its device ids are orders."""
    name = "odd"
    def readiness(self):
        return Readiness(cause=Cause.READY, detail=json.dumps({
            "pid": os.getpid(), "group": os.getpgid(0), "parent": os.getppid(), "uid": os.getuid(),
            "targets": [os.readlink(p) for p in map("/proc/self/fd/{}".format, range(64)) if os.path.lexists(p)],
            "machine": os.environ.get("HAL_MACHINE"), "tools": [c.pid for c in TOOLS]}))
    def discover(self, deadline):
        return Discovery(devices=(device("a"), device("b")), problems=(Problem(source="odd", step="x", detail="y"),))
    def sample(self, device_ids, deadline):
        found = []
        for order in device_ids:
            if order.startswith("sick"):
                found.append(Condition(device=order, type="Broken", severity=Severity.FATAL, evidence="e", source="odd",
                                       code=79))
            self.obey(order, deadline)
        return found
    def obey(self, order, deadline):
        if order == "segfault":
            print("something odd happened", file=sys.stderr)
            ctypes.string_at(0)
        if order == "exit": os._exit(3)
        if order == "hang": time.sleep(3600)
        if order == "stop": os.kill(os.getpid(), signal.SIGSTOP)
        if order == "kernel": signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(3600)
        if order == "mine": raise Own("gone bad", device=order, during="sample", hint="replace it", code=48)
        if order == "busy": raise errors.DeviceBusy("in use", device=order, during="prepare", hint="wait")
        if order == "weak": raise ValueError("a bug")
        if order == "system": raise SystemExit(4)
        if order == "nonsense": return
        if order == "flood":
            for n in range(3000): print("line", n, "x" * 100, file=sys.stderr)
        if order == "keeps":
            time.sleep(deadline.remaining_seconds)
            raise errors.DeadlineExceeded("kept", device=order, during="sample")
        if order == "tool":
            import subprocess
            TOOLS.append(subprocess.Popen(["sleep", "3600"]))
    def prepare(self, device_id, grant, deadline):
        if grant.fence < 5: raise errors.StaleFence("old", device=device_id, during="prepare", hint="claim again")
        self.obey(device_id, deadline)
    def unprepare(self, device_id, grant, deadline): self.obey(device_id, deadline)
    def open(self, device_id, guard, deadline): return ("opened", device_id, os.getpid())
    def close(self): open(os.environ["CLOSED"], "w").write("closed")
    def reset(self, device_id, *, deadline=None):
        if device_id == "refused": raise errors.DeviceBusy("held", device=device_id, during="reset")
        def work(operation):
            if device_id == "slow": GO.wait()
            self.obey(device_id, deadline)
        if device_id == "go": GO.set()
        return Operation.spawn(device_id, "reset", work)
    def events(self, deadline):
        for n in range(3):
            yield Event(revision=n, at=1.0, type=EventType.CONDITION, subject=str(n), detail="d")

TOOLS = []
GO = threading.Event()

class Plain(Odd):
    reset = property()
    events = property()

class Wrong(Odd):
    def readiness(self): return "yes"
    def discover(self, deadline): return [1, 2]

def creator(name):
    if name == "unloadable": raise errors.NotReady("no library", during="load", hint="install it")
    if name == "crashing": ctypes.string_at(0)
    if name == "uncreatable":
        def create(): raise errors.NotReady("not today", during="create", hint="tomorrow")
        return create
    return {"odd": Odd, "plain": Plain, "wrong": Wrong}[name]
'''


class Place:
    def __init__(self, folder: Path):
        (folder / "halodd.py").write_text(textwrap.dedent(PLUGIN))
        self.closed = folder / "closed"
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "CLOSED": str(self.closed),
            "HAL_MACHINE": "of-the-test",
        }
        self.started = []

    def process(self, name="odd", restarts=None, **words):
        recipe = Recipe(function="halodd:creator", name=name)
        made = Monitor(recipe, restarts or Restarts(name, crashes=1000), self.environ, **words)
        self.started.append(made)
        return made

    def start(self, name="odd", process=None, **words):
        process = process or self.process(name)
        return monitor(process.recipe, self.environ, Deadline.after(30), process=process, **words)


def soon(seconds=10.0):
    return Deadline.after(seconds)


def facts(driver):
    return json.loads(driver.readiness().detail)


def until(condition):
    deadline = Deadline.after(10)
    while not condition():
        assert not deadline.expired, "it did not come to be so"
        time.sleep(0.002)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
