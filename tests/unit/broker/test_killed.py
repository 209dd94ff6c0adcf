"""kill -9 of a real broker process: at the steps of a claim's whole life, while recovering, and at any time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    """In memory where that is possible: what a killed process wrote stays, and nobody pulls the plug here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.mark.parametrize(("how", "least"), [("steps", 25), ("times", 20)])
def test_a_killed_broker_loses_no_acknowledged_lease_and_doubles_no_device(folder, how, least):
    words = [sys.executable, "-m", "tests.unit.broker.victim", str(folder), how, "1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= least, "so many times it died"


def test_the_checker_of_the_journal_knows_nothing_of_hal():
    text = (Path(__file__).parent / "checker.py").read_text()
    assert "import hal" not in text
    assert "from hal" not in text
