"""A driver in a process of its own: what asking it costs, and how long it is away after a crash and a hang."""

from __future__ import annotations

import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hal.drivers.monitor import MonitoredDriver, monitor
from hal.drivers.monitor_calls import Monitor
from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_restarts import Restarts
from hal.errors import DeadlineExceeded, HalError
from hal.interfaces.deadline import Deadline
from tests.bench.rows import Row

ROUNDS, CALLS, LOSSES = 6, 4_000, 25
HANG_SECONDS = 0.25
_PLUGIN = """
import time
from hal.drivers.contract import READY, Discovery

class Bench:
    name = "bench"
    def readiness(self): return READY
    def discover(self, deadline): return Discovery()
    def sample(self, device_ids, deadline):
        if device_ids[0] == "hung": time.sleep(3600)
        return ()
    def prepare(self, device_id, grant, deadline): pass
    def unprepare(self, device_id, grant, deadline): pass
    def open(self, device_id, guard, deadline): raise NotImplementedError
    def close(self): pass

def creator(name): return Bench
"""


def run() -> Iterator[Row]:
    """Time one verb, the way back from a crash, and the way back from a hang."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_monitor_plugin.py").write_text(_PLUGIN)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))}
        recipe = Recipe(function="bench_monitor_plugin:creator", name="bench")
        process = Monitor(recipe, Restarts("bench", crashes=LOSSES * 10), environ)
        driver = monitor(recipe, environ, Deadline.after(30), process=process)
        try:
            yield from _calls(driver)
            yield from _losses(driver)
        finally:
            driver.close()


def _calls(driver: MonitoredDriver) -> Iterator[Row]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(65536):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    question = bytes(40)

    def echo() -> None:
        ours.sendall(question)
        ours.recv(65536)

    deadline = Deadline.after(600)

    def sample() -> None:
        driver.sample(("gpu0",), deadline)

    asked: list[float] = []
    echoed: list[float] = []
    for _ in range(ROUNDS):  # in turns: this machine's speed changes by the minute
        _time(sample, asked)
        _time(echo, echoed)
    ours.close()
    os.waitpid(pid, 0)
    p50, p99 = _at(asked, 0.5), _at(asked, 0.99)
    yield Row(
        name="monitor, one verb (sample)",
        measured=f"p50 {p50 * 1e6:.0f} µs, p99 {p99 * 1e6:.0f} µs",
        peer=f"echo over a bare socketpair: p50 {_at(echoed, 0.5) * 1e6:.0f} µs, p99 {_at(echoed, 0.99) * 1e6:.0f} µs",
        ratio=p50 / _at(echoed, 0.5),
        goal="p50 at most 20 µs, or three times the echo on a slower machine",
        met=p50 <= 20e-6 or p50 <= 3 * _at(echoed, 0.5),
        includes="lock, deadline, encoding, two processes, checking of the answer's types",
    )


def _losses(driver: MonitoredDriver) -> Iterator[Row]:
    crashes: list[float] = []
    forks: list[float] = []
    hangs: list[float] = []
    for _ in range(LOSSES):
        pid = driver.process.pid
        assert pid is not None
        start = time.perf_counter()
        os.kill(pid, signal.SIGSEGV)
        _until_good(driver)
        crashes.append(time.perf_counter() - start)
        forks.append(_bare_fork())
    for _ in range(LOSSES // 5):
        start = time.perf_counter()
        try:
            driver.sample(("hung",), Deadline.after(HANG_SECONDS))
        except DeadlineExceeded:
            pass
        hangs.append(time.perf_counter() - start)
        _until_good(driver)
    yield Row(
        name="monitor, segfault to the next good reading",
        measured=f"p50 {_at(crashes, 0.5) * 1e3:.1f} ms, worst {max(crashes) * 1e3:.1f} ms",
        peer=f"a bare fork is killed and waited for, the next one answers: p50 {_at(forks, 0.5) * 1e3:.1f} ms",
        ratio=_at(crashes, 0.5) / _at(forks, 0.5),
        goal="at most 2.4 ms, or twice the bare fork on a slower machine",
        met=_at(crashes, 0.5) <= 2.4e-3 or _at(crashes, 0.5) <= 2 * _at(forks, 0.5),
        includes="the typed error with the signal and the traceback, a new process, the driver created anew",
    )
    yield Row(
        name="monitor, a hang at a deadline of 250 ms",
        measured=f"p50 {_at(hangs, 0.5) * 1e3:.1f} ms, worst {max(hangs) * 1e3:.1f} ms",
        peer=f"the deadline: {HANG_SECONDS * 1e3:.0f} ms",
        ratio=_at(hangs, 0.5) / HANG_SECONDS,
        goal="at most 5 ms more",
        met=_at(hangs, 0.5) <= HANG_SECONDS + 0.005,
        includes="the deadline itself, SIGKILL, and the proof that the process is dead",
    )


def _bare_fork() -> float:
    """Return how long a child takes that crashes and is waited for, and then one that says a word: the floor."""
    gc.collect()
    gc.freeze()
    try:
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        start = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b".")
            os._exit(0)
        os.read(reading, 1)
        seconds = time.perf_counter() - start
        os.waitpid(pid, 0)
    finally:
        gc.unfreeze()
    os.close(reading)
    os.close(writing)
    return seconds


def _until_good(driver: MonitoredDriver) -> None:
    while True:
        try:
            driver.sample(("gpu0",), Deadline.after(5))
            return
        except HalError:
            continue


def _time(work: Callable[[], None], into: list[float]) -> None:
    for _ in range(CALLS):
        start = time.perf_counter()
        work()
        into.append(time.perf_counter() - start)


def _at(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)]
