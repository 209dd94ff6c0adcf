"""Several clients, and a server that is killed again and again at any time: ``chaos_random FOLDER SECONDS SEED``.

Each client claims, shares, waits, pushes out, renews, resizes and releases by chance, and asks again under the same id
when nobody answers. After each death, and at the end, the reader compares journal, devices and diaries.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.flows import chaos_hooks as hooks
from tests.flows.chaos_reader import look
from tests.flows.chaos_run import Case, fork, prepare, wait
from tests.flows.chaos_stories import Holder

CLIENTS = 3


def insist(verb, stop_at):
    """Ask until somebody answers, as whoever wants to know would."""
    from hal.api.wire import Unreachable

    while True:
        try:
            return verb()
        except Unreachable:
            if time.monotonic() > stop_at + 60:
                raise
            time.sleep(0.02)


def live(case: Case, number: int, seed: int, stop_at: float) -> None:
    from hal.api.ask import make_claim
    from hal.api.client import Client
    from hal.api.wire import Unreachable
    from hal.errors import HalError

    rng = random.Random(f"{seed} {number}")
    hooks.install_clock(case.folder)
    with Client(case.folder / "state/run/hal.sock", timeout_seconds=30) as client:
        holder = Holder(client, case.folder)
        mine: list[str] = []
        turn = 0
        while time.monotonic() < stop_at:
            turn += 1
            name = f"c{number}-{turn}"
            fate = rng.random()
            try:
                if fate < 0.6 or not mine:
                    words = rng.choice(
                        [
                            {"count": rng.randint(1, 3)},
                            {"asked": "rnic", "fraction": 0.3},
                            {"asked": "rnic", "count": 2},
                            {"count": 1, "max_replicas": 3},
                            {"count": 5, "wait": True, "wait_seconds": 200.0},
                            {"count": 2, "priority": -1, "grace_seconds": 1.0},
                            {"count": 4, "preempt": "lower", "wait_seconds": 200.0},
                            {"profile": "1g.10gb"},
                        ]
                    )
                    words = dict(words)
                    asked = words.pop("asked", "gpu")
                    if words.get("priority") == -1 or "wait_seconds" in words:
                        holder.diary.say("ending", name)  # by others, or by time
                    if "max_replicas" in words:
                        holder.diary.say("elastic", name)
                    claim = make_claim(asked, id=name, ttl_seconds=500.0, **words)
                    (answer,) = insist(lambda claim=claim: holder.submit(claim), stop_at)
                    if type(answer).__name__ != "Refused":
                        mine.append(name)
                elif fate < 0.7:
                    lease = rng.choice(mine)
                    insist(lambda lease=lease: client.renew(lease), stop_at)
                elif fate < 0.75:
                    lease = rng.choice(mine)
                    holder.diary.say("changing", lease)
                    insist(lambda lease=lease: client.resize(lease, rng.randint(1, 3)), stop_at)
                else:
                    lease = mine.pop(rng.randrange(len(mine)))
                    holder.diary.say("ending", lease)
                    insist(lambda lease=lease: client.release(lease), stop_at)
                    holder.diary.say("ended", lease)
            except Unreachable:
                raise
            except HalError:
                pass  # it waits, was pushed out, or is not elastic: all of that is an answer


def main(folder: Path, seconds: float, seed: int) -> None:
    rng = random.Random(seed)
    prepare(folder)
    case = Case(folder, 1, "served", "random", 0)
    stop_at = time.monotonic() + seconds
    case.server = case._serve(hooks.Steps(case.folder, 0), False)
    clients = [fork(lambda number=number: live(case, number, seed, stop_at)) for number in range(CLIENTS)]
    killed = 0
    while time.monotonic() < stop_at:
        time.sleep(rng.uniform(0.02, 0.7))
        os.kill(case.server, signal.SIGKILL)
        wait(case.server)
        killed += 1
        look(case.folder)
        case.server = case._serve(hooks.Steps(case.folder, 0), False)
    for client in clients:
        assert wait(client) == 0, case._log()
    os.kill(case.server, signal.SIGKILL)
    wait(case.server)
    world = look(case.folder)
    case.recover(rng)
    print(json.dumps({"killed": killed + 1, "revisions": world.revision, "claims": len(world.was_given)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
