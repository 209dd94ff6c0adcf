"""Kills brokers, servers and clients by SIGKILL at every step of every story, and has the reader look at what is left.

    python -m tests.flows.chaos_run FOLDER [--ways here served client] [--stories single ...] [--cases N] [--seed N]

``here`` is a broker in one process with its holder; ``served`` is ``hal serve`` with a client in another process, and
the server dies (with ``HAL_CHAOS_MONITORED=1`` its drivers are in processes of their own); ``client``: the client dies.
Without ``--cases`` every step is one; with it so many are drawn, spread over all kinds of steps. Processes are forked
from this one, which has imported everything, so that each really is one and dies as one, and is there in milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path

from tests.flows import chaos_hooks as hooks
from tests.flows.chaos_reader import look
from tests.flows.chaos_settle import settle
from tests.flows.chaos_stories import DIARY, STORIES, Holder

OPENING_STEPS = 60
"""A second death, while recovering, comes within so many steps."""
APART_SECONDS = 1_000_000.0
"""Cases use the same devices, one after the other: each begins so much later that its fences are higher."""


PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def fork(work):
    """Run work in a child, which dies with this process; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Case:
    """One story, one step, one death, and what comes after."""

    def __init__(self, folder: Path, number: int, way: str, story: str, step: int, trace: bool = False) -> None:
        self.folder = folder / f"case{number}"
        self.folder.mkdir()
        self.number, self.way, self.story, self.step, self.trace = number, way, story, step, trace
        hooks.travel(self.folder, number * APART_SECONDS)

    # --- processes

    def _local(self, steps: hooks.Steps, work, early: bool = False):
        """Open a broker in this process and do the work with it."""
        from hal.api.opening import open_broker

        hooks.install(steps, self.folder)
        self._shorten()
        if early:
            steps.begin()
        with open_broker(state=self.folder / "state") as broker:
            steps.begin()
            work(Holder(broker, self.folder))
            steps.counting = False
        self._tell(steps)

    def _tell(self, steps: hooks.Steps) -> None:
        if steps.trace:
            (self.folder / hooks.STEPS).write_text(json.dumps(steps.names))

    def _shorten(self) -> None:
        if self.story == "shortened":
            from hal.broker import ledger

            ledger.SNAPSHOT_EVERY, ledger.KEPT_RECORDS = -1_000_000, 5

    def _serve(self, steps: hooks.Steps, early: bool):
        """Start ``hal serve``; return its process id when it answers, or has died before."""
        ready, told = os.pipe()

        def work():
            os.close(ready)
            sys.stdout = os.fdopen(told, "w")
            sys.stderr = (self.folder / "serve.log").open("a")
            os.dup2(sys.stderr.fileno(), 2)
            from hal.cli.main import main

            hooks.install(steps, self.folder)
            hooks.install_server(steps)
            self._shorten()
            if not os.environ.get("HAL_CHAOS_MONITORED"):
                _serve_without_monitors()
            if early:
                steps.begin()
            code = main(["serve", "--state", str(self.folder / "state"), "--json"])
            self._tell(steps)
            return code

        child = fork(work)
        os.close(told)
        with os.fdopen(ready) as says:
            says.readline()
        return child

    def _client(self, work, steps: hooks.Steps | None = None):
        """Do the work as a client in a process of its own; code 9: nobody answers any more."""

        def asking():
            from hal.api import calls
            from hal.api.client import Client
            from hal.api.wire import Unreachable

            calls.ATTEMPTS = 1
            hooks.install_clock(self.folder)
            if steps is not None:
                hooks.install_client(steps)
                steps.begin()
            try:
                with Client(self.folder / "state/run/hal.sock", timeout_seconds=20) as client:
                    work(Holder(client, self.folder))
            except Unreachable:
                return 9
            if steps is not None:
                self._tell(steps)
            return 0

        return fork(asking)

    # --- a life and its end

    def live(self) -> bool:
        """Let the story be told until somebody dies; return whether somebody did."""
        tell = STORIES[self.story]
        steps = hooks.Steps(self.folder, self.step, self.trace)
        early = self.story == "opening"
        if self.way == "here":
            code = wait(fork(lambda: self._local(steps, tell, early)))
            assert code in (0, -signal.SIGKILL), f"the story failed by itself: {code}"
            return code != 0
        calm = hooks.Steps(self.folder, 0)
        self.server = self._serve(steps if self.way == "served" else calm, early)
        told = wait(self._client(tell, steps if self.way == "client" else None))
        if self.way == "client":
            assert told in (0, -signal.SIGKILL), f"the client failed by itself: {told}: {self._log()}"
            return told != 0
        assert told in (0, 9), f"the client failed by itself: {told}: {self._log()}"
        if told == 0:
            os.kill(self.server, signal.SIGTERM)
        code = wait(self.server)
        assert code in (0, -signal.SIGKILL), f"the server failed by itself: {code}: {self._log()}"
        assert code or not told, "the client was let down by a server that lives"
        return code != 0

    def _log(self) -> str:
        return (self.folder / "serve.log").read_text()[-3000:]

    def recover(self, rng: random.Random) -> None:
        """Look at what is left, start anew (sometimes in vain at first), and let all of it come to rest."""
        file = self.folder / "state/journal.sqlite"
        if self.way != "client":
            self._look(file)
            if rng.random() < 0.3:
                again = hooks.Steps(self.folder, rng.randint(1, OPENING_STEPS))
                code = wait(fork(lambda: self._local(again, self.settle, early=True)))
                assert code in (0, -signal.SIGKILL), "recovering failed"
                self._look(file)
        if self.way == "here":
            assert wait(fork(lambda: self._local(hooks.Steps(self.folder, 0), self.settle))) == 0, "settling failed"
        else:
            if self.way == "served":
                self.server = self._serve(hooks.Steps(self.folder, 0), False)
            self._settle_served()
            world = look(self.folder)
            if self.way == "client" and (world.live or world.waiting):
                # The last request of who died was decided when all else was over; who stops has answered them all.
                self.server = self._serve(hooks.Steps(self.folder, 0), False)
                self._settle_served()
        look(self.folder, quiet=True)

    def _settle_served(self) -> None:
        code = wait(self._client(self.settle))
        assert code == 0, f"settling failed: {code}: {self._log()}"
        os.kill(self.server, signal.SIGTERM)
        assert wait(self.server) == 0, self._log()

    def _look(self, file: Path) -> None:
        if not file.exists() or not file.stat().st_size:
            assert not self._has_diary()
            return
        try:
            look(self.folder)
        except Exception as error:
            begun = "no such table" in str(error) or "schema 0" in str(error)
            if not begun or self._has_diary():
                raise

    def _has_diary(self) -> bool:
        path = self.folder / DIARY
        return path.exists() and path.stat().st_size > 0

    def settle(self, holder: Holder) -> None:
        """Let all that was left come to rest."""
        settle(holder, asks_again=self.number % 2 == 1, late_request=self.way == "client")

    def clear(self) -> None:
        shutil.rmtree(self.folder)


def _serve_without_monitors() -> None:
    """Drivers in the server's own process: its start is ten times as fast, and its journal is the same."""
    from hal.api.server import start

    real = start.open_broker
    start.open_broker = lambda **words: real(**{**words, "monitored": False})


class Run:
    """All cases of a run, one after the other."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.number = folder, random.Random(seed), 0
        self.kinds: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.lives = 0

    def names(self, way: str, story: str) -> list[str]:
        """Tell a story to its end, and return the names of its steps."""
        self.number += 1
        case = Case(self.folder, self.number, way, story, 0, trace=True)
        assert not case.live()
        if way == "client":
            os.kill(case.server, signal.SIGTERM)
            assert wait(case.server) == 0
        found = json.loads((case.folder / hooks.STEPS).read_text())
        look(case.folder)
        case.clear()
        return found

    def case(self, way: str, story: str, step: int) -> None:
        self.number += 1
        case = Case(self.folder, self.number, way, story, step)
        try:
            self.lives += 1
            if case.live():
                self.deaths[way] += 1
                self.kinds[f"{way}: {(case.folder / hooks.DEATH).read_text()}"] += 1
                case.recover(self.rng)
            elif way == "client":
                os.kill(case.server, signal.SIGTERM)
                assert wait(case.server) == 0
        except BaseException as error:
            raise AssertionError(f"{way} {story} at step {step}, in {case.folder}: {error}") from error
        case.clear()


def choose(plan: list[tuple[str, str, int, str]], many: int, rng: random.Random):
    """Draw so many cases, first one of each kind of step, of each way and story in turn."""
    rng.shuffle(plan)
    seen: Counter[tuple[str, str]] = Counter()
    ranked = []
    for way, story, step, name in plan:
        ranked.append((seen[way, name], seen[way, story], len(ranked), (way, story, step)))
        seen[way, name] += 1
        seen[way, story] += 1
    return [case for *_, case in sorted(ranked)[:many]]


def warm() -> None:
    """Import and prepare all that every child needs."""
    from hal.api.opening import open_broker
    from hal.cli.options import parser

    parser("serve")
    for name in ("hal.api.client", "hal.api.server.start", "hal.cli.serving"):
        import_module(name)
    folder = Path(os.environ["HAL_CHAOS_FOLDER"])
    with open_broker(state=folder / "warm") as broker:
        divided = next(device for device in broker.state.devices.values() if device.name == "gpu7")
        driver = broker.drivers[divided.driver]
        driver.set_partitioning(divided.id, True)
        driver.reset(divided.id).wait()


def prepare(folder: Path) -> None:
    os.environ["HAL_CHAOS_FOLDER"] = str(folder)
    os.environ["HAL_MACHINE"] = f"dgx-h100?state={folder / 'machine'}"
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    warm()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ways", nargs="*", default=["here", "served", "client"])
    parser.add_argument("--stories", nargs="*", default=list(STORIES))
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--step", type=int)
    options = parser.parse_args()
    begun = time.monotonic()
    prepare(options.folder)
    run = Run(options.folder, options.seed)
    plan = []
    for way in options.ways:
        for story in options.stories:
            if way != "client" or story != "opening":
                names = run.names(way, story)
                plan += [(way, story, step, name) for step, name in enumerate(names, 1)]
    steps = Counter(f"{way}" for way, *_ in plan)
    if options.step is not None:
        cases = [(way, story, step) for way, story, step, _ in plan if step == options.step]
    elif options.cases is not None:
        cases = choose(plan, options.cases, run.rng)
    else:
        cases = [(way, story, step) for way, story, step, _ in plan]
    for way, story, step in cases:
        run.case(way, story, step)
    seconds = time.monotonic() - begun
    report = {
        "steps": dict(steps),
        "lives": run.lives,
        "deaths": dict(run.deaths),
        "kinds": len(run.kinds),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
