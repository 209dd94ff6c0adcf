"""The replay of a trace: what it counts is checked, and the broker is never wrong about what is free."""

from __future__ import annotations

import random

import pytest

from tests.trace.cluster import BestFit, Cluster, FirstFit
from tests.trace.openb import Machine, Task, inflated
from tests.trace.replay import SCHEDULERS, churn, fill, relive

MACHINES = [Machine(f"m{number}", gpus, "T4") for number, gpus in enumerate((2, 8, 1, 4, 8, 2, 4))]
_DRAW = random.Random(7)
_SHAPES = ((1, 1000), (1, 500), (1, 320), (1, 810), (2, 1000), (4, 1000), (8, 1000))
MIX = [
    Task(f"t{n}", *_DRAW.choice(_SHAPES), begin, begin + 1 + _DRAW.randrange(300))
    for n in range(120)
    for begin in (_DRAW.randrange(1000),)
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_gives_a_gpu_twice_or_refuses_what_fits(scheduler: str) -> None:
    arrivals = inflated(MIX, 29_000, 1.5, seed=3)
    filled = fill(MACHINES, arrivals, scheduler)
    assert filled.wrongly_refused == 0
    assert 0 < filled.first_refusal <= filled.allocated <= 1
    assert filled.refused > 0
    assert relive(MACHINES, MIX, scheduler).wrongly_refused == 0
    held = churn(MACHINES, MIX, scheduler, level=0.8, arrivals=120, seed=5)
    assert held.wrongly_refused == 0
    assert sum(held.asked.values()) == held.arrivals >= 60


def test_first_fit_and_best_fit_choose_what_their_names_say() -> None:
    cluster = Cluster(MACHINES)
    half, two = Task("h", 1, 500, 0, 0), Task("w", 2, 1000, 0, 0)
    assert FirstFit(cluster).place(half) == (0, (0,))
    assert BestFit(cluster).place(half) == (2, (0,))
    cluster.take(half, (0, (1,)))
    assert BestFit(cluster).place(half) == (2, (0,))
    assert FirstFit(cluster).place(two) == (1, (0, 1))
    assert BestFit(cluster).place(two) == (5, (0, 1))
    assert (cluster.allocated, cluster.in_use) == (500, 1)
    cluster.give_back(half, (0, (1,)))
    assert (cluster.allocated, cluster.in_use) == (0, 0)


def test_fragmentation_is_what_a_task_of_the_mix_cannot_use() -> None:
    cluster = Cluster([Machine("a", 2, "T4"), Machine("b", 1, "T4")])
    assert cluster.fragmented([Task("x", 1, 1000, 0, 0)]) == 0
    assert cluster.fragmented([Task("x", 2, 1000, 0, 0)]) == pytest.approx(1 / 3)
    cluster.take(Task("h", 1, 600, 0, 0), (0, (0,)))
    assert cluster.fragmented([Task("x", 1, 1000, 0, 0)]) == pytest.approx(400 / 2400)
    assert cluster.fragmented([Task("x", 1, 400, 0, 0)]) == 0


def test_a_cluster_that_is_given_away_twice_is_noticed() -> None:
    cluster = Cluster([Machine("a", 1, "T4")])
    cluster.take(Task("h", 1, 600, 0, 0), (0, (0,)))
    with pytest.raises(AssertionError, match="more than once"):
        cluster.take(Task("i", 1, 600, 0, 0), (0, (0,)))
