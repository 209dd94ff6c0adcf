"""What is free on each GPU of a cluster, kept apart from every scheduler, and schedulers that know nothing of hal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from tests.trace.openb import WHOLE, Machine, Task

Place = tuple[int, tuple[int, ...]]
"""A machine's number, and the numbers of GPUs on it."""


class Scheduler(Protocol):
    """Finds a place for a task, or none; and is told when one ends."""

    def place(self, task: Task) -> Place | None: ...

    def end(self, task: Task) -> None: ...


class Cluster:
    """Thousandths free of each GPU of each machine. Giving away what is not there is an error."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.free = [[WHOLE] * machine.gpus for machine in machines]
        self.capacity = sum(machine.gpus for machine in machines) * WHOLE
        self.allocated = 0
        self.in_use = 0

    def take(self, task: Task, place: Place) -> None:
        """Give GPUs to a task."""
        number, gpus = place
        free = self.free[number]
        if len(set(gpus)) != task.gpus:
            raise AssertionError(f"{task} got {gpus}")
        before = all(left == WHOLE for left in free)
        for gpu in gpus:
            free[gpu] -= task.milli
            if free[gpu] < 0:
                raise AssertionError(f"GPU {gpu} of machine {number} is given away more than once")
        self.allocated += task.demand
        self.in_use += before

    def give_back(self, task: Task, place: Place) -> None:
        """Take them back."""
        number, gpus = place
        free = self.free[number]
        for gpu in gpus:
            free[gpu] += task.milli
        self.allocated -= task.demand
        self.in_use -= all(left == WHOLE for left in free)

    def fits(self, number: int, task: Task) -> bool:
        """True if a machine has what a task asks for."""
        return sum(left >= task.milli for left in self.free[number]) >= task.gpus

    def has_room(self, task: Task) -> bool:
        """True if any machine has."""
        return any(self.fits(number, task) for number in range(len(self.free)))

    def fragmented(self, mix: Sequence[Task]) -> float:
        """Return the part of what is free that a task of the mix can, on average, not use.

        The measure of the trace's authors (fragmentation gradient descent, ATC 2023): for a task, all that is free on a
        machine where it does not fit, and elsewhere what is free on GPUs too full for it.
        """
        shapes = Counter(task.shape for task in mix)
        free = sum(map(sum, self.free))
        lost = 0.0
        for (gpus, milli), count in shapes.items():
            for machine in self.free:
                good = [left for left in machine if left >= milli]
                lost += count * (sum(machine) - (sum(good) if len(good) >= gpus else 0))
        return lost / len(mix) / free if free else 0.0


class FirstFit:
    """The first machine with room, on it the first GPUs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def place(self, task: Task) -> Place | None:
        """Return the first place."""
        for number, free in enumerate(self.cluster.free):
            if self.cluster.fits(number, task):
                good = [gpu for gpu, left in enumerate(free) if left >= task.milli]
                return number, tuple(good[: task.gpus])
        return None

    def end(self, task: Task) -> None:
        """Nothing is remembered."""


class BestFit:
    """The machine with the least left afterwards, on it the fullest GPUs with room."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def place(self, task: Task) -> Place | None:
        """Return the tightest place."""
        free = self.cluster.free
        fitting = [number for number in range(len(free)) if self.cluster.fits(number, task)]
        if not fitting:
            return None
        number = min(fitting, key=lambda machine: (sum(free[machine]), machine))
        good = [gpu for gpu, left in enumerate(free[number]) if left >= task.milli]
        return number, tuple(sorted(good, key=lambda gpu: (free[number][gpu], gpu))[: task.gpus])

    def end(self, task: Task) -> None:
        """Nothing is remembered."""
