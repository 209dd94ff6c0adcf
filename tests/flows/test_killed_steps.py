"""kill -9 at the steps of the whole story of claims: a sample by day, every step in the night.

All steps, by hand: ``python -m tests.flows.chaos_run FOLDER``; for a long time at random: ``chaos_random FOLDER SECONDS
SEED``. The folder lies in memory where that is possible: what a killed process wrote stays, and nobody pulls the plug.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.budget import PROFILE

ROOT = Path(__file__).parents[2]
NIGHT = PROFILE == "nightly"


@pytest.fixture
def folder(tmp_path):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="chaos-") as name:
        yield Path(name)


def chaos(module, *words, seconds=100, **environ):
    return subprocess.run(
        [sys.executable, "-m", f"tests.flows.{module}", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=3600 if NIGHT else seconds,
        check=False,
    )


@pytest.mark.parametrize(
    ("ways", "stories", "cases"),
    [
        (["here"], [], 16),
        (["served"], ["single", "preempting"], 6),
        (["client"], ["waiting"], 5),
    ],
    ids=["here", "served", "client"],
)
def test_whatever_dies_at_whatever_step_nothing_is_doubled_lost_or_leaked(folder, ways, stories, cases):
    some = [] if NIGHT else ["--cases", cases, *(["--stories", *stories] if stories else [])]
    done = chaos("chaos_run", folder, "--ways", *ways, *some)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    if not NIGHT:
        assert told["lives"] == cases
    # Who waits asks more or fewer times, so that a late step may not come in every life.
    assert sum(told["deaths"].values()) >= min(0.9 * told["lives"], told["lives"] - 2), "so many times somebody died"
    assert told["kinds"] >= 2


def test_a_server_killed_at_any_time_under_several_clients_loses_doubles_and_leaks_nothing(folder):
    seconds = float(os.environ.get("HAL_CHAOS_SECONDS") or (300 if NIGHT else 3))
    done = chaos("chaos_random", folder, seconds, 1)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["killed"] >= 2


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("late-write", r"is lost|and lives|not in the journal|and the journal gives it to"),
        ("free-unshut", r"the journal gives it to|is prepared for|prepared at rest"),
    ],
)
def test_a_broker_that_is_wrong_is_found_out(folder, mistake, found):
    words = (folder, "--ways", "here", "--stories", "single", "--cases", 12)
    done = chaos("chaos_run", *words, HAL_CHAOS_PLANT=mistake)
    assert done.returncode != 0, "nothing was found"
    assert re.search(found, done.stderr), done.stderr[-2000:]


def test_the_reader_knows_nothing_of_hal():
    for path in (ROOT / "tests/flows/chaos_reader.py", ROOT / "tests/unit/broker/checker.py"):
        assert not re.search(r"^\s*(from|import) hal", path.read_text(), re.MULTILINE)
