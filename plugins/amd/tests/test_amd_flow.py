"""The core, as it is, finds, leases and hands on a GPU of a second vendor: nothing in it names the plugin's driver."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from hal_amd.driver import ROOT
from plugins.amd.tests.amd_trees import AmdMachine

SOURCE = Path(__file__).parents[1] / "src"
CLAIM = """
import json, sys
from pathlib import Path
from hal.agent.survey import survey
from hal.api.local import LocalBroker
from hal.broker.journal.memory import MemoryStore

root, runtime = sys.argv[1:]
found = survey(root=root, deadline_seconds=20.0)
look = lambda: survey(root=root, deadline_seconds=20.0).inventory.devices
with LocalBroker(found.drivers, MemoryStore(), Path(runtime), observe=look) as broker:
    with broker.claim("gpu", where="vendor == 'AMD' and architecture == 'CDNA 3'") as lease:
        with lease.open() as gpu:
            told = gpu.telemetry()["power_watts"].value
        print(json.dumps({"device": lease.devices[0].id, "watts": told, "environ": lease.env()}))
"""


def run(machine, tmp_path, *command):
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    if not any(True for _ in importlib.metadata.distributions(name="rackhal-amd")):
        info = site / "rackhal_amd-0.1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rackhal-amd\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text("[hal.plugins]\namd = hal_amd\n")
    runtime = tmp_path / "run"
    runtime.mkdir(exist_ok=True)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{site}:{SOURCE}",
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HAL_SYSFS_ROOT": machine.root,
        ROOT: machine.root,
    }
    done = subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_probe_shows_the_gpus(tmp_path):
    machine = AmdMachine(tmp_path)
    found = json.loads(run(machine, tmp_path, "-m", "hal.cli.probe", "list", "--json"))
    gpus = [device for device in found["devices"] if device["kind"] == "gpu"]
    assert [(gpu["id"], gpu["driver"]) for gpu in gpus] == [(machine.gpu(n), "amd") for n in range(2)]


def test_a_claim_gets_one_and_rocm_is_told_which(tmp_path):
    machine = AmdMachine(tmp_path)
    machine.fall_off(0)
    told = json.loads(run(machine, tmp_path, "-c", CLAIM, machine.root, str(tmp_path / "broker")))
    assert told["device"] == machine.gpu(1)
    assert told["watts"] == 350.0
    assert told["environ"]["ROCR_VISIBLE_DEVICES"] == machine.gpu(1)
    assert told["environ"]["CUDA_VISIBLE_DEVICES"] == ""
