"""The Alibaba cluster trace of GPU machines of 2023: machines, tasks, and arrivals drawn from them.

The data is not ours and is not in this repository: it is looked for in ``../shared/data/openb`` from the project's
root, or in ``openb`` of the folder named by ``HAL_REFERENCE_DATA``.
"""

from __future__ import annotations

import csv
import os
import random
from dataclasses import dataclass
from pathlib import Path

WHOLE = 1000


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with ``gpus`` GPUs of one model."""

    name: str
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class Task:
    """``gpus`` whole GPUs of one machine, or with ``milli`` below 1000 that part of one; seconds of the trace."""

    name: str
    gpus: int
    milli: int
    begin: int
    end: int

    @property
    def demand(self) -> int:
        """Thousandths of a GPU, all together."""
        return self.gpus * self.milli

    @property
    def shape(self) -> tuple[int, int]:
        """What it asks for."""
        return self.gpus, self.milli


def folder() -> Path:
    """Return where the trace is, or would be."""
    named = os.environ.get("HAL_REFERENCE_DATA")
    return (Path(named) if named else Path(__file__).parents[3] / "shared" / "data") / "openb"


def machines() -> list[Machine]:
    """Return the machines with GPUs."""
    with (folder() / "openb_node_list_gpu_node.csv").open() as lines:
        return [Machine(row["sn"], int(row["gpu"]), row["model"]) for row in csv.DictReader(lines) if int(row["gpu"])]


def tasks() -> list[Task]:
    """Return the tasks that ask for GPUs, in the order of the trace."""
    with (folder() / "openb_pod_list_default.csv").open() as lines:
        return [
            Task(
                row["name"],
                int(row["num_gpu"]),
                int(row["gpu_milli"]),
                int(row["creation_time"]),
                int(float(row["deletion_time"] or 0)),
            )
            for row in csv.DictReader(lines)
            if int(row["num_gpu"])
        ]


def inflated(mix: list[Task], capacity: int, beyond: float, seed: int) -> list[Task]:
    """Draw tasks until they ask for ``beyond`` times the capacity, as the trace's authors do to fill a cluster."""
    draw = random.Random(seed)
    drawn: list[Task] = []
    asked = 0
    while asked < capacity * beyond:
        task = draw.choice(mix)
        drawn.append(Task(f"{seed}-{len(drawn)}", task.gpus, task.milli, task.begin, task.end))
        asked += task.demand
    return drawn
