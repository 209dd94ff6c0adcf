"""The fixtures that anyone's tests get, used as a stranger would."""

from __future__ import annotations

import pytest

from hal.errors import ClaimRefused, DeviceGone, LeaseEnded, UsageError


def test_a_machine_a_broker_and_a_fault(hal_machine, hal_broker, hal_fault):
    lease = hal_broker.claim("gpu")
    gpu = lease.open()
    assert gpu.xp.sum(gpu.xp.arange(10)) == 45
    hal_fault(lease.devices[0].id, "xid", code=79)
    with pytest.raises(DeviceGone):
        gpu.telemetry()
    lease.release()
    with pytest.raises(ClaimRefused):
        hal_broker.claim("gpu", where=f"id == '{lease.devices[0].id}'")
    hal_fault.heal()
    with pytest.raises(ClaimRefused, match="latched"):
        hal_broker.claim("gpu", where=f"id == '{lease.devices[0].id}'")
    assert hal_broker.repair(lease.devices[0].id).unfit is None
    assert hal_broker.claim("gpu", where=f"id == '{lease.devices[0].id}'").devices


def test_time_is_virtual_so_a_lease_can_expire_at_once(hal_machine, hal_broker):
    lease = hal_broker.claim("gpu", ttl_seconds=60)
    handle = lease.open()
    hal_machine.clock.advance(61)
    assert hal_broker.list() == ()
    with pytest.raises(LeaseEnded):
        handle.telemetry()


@pytest.mark.hal_machine("upmem-server", seed=3)
def test_the_marker_chooses_the_machine(hal_machine, hal_broker):
    assert hal_broker.status().devices["upmem"]["all"] == 40
    assert hal_machine.graph.seed == 3


def test_every_test_has_a_machine_of_its_own(hal_machine, hal_survey):
    assert not [condition for device in hal_survey.inventory for condition in device.conditions]


def test_a_child_process_sees_the_same_machine(hal_machine, hal_fault):
    import json
    import subprocess
    import sys
    from pathlib import Path

    hal_fault("gpu3", "ecc-uncorrectable")
    probe = Path(sys.executable).with_name("hal-probe")
    done = subprocess.run([probe, "--format", "json", "--kind", "gpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    sick = [device["name"] for device in json.loads(done.stdout)["devices"] if device.get("conditions")]
    assert sick == ["gpu3"]


def test_an_unknown_fault_is_refused_with_those_that_there_are(hal_fault):
    with pytest.raises(UsageError, match="ecc-uncorrectable"):
        hal_fault("gpu0", "flue")


def test_a_misspelt_word_of_the_marker_is_refused(tmp_path):
    import subprocess
    import sys

    (tmp_path / "test_marker.py").write_text(
        "import pytest\n"
        "@pytest.mark.hal_machine('dgx-h100', sead=1)\n"
        "def test_word(hal_machine): ...\n"
        "@pytest.mark.hal_machine('dgx-h100', 1)\n"
        "def test_argument(hal_machine): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 errors" in done.stdout
    assert "the marker hal_machine has no 'sead' (try: profile, seed, clock)" in done.stdout
