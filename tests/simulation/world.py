"""One machine, its broker, and everybody who wants something of it: driven by a seed, watched by the checker."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hal.agent.prepare import Agent
from hal.api.local import LocalBroker
from hal.api.sight import Sight
from hal.broker import command as c
from hal.drivers.guard import GuardPages
from hal.errors import HalError, JournalError
from hal.model.lease import AllocatedDevice, Lease
from hal.model.tenant import Tenant
from tests.simulation.checker import Checker
from tests.simulation.disk import SimDisk
from tests.simulation.hardware import Inline, SimDriver
from tests.simulation.holders import Holder
from tests.simulation.network import Network
from tests.simulation.timeline import Crash, Timeline
from tests.unit.broker.world import server

BUSY_SECONDS = 300.0
REST_SECONDS = 3600.0


class Doubling:
    """The agent's line to the ledger, on which what was said is heard a second time, later."""

    def __init__(self, world: World, ledger: Any) -> None:
        self._world = world
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def execute(self, command: c.AnyCommand, *rest: Any) -> Any:
        answer = self._ledger.execute(command, *rest)
        if isinstance(command, c.ProveReleased | c.ProveShrunk | c.MarkPrepared | c.ProveFreed):
            self._world.say_again(command)
        return answer


class World:
    """Everything there is in one run. ``run`` returns the digest of its trace."""

    def __init__(self, seed: int, folder: Path, holders: int = 24) -> None:
        self.time = Timeline(seed)
        random = self.time.random
        nodes = random.randint(1, 2)
        devices = [d for n in range(nodes) for d in server(f"n{n}", random.randint(2, 4))]
        self.driver = SimDriver(self.time, [_simulated(device) for device in devices])
        self.disk = SimDisk(self.time)
        self.network = Network(self.time)
        self.checker = Checker()
        self.folder = folder
        self.boots = 1
        self.broker: LocalBroker | None = None
        self.acknowledged: set[str] = set()
        self.holders = [Holder(self, number) for number in range(holders)]
        self._faults()
        for holder in self.holders:
            self.time.after(random.random() * BUSY_SECONDS * 0.7, holder.ask)
        for _ in range(random.randint(0, 8)):
            self.time.after(random.random() * BUSY_SECONDS, self._disturb)

    def _faults(self) -> None:
        """Each seed has its own mix of what goes wrong; some have none of a kind."""
        random = self.time.random
        self.disk.trouble = random.choice((0.0, 0.02, 0.08))
        self.driver.trouble = random.choice((0.0, 0.03, 0.1))
        self.network.loss = random.choice((0.0, 0.1, 0.3))
        self.network.doubling = random.choice((0.0, 0.2))
        self.network.slowest = random.choice((0.05, 5.0, 30.0))

    # --- the broker's process

    def start(self) -> None:
        if self.broker is not None:
            return
        self.time.note("broker: starts")
        try:
            broker = LocalBroker(
                {"sim": self.driver},
                self.disk,
                self.folder,
                observe=lambda: Sight(devices=self.driver.look()),
                clock=self.time,
                boot_id=f"boot-{self.boots}",
                begin=Inline,
            )
        except Crash:
            self._crashed()
            return
        except JournalError as error:
            self.time.note(f"broker: does not start: {error.message}")
            self.time.after(1.0, self.start)
            return
        self.broker = broker
        self._agent(broker).ledger = Doubling(self, broker.ledger)  # type: ignore[assignment]
        if self.disk.full or not broker.state.tenants:
            self._set_quota()
        self._tick(broker)

    def _agent(self, broker: LocalBroker) -> Agent:
        return broker.agent

    def _set_quota(self) -> None:
        most = 2 + len(self.driver.devices) // 6
        self.do("quota", lambda broker: broker.set_tenant(Tenant(path="red", quota={"gpu": most}, weight=2)))

    def _tick(self, broker: LocalBroker) -> None:
        if self.broker is not broker:
            return
        if self.time.chance(0.2):
            self.do("refresh", lambda b: b.refresh())
        pause = self.do("maintain", lambda b: b.maintain())
        if self.broker is broker:
            soon = pause if isinstance(pause, float) and pause > 0.01 else 0.5
            quiet = self.time.elapsed > BUSY_SECONDS and not broker.state.leases and not broker.state.waiting
            self.time.after(60.0 if quiet else soon, lambda: self._tick(broker))

    def do(self, what: str, work: Callable[[LocalBroker], Any]) -> Any:
        """Ask the broker, from beside it. An error is an answer; a crash is none."""
        broker = self.broker
        if broker is None:
            return None
        try:
            return work(broker)
        except Crash:
            self._crashed()
        except HalError as error:
            self.time.note(f"{what}: {type(error).__name__}")
            return error
        return None

    def _crashed(self) -> None:
        self.time.note("broker: dies")
        self.broker = None
        self.time.after(0.1 + self.time.random.random() * 10, self.start)

    def tell(self, what: str, work: Callable[[LocalBroker], Any], answered: Callable[[Any], None]) -> None:
        """Ask the broker over the network; the answer may come late, twice or never."""

        def deliver() -> None:
            if self.broker is None:
                return
            self.time.note(f"asked: {what}")
            answer = self.do(what, work)
            if answer is not None and not isinstance(answer, JournalError):
                self._acknowledge(answer)
                self.network.send(f"answer to {what}", lambda: answered(answer))

        self.network.send(what, deliver)

    def _acknowledge(self, answer: Any) -> None:
        """What leaves the broker is a promise, whether or not it arrives."""
        lease = answer.lease if isinstance(answer, c.Granted) else None
        if lease is not None:
            self.check()
            self.checker.acknowledged(lease.id, lease.fence)
            self.acknowledged.add(lease.id)

    def say_again(self, command: c.AnyCommand) -> None:
        if self.time.chance(self.network.doubling * 3):
            later = self.time.random.random() * 40
            self.time.after(later, lambda: self.do("heard again", lambda broker: broker.ledger.execute(command)))

    # --- what else happens

    def _disturb(self) -> None:
        random = self.time.random
        fate = random.random()
        device = random.choice([d for d in self.driver.devices.values() if d.allocatable])
        if fate < 0.2:
            self.time.note(f"{device.id} breaks")
            self.driver.sick.add(device.id)
            self.do("refresh", lambda broker: broker.refresh())
            self.time.after(20 + random.random() * 60, lambda: self._mend(device.id))
        elif fate < 0.3:
            self.time.note(f"{device.id} is gone")
            self.driver.gone.add(device.id)
            self.time.after(20 + random.random() * 60, lambda: self.driver.gone.discard(device.id))
        elif fate < 0.5:
            self.do("cordon", lambda broker: broker.cordon(device.id, "a look", "ada"))
            self.time.after(random.random() * 60, lambda: self._uncordon(device.id))
        elif fate < 0.65:
            node = device.location.node
            self.do("drain", lambda broker: broker.drain(node, "firmware", "ada"))
            self.time.after(random.random() * 60, lambda: self._uncordon(f"node:{node}"))
        elif fate < 0.75:
            self.disk.full = True
            self.time.after(random.random() * 30, self._empty_disk)
        elif fate < 0.85:
            self.reboot()
        elif self.broker is not None:
            self._crashed()

    def _mend(self, device_id: str) -> None:
        self.driver.sick.discard(device_id)
        answer = self.do("repair", lambda broker: broker.repair(device_id, by_operator="changed it"))
        if answer is None or isinstance(answer, HalError):
            self.time.after(10, lambda: self._mend(device_id))

    def _uncordon(self, target: str) -> None:
        answer = self.do("uncordon", lambda broker: broker.uncordon(target, "ada"))
        if answer is None or isinstance(answer, HalError):
            self.time.after(5, lambda: self._uncordon(target))

    def _empty_disk(self) -> None:
        self.disk.full = False

    def reboot(self) -> None:
        """The whole machine: the broker dies, devices serve nobody, the runtime folder is empty."""
        self.time.note("machine: reboots")
        self.boots += 1
        self.driver.reboot()
        shutil.rmtree(self.folder, ignore_errors=True)
        for holder in self.holders:
            if holder.lease is not None and not holder.done:
                holder.dead = True
        if self.broker is not None:
            self._crashed()

    def use(self, lease: Lease, device: AllocatedDevice) -> None:
        """A holder uses a device as its handle lets it: only while its guard page shows its fence."""
        try:
            page = GuardPages(self.folder / "guards").fence(lease.slot_of(device))
        except OSError:
            return
        if page == lease.fence_of(device):
            self.driver.use(device.id, lease.id, lease.fence_of(device))

    # --- the run

    def check(self) -> None:
        self.checker.take(self.time.history)

    def run(self) -> str:
        self.start()
        steps = 0
        while self.time.step(BUSY_SECONDS):
            self._after_step(steps)
            steps += 1
        self._stop_faults()
        while self.time.step(BUSY_SECONDS + REST_SECONDS):
            self._after_step(steps)
            steps += 1
        for lease in sorted(self.acknowledged):
            self.checker.still_there(lease)
        self.checker.at_rest()
        return hashlib.sha256("\n".join(self.time.trace).encode()).hexdigest()

    def _after_step(self, steps: int) -> None:
        self.check()
        if steps % 10 == 0 and self.broker is not None:
            status = self.do("status", lambda broker: broker.status())
            self.check()
            if isinstance(getattr(status, "devices", None), dict):
                self.checker.counted(status.devices)

    def _stop_faults(self) -> None:
        self.time.note("everything works from now on, and nobody is left")
        self.disk.trouble = self.driver.trouble = self.network.loss = self.network.doubling = 0.0
        self.disk.full = False
        self.network.slowest = 0.05
        self.driver.gone.clear()
        for holder in self.holders:
            holder.dead = True
        self.time.after(0.5, self.start)


def _simulated(device: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(device, driver="sim") if device.allocatable else device


def run_seed(seed: int, holders: int = 24) -> World:
    """Run one seed to its end; raises :class:`~tests.simulation.checker.Violation`."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sim-", dir=memory if memory.is_dir() else None) as folder:
        world = World(seed, Path(folder) / "run", holders)
        world.digest = world.run()  # type: ignore[attr-defined]
        return world
