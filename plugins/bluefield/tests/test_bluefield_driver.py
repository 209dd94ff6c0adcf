"""What is special to the cards: ways to them that are missing, refuse, lie or hang, and what the driver says then."""

from __future__ import annotations

import getpass
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from hal.drivers.contract import Cause, Context, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import (
    AccessDenied,
    DeadlineExceeded,
    DeviceGone,
    HalError,
    HardwareFault,
    Unsupported,
    UsageError,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import BootState, DpuMode, ResetLevel
from hal.model.attributes import Absence
from hal.model.health import Health, worst
from hal_bluefield import boot, hal_drivers
from hal_bluefield.config import CardConfig, belongs, load_config
from hal_bluefield.devlink import read_devlink
from hal_bluefield.driver import BlueFieldDriver
from hal_bluefield.handle import BlueField
from plugins.bluefield.tests.standin import StandIn
from plugins.bluefield.tests.ways import make, seen, soon

# Without a card, and with one that is only a recording


def test_a_machine_without_a_card_gets_one_line() -> None:
    (factory,) = hal_drivers()
    readiness = factory.create(Context(hosts=(HostRoot(node="n", root="/nonexistent"),), environ={})).readiness()
    assert readiness.cause is Cause.NO_HARDWARE
    assert "\n" not in readiness.detail + readiness.remedy


def test_a_recorded_card_is_shown_and_left_alone(card: StandIn) -> None:
    driver = make(card, root="/somewhere/else")
    device = seen(driver, card)
    assert not device.allocatable
    assert device.attributes["cores"].absent is Absence.NOT_REPORTED
    for verb in (driver.prepare, driver.unprepare):
        with pytest.raises(Unsupported, match="recorded tree"):
            verb(card.id, Grant(lease="l", fence=1), soon())
    with pytest.raises(Unsupported, match="recorded tree"):
        driver.open(card.id, OpenGuard(), soon())
    assert card.requests == [], "its BMC was not asked"


def test_both_cards_of_the_machine_are_found_with_their_nics(card: StandIn, driver: BlueFieldDriver) -> None:
    devices = driver.discover(soon()).devices
    assert len(devices) == 2
    assert {len(device.value("rnics") or ()) for device in devices} == {2}  # type: ignore[arg-type]
    mine = seen(driver, card)
    assert (mine.value("mode"), mine.value("boot_state"), mine.value("cores")) == ("dpu", "ready", 16)
    assert mine.value("memory_bytes") == 32 << 30
    assert mine.value("max_vfs") == 16
    assert worst(mine.conditions) is Health.HEALTHY


# The configuration


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[card.A]\nbcm = 'x'\n", "bcm"),
        ("[card.A\n", "bluefield.toml"),
        ("[card.A]\nbmc = 'http://10.0.0.1'\n", "https"),
        ("[card.A]\nshell = 'telnet'\n", "telnet"),
        ("[card.A]\nssh_port = 'x'\n", "ssh_port"),
    ],
)
def test_a_wrong_configuration_is_told_with_its_file(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bluefield.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config({"HAL_BLUEFIELD_CONFIG": str(path)})
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)
    readiness = BlueFieldDriver([], {"HAL_BLUEFIELD_CONFIG": str(path)}).readiness()
    assert readiness.cause is Cause.BROKEN


def test_no_configuration_is_no_error_but_a_missing_one_is(tmp_path: Path) -> None:
    assert load_config({}) == {}
    with pytest.raises(UsageError, match="not there"):
        load_config({"HAL_BLUEFIELD_CONFIG": str(tmp_path / "none")})


def test_a_card_without_configuration_is_shown_and_its_own_side_is_absent(card: StandIn) -> None:
    path = card.folder / "empty.toml"
    path.write_text(f'[card.{card.serial}]\nroot = "{card.root}"\n')
    environ = {**card.configure(), "HAL_BLUEFIELD_CONFIG": str(path)}
    driver = BlueFieldDriver([card.host], environ)
    card.closing.append(driver.close)
    assert seen(driver, card).value("mode") == "dpu", "by rshim"
    with driver.open(card.id, OpenGuard(), soon()) as dpu:
        assert dpu.telemetry()["temperature_celsius"].absent is Absence.UNSUPPORTED
        for verb in (lambda: dpu.set_mode(DpuMode.NIC), dpu.services, dpu.flows, dpu.power_cycle):
            with pytest.raises(Unsupported, match=r"bluefield\.toml"):
                verb()


def test_a_tree_is_not_the_machine() -> None:
    assert belongs(CardConfig(), None)
    assert not belongs(CardConfig(), "/tmp")
    assert not belongs(CardConfig(root="/tmp"), None)


# Ways that are missing, refuse, lie or hang


def test_a_bmc_that_cannot_be_reached_costs_what_only_it_knows(card: StandIn) -> None:
    driver = make(card, bmc="https://localhost:1")
    device = seen(driver, card)
    assert device.value("mode") == "dpu", "rshim tells"
    assert device.attributes["boot_state"].absent is Absence.DEVICE_LOST
    assert "BmcUnreachable" in [condition.type for condition in device.conditions]
    with driver.open(card.id, OpenGuard(), soon()) as dpu:
        assert dpu.telemetry()["uptime_seconds"].known, "its cores answer"
        with pytest.raises(DeviceGone, match="BMC cannot be reached"):
            dpu.boot()


def test_a_bmc_whose_certificate_nobody_vouches_for_is_not_talked_to(card: StandIn) -> None:
    driver = make(card, bmc_ca=None)
    with driver.open(card.id, OpenGuard(), soon()) as dpu, pytest.raises(DeviceGone, match="CERTIFICATE_VERIFY_FAILED"):
        dpu.boot()
    assert card.requests == []


def test_a_wrong_password_is_told_as_such(card: StandIn) -> None:
    (card.folder / "wrong").write_text("wrong")
    driver = make(card, bmc_password_file=str(card.folder / "wrong"))
    with driver.open(card.id, OpenGuard(), soon()) as dpu, pytest.raises(AccessDenied, match="refuses root"):
        dpu.boot()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b"<html>"), HardwareFault),
        ((200, ["a list"]), HardwareFault),
        ((500, {"error": {"@Message.ExtendedInfo": [{"Message": "flux capacitor"}]}}), HardwareFault),
        ((200, {"BootProgress": {"OemLastState": "Dancing"}}), HardwareFault),
        ((404, None), Unsupported),
    ],
)
def test_a_bmc_that_talks_nonsense_is_an_error_for_people(
    card: StandIn, dpu: BlueField, answer: tuple[int, object], error: type[HalError]
) -> None:
    card.broken = answer
    with pytest.raises(error) as caught:
        dpu.boot()
    assert caught.value.device == card.id
    assert caught.value.hint


def test_cores_that_do_not_answer_leave_the_rest(card: StandIn) -> None:
    driver = make(card, ssh_port=1)
    assert worst(seen(driver, card).conditions) is Health.HEALTHY
    with driver.open(card.id, OpenGuard(), soon()) as dpu:
        readings = dpu.telemetry()
        assert readings["temperature_celsius"].value == 61.5
        assert readings["uptime_seconds"].absent is Absence.DEVICE_LOST
        with pytest.raises(DeviceGone, match="Arm cores do not answer"):
            dpu.services()


def test_a_host_key_that_is_not_the_cards_is_refused(card: StandIn) -> None:
    (card.folder / "others").write_text("")
    driver = make(card, ssh_known_hosts=str(card.folder / "others"), ssh=f"{getpass.getuser()}@localhost")
    with driver.open(card.id, OpenGuard(), soon()) as dpu, pytest.raises(DeviceGone, match="Host key verification"):
        dpu.services()


def test_an_rshim_that_hangs_hides_no_card(card: StandIn) -> None:
    driver = make(card, bmc=None)
    misc = card.rshim / "misc"
    saved = misc.read_bytes()
    seen(driver, card)
    card.pause_watching()
    misc.unlink()
    os.mkfifo(misc)  # whoever opens it waits
    try:
        devices = driver.discover(Deadline.after(0.6)).devices
        assert len(devices) == 2
        mine = next(device for device in devices if device.id == card.id)
        assert mine.attributes["mode"].absent is Absence.TIMEOUT or worst(mine.conditions) is Health.UNKNOWN
    finally:
        os.close(os.open(misc, os.O_RDWR | os.O_NONBLOCK))  # lets the abandoned threads go
        misc.unlink()
        misc.write_bytes(saved)


def test_telemetry_gives_a_rate_from_the_second_reading_on(dpu: BlueField) -> None:
    first = dpu.telemetry()
    assert first["arm_utilization_percent"].absent is Absence.NOT_REPORTED
    assert first["power_watts"].value == 44
    assert first["memory_used_bytes"].known
    second = dpu.telemetry()["arm_utilization_percent"]
    assert not second.known or 0 <= float(str(second.value)) <= 100


# Health


def test_heat_is_a_condition_with_its_evidence(card: StandIn, driver: BlueFieldDriver) -> None:
    card.temperature["Reading"] = 97
    (condition,) = driver.sample([card.id], soon())
    assert (condition.type, worst([condition])) == ("OverTemperature", Health.DEGRADED)
    assert "97" in condition.evidence
    card.temperature["Reading"] = 106
    assert worst(driver.sample([card.id], soon())) is Health.SUSPECT


def test_firmware_reporters_are_read_from_devlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = "pci/0000:14:00.0"
    info = {
        "info": {
            handle: {
                "driver": "mlx5_core",
                "serial_number": "MT1",
                "versions": {"fixed": {"fw.psid": "MT_0000000884"}, "running": {"fw.version": "32.39.1002"}},
            }
        }
    }
    health = {
        "health": {
            handle: [
                {"reporter": "fw", "state": "healthy", "error": 0, "recover": 0},
                {"reporter": "fw_fatal", "state": "error", "error": 3, "recover": 2},
                {"nonsense": 1},
            ]
        }
    }
    tool = tmp_path / "devlink"
    tool.write_text(
        f"#!/bin/sh\ncase \"$*\" in *info*) echo '{json.dumps(info)}';; *) echo '{json.dumps(health)}';; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = read_devlink("0000:14:00.0", "dpu-1", soon())
    assert (found.firmware, found.board, found.driver) == ("32.39.1002", "MT_0000000884", "mlx5_core")
    assert [(one.name, one.state, one.errors) for one in found.reporters] == [
        ("fw", "healthy", 0),
        ("fw_fatal", "error", 3),
    ]


@pytest.mark.parametrize("script", ["echo nonsense", "exit 1", "echo '{\"info\": 7}'", "sleep 60"])
def test_a_devlink_that_is_of_no_use_costs_fields(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "devlink"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = read_devlink("0000:14:00.0", "dpu-1", Deadline.after(0.5))
    assert found.firmware == ""
    assert found.why


# Modes and boots


def test_a_restricted_card_lets_nobody_near(card: StandIn, driver: BlueFieldDriver, dpu: BlueField) -> None:
    card.write_misc("Restricted mode")
    assert dpu.mode().current is DpuMode.RESTRICTED
    assert dpu.children()
    for verb in (dpu.services, dpu.boot, dpu.flows, dpu.vf_count, lambda: dpu.set_mode(DpuMode.NIC)):
        with pytest.raises(AccessDenied, match="restricted"):
            verb()
    with pytest.raises(AccessDenied):
        driver.prepare(card.id, Grant(lease="l", fence=9), soon())


def test_a_pending_mode_is_remembered_by_other_processes(
    card: StandIn, driver: BlueFieldDriver, dpu: BlueField
) -> None:
    dpu.set_mode(DpuMode.NIC)
    device = seen(make(card), card)
    assert device.value("pending_mode") == "nic"
    assert "ModePending" in [condition.type for condition in device.conditions]


def test_a_card_that_does_not_come_up_is_told_at_the_deadline(card: StandIn, dpu: BlueField) -> None:
    card.stuck = True
    operation = dpu.reset(ResetLevel.HARD, deadline=Deadline.after(1.5))
    with pytest.raises(DeadlineExceeded, match="not ready in time"):
        operation.wait(soon())
    assert dpu.boot().state is BootState.ROM


def test_a_reset_that_nobody_has_noticed_is_not_a_reset(card: StandIn, dpu: BlueField) -> None:
    card.deaf = True  # it says that it is ready all the time, as a BMC does that looks every thirty seconds
    with pytest.raises(DeadlineExceeded):
        dpu.reset(ResetLevel.HARD, deadline=Deadline.after(1.0)).wait(soon())


def test_the_last_word_of_the_old_life_is_not_taken_for_ready(card: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question for the state and that for the life the card goes down."""
    driver = make(card, ssh=None)
    with driver.open(card.id, OpenGuard(), soon()) as dpu:
        asked: list[BootState] = []
        ask = boot._state

        def state(*arguments: Any) -> tuple[BootState, float]:
            found = ask(*arguments)
            asked.append(found[0])
            if len(asked) == 1:
                card.boots += 1
                card.enter(0)
                threading.Timer(0.2, card.enter, args=(3,)).start()
            return found

        monkeypatch.setattr(boot, "_state", state)
        card.deaf = True
        dpu.reset(ResetLevel.HARD, deadline=soon()).wait(soon())
        assert dpu.boot().state is BootState.READY
        assert len(asked) > 3, "it was asked again"


def test_a_bmc_that_cannot_cut_the_power_says_what_it_can(card: StandIn, dpu: BlueField) -> None:
    card.allowed = ["ForceRestart"]
    with pytest.raises(Unsupported, match="ForceRestart"):
        dpu.power_cycle().wait(soon())


def test_a_booting_card_is_not_prepared(card: StandIn, driver: BlueFieldDriver) -> None:
    seen(driver, card)
    card.enter(1)
    with pytest.raises(HalError, match="uefi"):
        driver.prepare(card.id, Grant(lease="l", fence=1), soon())
    assert "Booting" in [condition.type for condition in driver.sample([card.id], soon())]
