"""A broker process that dies by SIGKILL at a chosen step, again and again; see test_killed.py.

Usage: victim.py FOLDER steps|times SEED. Forks one process a life, so that each one really dies, and prints a line
for each: the step and what was found afterwards.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import time
from pathlib import Path

from hal.api.local import LocalBroker
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.drivers.guard import GuardPages
from hal.errors import ClaimRefused
from tests.budget import PROFILE
from tests.unit.broker.checker import check
from tests.unit.broker.fake import FakeDriver, ManualClock
from tests.unit.broker.world import server


class Steps:
    """Counts everything that touches the world outside, before and after; kills this process at one count."""

    def __init__(self, last):
        self.last, self.count = last, 0

    def step(self, *_):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work):
        def stepping(*arguments, **named):
            self.step()
            result = work(*arguments, **named)
            self.step()
            return result

        return stepping


class Life:
    def __init__(self, folder, last=0):
        self.folder = folder
        self.steps = Steps(last)
        self.clock = ManualClock(float((folder / "time").read_text()) if (folder / "time").exists() else 1000.0)
        devices = server("n0", 2)
        self.driver = FakeDriver([d for d in devices if d.allocatable], folder / "hardware")
        self.driver.prepare = self.steps.around(self.driver.prepare)
        self.driver.unprepare = self.steps.around(self.driver.unprepare)
        GuardPages.grant = self.steps.around(_GRANT)
        GuardPages.revoke = self.steps.around(_REVOKE)
        store = SqliteStore(folder / "state")
        store._sql.set_trace_callback(self.steps.step)
        store.append = self.steps.around(store.append)
        self.broker = LocalBroker(
            {"fake": self.driver},
            store,
            folder / "run",
            observe=lambda: [d for d in devices if not d.allocatable] + list(self.driver.discover(None).devices),
            clock=self.clock,
            boot_id="boot-1",
        )

    def say(self, *words):
        with open(self.folder / "said", "a") as said:
            said.write(" ".join(words) + "\n")

    def claim(self, name, kind="gpu", count=1, ttl=60):
        held = self.broker.claim(kind, count=count, id=name, ttl_seconds=ttl)
        self.say("granted", name, str(held.fence), *sorted(d.id for d in held.devices))

    def release(self, name):
        self.say("ending", name)
        self.broker.release(name)
        self.say("ended", name)

    def pass_time(self, seconds, *expiring):
        for name in expiring:
            self.say("ending", name)
        self.clock.time += seconds
        (self.folder / "time").write_text(str(self.clock.time))

    def whole_story(self):
        self.claim("a", count=2)
        self.claim("b", "rnic", ttl=20)
        self.broker.renew("a")
        self.release("a")
        self.claim("c")
        self.pass_time(30, "b")
        self.claim("d", "rnic", count=2)
        self.say("ended", "b")
        self.release("d")


STRIDE = 1 if PROFILE == "nightly" else 5
"""By day it dies at every fifth step: tests/flows/test_killed_steps.py tells more stories."""
_GRANT, _REVOKE = GuardPages.grant, GuardPages.revoke


def fork(work):
    """Run work in a child; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def promised(folder):
    """What the dead process had told its clients: leases that stand, and those whose end was at least begun."""
    standing, ending = {}, set()
    path = folder / "said"
    for line in path.read_text().splitlines() if path.exists() else ():
        verb, name, *rest = line.split()
        if verb == "granted":
            standing[name] = (int(rest[0]), rest[1:])
        else:
            ending.add(name)
            if verb == "ended":
                standing.pop(name, None)
    return standing, ending


def inspect(folder):
    """In a fresh process: recover, compare with what was promised and with the hardware, and go on working."""
    check(folder / "state" / FILE)
    standing, ending = promised(folder)
    life = Life(folder)
    live = {lease.id: lease for lease in life.broker.list()}
    for name, (fence, devices) in standing.items():
        if name in ending and name not in live:
            continue
        assert name in live, f"{name} was acknowledged and is lost"
        assert live[name].fence == fence
        assert sorted(d.id for d in live[name].devices) == devices
        assert life.broker.claim(*again(name)[0], **again(name)[1]).lease.fence == fence
        life.broker.get(name).open(devices[0]).telemetry()
    held = {d.id: (lease.id, lease.fence) for lease in live.values() for d in lease.devices}
    for device_id in life.driver.devices:
        lease, fence = life.driver.holder(device_id)
        assert (lease, fence) == held[device_id] if device_id in held else lease == "", f"{device_id}: {lease!r}"
    assert not life.broker.status().fenced
    for name in live:
        life.broker.release(name)
    everything = life.broker.claim("gpu", count=2)
    assert everything.fence > max([0, *(fence for fence, _ in standing.values())])
    try:
        life.broker.claim("gpu")
        raise AssertionError("a third GPU out of two")
    except ClaimRefused:
        pass
    life.broker.close()
    check(folder / "state" / FILE)


def again(name):
    return {
        "a": (("gpu",), {"count": 2, "id": "a"}),
        "b": (("rnic",), {"id": "b", "ttl_seconds": 20}),
        "c": (("gpu",), {"id": "c"}),
        "d": (("rnic",), {"count": 2, "id": "d"}),
    }[name]


def die_at_every_step(folder, seed):
    rng = random.Random(seed)
    number, deaths = 1 - STRIDE, 0
    while True:
        number += STRIDE
        home = folder / f"step{number}"
        home.mkdir()
        code = wait(fork(lambda home=home, number=number: Life(home, number).whole_story()))
        if code == 0:
            print(f"done {deaths}")
            return
        assert code == -signal.SIGKILL, f"the story failed by itself at step {number}"
        deaths += 1
        if (home / "state" / FILE).exists() and rng.random() < 0.5:  # die once more, while recovering
            wait(fork(lambda home=home: Life(home, rng.randint(1, 30))))
        assert wait(fork(lambda home=home: inspect(home))) == 0, f"after a kill at step {number}"
        shutil.rmtree(home)


def die_at_any_time(folder, seed):
    rng = random.Random(seed)
    home = folder / "any"
    home.mkdir()

    def live_on():
        life = Life(home)
        mine = []
        for number in range(10_000):
            name = f"{os.getpid()}-{number}"
            life.claim(name, rng.choice(["gpu", "rnic"]))
            mine.append(name)
            if len(mine) == 2:
                life.release(mine.pop(rng.randrange(2)))

    for _ in range(20):
        rng.random()
        child = fork(live_on)
        ready = os.pidfd_open(child)
        select.select([ready], [], [], rng.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        os.close(ready)
        wait(child)
        recovered = wait(fork(lambda: settle(home)))
        assert recovered == 0
    print("done 20")


def settle(home):
    if not (home / "state" / FILE).exists():
        return
    standing, ending = promised(home)
    life = Life(home)
    live = {lease.id: lease for lease in life.broker.list()}
    for name, (fence, devices) in standing.items():
        if name not in ending:
            assert live[name].fence == fence
            assert sorted(d.id for d in live[name].devices) == devices
    for lease in live.values():
        for d in lease.devices:
            assert life.driver.holder(d.id) == (lease.id, lease.fence)
        life.release(lease.id)
    life.broker.close()
    check(home / "state" / FILE)


if __name__ == "__main__":
    start = time.monotonic()
    {"steps": die_at_every_step, "times": die_at_any_time}[sys.argv[2]](Path(sys.argv[1]), int(sys.argv[3]))
    print(f"{time.monotonic() - start:.1f} s", file=sys.stderr)
