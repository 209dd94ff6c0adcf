"""The other libucp: a process holds one, so the checks that matter most run again in a process that holds the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import NotReady
from hal_rdma.ucx.library import choose_library, load_library

KIT = Path(__file__).with_name("test_rdma_ucx_conformance.py")
CHECKS = "what_is_put or fetch_add_gives or compare_and_swap or key_is_dead or killed_peer or longer_than or in_order"


def test_the_kit_passes_on_the_systems_library_too():
    environ = {**os.environ, "HAL_RDMA_UCX": "system"}
    program = [sys.executable, "-m", "pytest", str(KIT), "-q", "-k", CHECKS, "-p", "no:cacheprovider"]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_two_libraries_do_not_fit_into_one_process():
    loaded = load_library(choose_library({}, software=True))
    other = {"wheel": "system", "system": "wheel"}[loaded.origin]
    with pytest.raises(NotReady, match="two do not fit"):
        load_library(other)
