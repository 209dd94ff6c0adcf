"""The lab's guest, recorded by ``hal-probe snapshot``: hardware that this machine lacks, as a real kernel shows it.

``python -m tests.lab --record`` renews the recordings; ``HAL_RECORD_GOLDEN=1`` what is expected to be said of them.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.host.driver import discover_host
from hal.model.device import Device
from hal.model.health import Health
from hal.model.kind import Kind
from tests.flows.conftest import Doors

GOLDEN = Path(__file__).parents[1] / "golden" / "lab"
RECORDINGS = sorted(GOLDEN.glob("*.tgz"))
LARGEST_BYTES = 200_000


def devices(name: str) -> list[Device]:
    found = discover_host(HostRoot(node="lab", root=str(GOLDEN / f"{name}.tgz")))
    assert not found.problems
    return list(found.devices)


def of_kind(found: list[Device], kind: Kind) -> dict[str, Device]:
    return {device.name: device for device in found if device.kind is kind}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("verb", ["tree", "list"])
def test_a_recorded_machine_is_shown_as_it_was(doors: Doors, recording: Path, verb: str):
    done = doors.run("hal-probe", verb, "--timeout", "30", environ={"HAL_SYSFS_ROOT": str(recording)})
    golden = recording.with_suffix(f".{verb}.txt")
    if os.environ.get("HAL_RECORD_GOLDEN"):
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_the_option_shows_what_the_variable_shows(doors: Doors, recording: Path):
    by_variable = doors.run("hal-probe", "--json", "--timeout", "30", environ={"HAL_SYSFS_ROOT": str(recording)})
    by_option = doors.run("hal-probe", "--json", "--timeout", "30", "--root", str(recording))
    once, again = (json.loads(done.stdout)["devices"] for done in (by_variable, by_option))
    for device in (*once, *again):
        for condition in device.get("conditions", ()):
            condition.pop("first_seen_at")
            condition.pop("last_seen_at")
    assert once == again


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_is_small_and_names_nobody(recording: Path):
    assert recording.stat().st_size < LARGEST_BYTES
    with tarfile.open(recording) as archive:
        files = [archive.extractfile(member) for member in archive if member.isreg()]
        texts = [file.read() for file in files if file is not None]
    assert not re.search(rb"LABNVME|4c41420000000001", b"\n".join(texts))


def test_the_guest_has_two_nodes_and_every_device_that_was_plugged_into_it():
    found = devices("whole")
    assert sorted(of_kind(found, Kind.CPU)) == ["cpu0", "cpu1"]
    assert sorted(of_kind(found, Kind.RNIC)) == ["rxe0", "rxe1"]
    regions = of_kind(found, Kind.PMEM)
    assert sorted(region.location.numa_node for region in regions.values()) == [0, 0, 1]
    assert all(device.health is Health.HEALTHY for device in found)


def test_an_nvme_behind_a_bridge_of_the_second_node_is_on_it():
    drives = of_kind(devices("whole"), Kind.NVME)
    far = [drive for drive in drives.values() if drive.location.numa_node == 1]
    assert [drive.location.pci_address for drive in far] == ["0000:41:00.0"]
    assert far[0].location.pci_path == ("pci0000:40", "0000:40:00.0")
    assert len(drives) == 2


def test_what_was_broken_in_the_guest_is_broken_in_the_recording():
    conditions = {(device.name, condition.type) for device in devices("broken") for condition in device.conditions}
    assert conditions >= {("rxe1", "LinkDown"), ("region1", "BadBlocks"), ("0000:40:00.0", "PciError")}
    assert len(of_kind(devices("broken"), Kind.NVME)) == 1
