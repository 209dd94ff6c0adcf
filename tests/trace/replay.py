"""Replays: arrivals until the cluster is full, and the trace as it happened; what is counted on the way."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.trace.broker import Broker
from tests.trace.cluster import BestFit, Cluster, FirstFit, Place, Scheduler
from tests.trace.openb import Machine, Task

POINTS = 130
SCHEDULERS: dict[str, Callable[[Sequence[Machine], Cluster], Scheduler]] = {
    "first fit": lambda machines, cluster: FirstFit(cluster),
    "best fit": lambda machines, cluster: BestFit(cluster),
    "hal, packing": lambda machines, cluster: Broker(machines, "pack"),
    "hal, its first fit": lambda machines, cluster: Broker(machines, "first-fit"),
    "hal, its best fit": lambda machines, cluster: Broker(machines, "best-fit"),
}
"""By name. The first two are written for this comparison and share nothing with the broker."""


@dataclass
class Filling:
    """How a cluster filled up. Parts are of its capacity; ``curve`` has (asked, allocated, machines in use)."""

    first_refusal: float = 1.0
    refused: int = 0
    refused_until_full: int = 0
    wrongly_refused: int = 0
    fragmented: float = 0.0
    allocated: float = 0.0
    mean_machines: float = 0.0
    decisions: int = 0
    seconds: float = 0.0
    curve: list[tuple[float, float, float]] = field(default_factory=list)


def fill(machines: Sequence[Machine], arrivals: Sequence[Task], scheduler: str) -> Filling:
    """Let tasks arrive and stay, until all have; every refusal is checked against what is really free."""
    cluster = Cluster(machines)
    chooser = SCHEDULERS[scheduler](machines, cluster)
    filling = Filling(decisions=len(arrivals))
    asked, until_full, machine_sum, point = 0, 0, 0, 0
    for task in arrivals:
        before = time.perf_counter()
        place = chooser.place(task)
        filling.seconds += time.perf_counter() - before
        asked += task.demand
        if place is not None:
            cluster.take(task, place)
        else:
            if not filling.refused:
                filling.first_refusal = cluster.allocated / cluster.capacity
            filling.refused += 1
            filling.wrongly_refused += cluster.has_room(task)
        if asked <= cluster.capacity:
            until_full += 1
            machine_sum += cluster.in_use
            filling.refused_until_full = filling.refused
        elif not filling.fragmented:
            filling.fragmented = cluster.fragmented(arrivals)
        if asked * 100 >= point * cluster.capacity:
            part = cluster.capacity
            filling.curve.append((asked / part, cluster.allocated / part, cluster.in_use / len(machines)))
            point = int(asked * 100 / cluster.capacity) + 1
    filling.allocated = cluster.allocated / cluster.capacity
    filling.mean_machines = machine_sum / max(until_full, 1)
    return filling


@dataclass
class History:
    """The trace as it happened: refusals, and machines in use on average over time and at the most."""

    refused: int = 0
    wrongly_refused: int = 0
    mean_machines: float = 0.0
    most_machines: int = 0
    most_allocated: float = 0.0


def relive(machines: Sequence[Machine], tasks: Sequence[Task], scheduler: str) -> History:
    """Let tasks come and go at the trace's own times; nobody waits, a refused task is gone."""
    cluster = Cluster(machines)
    chooser = SCHEDULERS[scheduler](machines, cluster)
    history = History()
    ends: list[tuple[int, int, Task, Place]] = []
    begun = last = min(task.begin for task in tasks)
    area = 0.0

    def until(now: int) -> None:
        nonlocal last, area
        area += cluster.in_use * (now - last)
        last = now
        if isinstance(chooser, Broker):
            chooser.clock.seconds = float(now)

    for number, task in enumerate(sorted(tasks, key=lambda task: (task.begin, task.name))):
        while ends and ends[0][0] <= task.begin:
            end, _, over, where = heapq.heappop(ends)
            until(end)
            chooser.end(over)
            cluster.give_back(over, where)
        until(task.begin)
        place = chooser.place(task)
        if place is None:
            history.refused += 1
            history.wrongly_refused += cluster.has_room(task)
            continue
        cluster.take(task, place)
        heapq.heappush(ends, (max(task.end, task.begin), number, task, place))
        history.most_machines = max(history.most_machines, cluster.in_use)
        history.most_allocated = max(history.most_allocated, cluster.allocated / cluster.capacity)
    history.mean_machines = area / max(last - begun, 1)
    return history


@dataclass
class Churn:
    """A cluster held at a level by arrivals and departures. ``refused`` counts by the number of GPUs asked for."""

    arrivals: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    wrongly_refused: int = 0
    mean_machines: float = 0.0
    seconds: float = 0.0


def churn(
    machines: Sequence[Machine], mix: Sequence[Task], scheduler: str, *, level: float, arrivals: int, seed: int
) -> Churn:
    """Fill a cluster to a level, then let tasks drawn from the mix come, and random ones go, as it stays there.

    Who arrives and who leaves is drawn alike for every scheduler, as far as they hold the same tasks. The first half
    of the arrivals is not counted: by then, of those that filled the cluster, most have left.
    """
    cluster = Cluster(machines)
    chooser = SCHEDULERS[scheduler](machines, cluster)
    arriving, leaving = random.Random(seed), random.Random(seed + 1)
    running: list[tuple[Task, Place]] = []
    found = Churn()
    target = level * cluster.capacity
    counted = 0
    number = 0
    while counted < arrivals:
        drawn = arriving.choice(mix)
        task = Task(f"{seed}-{number}", drawn.gpus, drawn.milli, 0, 0)
        number += 1
        while running and cluster.allocated + task.demand > target:
            position = int(leaving.random() * len(running))
            running[position], running[-1] = running[-1], running[position]
            over, where = running.pop()
            chooser.end(over)
            cluster.give_back(over, where)
            if not found.arrivals:
                found.arrivals = 1  # the cluster was full for the first time
        before = time.perf_counter()
        place = chooser.place(task)
        found.seconds += time.perf_counter() - before
        if place is not None:
            cluster.take(task, place)
            running.append((task, place))
        else:
            found.wrongly_refused += cluster.has_room(task)
        if found.arrivals:
            counted += 1
        if counted > arrivals // 2:
            found.asked[task.gpus] = found.asked.get(task.gpus, 0) + 1
            found.refused[task.gpus] = found.refused.get(task.gpus, 0) + (place is None)
            found.mean_machines += cluster.in_use
    found.arrivals = sum(found.asked.values())
    found.mean_machines /= max(found.arrivals, 1)
    return found
