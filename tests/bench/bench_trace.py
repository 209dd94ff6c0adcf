"""The Alibaba trace replayed through the broker's core, packing against first fit and best fit.

``python -m tests.bench.bench_trace FILE.json`` writes what ``python -m tests.trace.plot`` draws.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.rows import Row
from tests.trace import openb
from tests.trace.replay import Churn, Filling, churn, fill, relive

SEEDS = (1, 2, 3)
NAMES = ("first fit", "best fit", "hal, packing")
LEVELS = (0.84, 0.88, 0.90, 0.92, 0.94)
EVERY = 4
"""The cluster held at a level is every fourth machine."""
CHURNED = 8000
_LOG = logging.getLogger(__name__)


def run() -> Iterator[Row]:
    if not openb.folder().is_dir():
        _LOG.warning("no trace in %s; HAL_REFERENCE_DATA can name another folder", openb.folder())
        return
    filled = {name: [_filling(name, seed) for seed in SEEDS] for name in NAMES}
    ours, first, best = filled["hal, packing"], filled["first fit"], filled["best fit"]
    about = (
        f"{len(openb.machines()):,} machines with GPUs, arrivals drawn until 130 % are asked for, {len(SEEDS)} seeds; "
        "GPUs alone: the machines' CPUs and memory are no devices of the broker"
    )
    for what, read, unit in (
        ("GPUs allocated at the first refusal", lambda f: 100 * f.first_refusal, " %"),
        ("GPUs allocated at 130 % asked", lambda f: 100 * f.allocated, " %"),
        ("tasks refused until 100 % were asked", lambda f: f.refused_until_full, ""),
        ("free GPUs that the mix cannot use, at 100 % asked", lambda f: 100 * f.fragmented, " %"),
        ("machines in use on average until 100 %", lambda f: f.mean_machines, ""),
    ):
        mean = [statistics.mean(read(filling) for filling in fillings) for fillings in (ours, first, best)]
        yield Row(
            name=f"trace, filling up: {what}",
            measured=f"{mean[0]:.2f}{unit}",
            peer=f"first fit {mean[1]:.2f}{unit}, best fit {mean[2]:.2f}{unit}",
            ratio=mean[0] / mean[1],
            goal="none",
            met=True,
            includes=about,
        )
    wrong = sum(filling.wrongly_refused for filling in ours)
    yield Row(
        name="trace, filling up: refusals although there was room",
        measured=str(wrong),
        peer="an independent count",
        ratio=None,
        goal="none at all",
        met=wrong == 0,
        includes=f"{sum(filling.refused for filling in ours):,} refusals checked",
    )
    yield from _churned()
    yield from _relived()


def _filling(name: str, seed: int) -> Filling:
    machines, mix = openb.machines(), openb.tasks()
    capacity = sum(machine.gpus for machine in machines) * openb.WHOLE
    return fill(machines, openb.inflated(mix, capacity, 1.3, seed), name)


def _churning(name: str, level: float) -> Churn:
    return churn(openb.machines()[::EVERY], openb.tasks(), name, level=level, arrivals=CHURNED, seed=1)


def _churned() -> Iterator[Row]:
    for level in (0.88, 0.92, 0.94):
        found = {name: _churning(name, level) for name in NAMES}
        refused = {name: sum(of.refused.get(gpus, 0) for gpus in (4, 8)) for name, of in found.items()}
        asked = sum(found["hal, packing"].asked.get(gpus, 0) for gpus in (4, 8))
        ours, first = refused["hal, packing"], refused["first fit"]
        yield Row(
            name=f"trace, held {level:.0%} full: tasks of 4 and 8 GPUs refused",
            measured=f"{ours} of {asked}",
            peer=f"first fit {first}, best fit {refused['best fit']}",
            ratio=ours / first if first else None,
            goal="fewer than first fit, or none",
            met=ours == 0 or ours < first,
            includes=f"every {EVERY}th machine; {CHURNED // 2:,} arrivals counted, as many before them not",
        )


def _relived() -> Iterator[Row]:
    found = {name: relive(openb.machines(), openb.tasks(), name) for name in NAMES}
    ours = found["hal, packing"]
    yield Row(
        name="trace, as it happened: machines in use on average over time",
        measured=f"{ours.mean_machines:.2f}",
        peer=f"first fit {found['first fit'].mean_machines:.2f}, best fit {found['best fit'].mean_machines:.2f}",
        ratio=ours.mean_machines / found["first fit"].mean_machines,
        goal="none",
        met=True,
        includes=f"{len(openb.tasks()):,} tasks at their own times use at most {ours.most_allocated:.1%} of the GPUs: "
        "nothing is scarce, nobody is refused",
    )


def gather() -> dict[str, Any]:
    """Return what the plot shows."""
    curves = {name: _filling(name, SEEDS[0]).curve for name in NAMES}
    levels = {name: [dataclasses.asdict(_churning(name, level)) for level in LEVELS] for name in NAMES}
    return {"curves": curves, "levels": LEVELS, "churn": levels}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(gather()))
