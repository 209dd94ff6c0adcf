"""What the verbs of ``hal`` print for people: times, notices, alternatives; and what a wrong clock changes: nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hal.api.client import Client
from hal.api.local import LocalBroker
from hal.broker.command import Queued
from hal.cli import asking
from hal.cli.asking import local_time, localized, span, when
from hal.cli.main import main
from hal.cli.waiting import Progress
from tests.unit.fake_broker import FakeBroker
from tests.unit.server_world import served

BIN = Path(sys.executable).parent
_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def hal(doors, mock, monkeypatch, capsys):
    for name, value in {**doors.environ, **mock("dgx-h100")}.items():
        monkeypatch.setenv(name, value)

    def run(*words, code=0):
        assert main(words) == code, capsys.readouterr()
        return capsys.readouterr().out

    return run


def test_a_lease_that_was_told_to_leave_says_until_when_and_why(hal):
    hal("claim", "gpu:2", "--id", "a", "--ttl", "2h")
    assert "told to leave" not in hal("list")
    hal("drain", "gpu0", "--grace", "30m", "--why", "firmware")
    said = hal("list")
    assert re.search(rf"\n  told to leave within 30 min, by {_STAMP}: gpu0 is drained by \S+: firmware\n", said), said
    assert re.search(r"  (120 min|2 h) left\n", said)
    lease = json.loads(hal("list", "--json"))["leases"][0]
    assert lease["state"] == "draining"
    assert "firmware" in lease["notice"]
    assert lease["leave_by"] > time.time() + 1000


def test_events_and_the_trail_tell_local_times_and_json_the_journals_own(hal):
    hal("claim", "gpu", "--id", "a")
    hal("renew", "a")
    hal("drain", "gpu0", "--grace", "1h")
    for said in (hal("events"), hal("audit")):
        assert re.search(rf"until {_STAMP}", said)
        assert not re.search(r"\d{9,}\.\d{3}", said)
    details = [json.loads(line).get("detail", "") for line in hal("events", "--json").splitlines()]
    assert any(re.fullmatch(r"until \d{9,}\.\d{3}", detail) for detail in details)


def test_the_cordons_are_listed_without_a_target(hal):
    assert "nothing is cordoned" in hal("cordon")
    hal("cordon", "gpu3", "--why", "noisy")
    assert re.search(r"cordoned by \S+: noisy", hal("cordon"))
    assert len(json.loads(hal("cordon", "--json"))["cordons"]) == 1


def test_an_explanation_says_of_which_alternative_each_line_speaks(hal, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "requests: [{kind: gpu, count: 4, where: memory_bytes > 1*TB,"
        " or_else: [{kind: gpu, count: 9}, {kind: rnic, count: 3, where: numa_node == 7}]}, {kind: gpu, name: more}]"
    )
    hal("claim", "gpu:2", "--id", "held")
    lines = hal("explain", "--file", str(tmp_path / "c.yaml"), code=1).splitlines()
    said = {line.partition(":")[0].strip() for line in lines}
    assert {"gpu, first choice", "gpu, alternative 1", "gpu, alternative 2", "more"} <= said
    assert any("cannot be met" in line for line in lines[1:3]), "the conflict, beside the reason"
    (of_second,) = [line for line in lines if line.startswith("  for gpu, alternative 2: ")]
    assert "10 devices" in of_second
    assert of_second.endswith("numa_node == 7 is false")
    (of_first,) = [line for line in lines if line.startswith("  for gpu, first choice: ")]
    assert of_first.endswith("memory_bytes > 1*TB is false")
    assert any(line.startswith("  2 devices (") and "held by lease held" in line for line in lines), "of more, alone"


def test_a_claim_is_bound_by_any_attribute_and_by_several(hal):
    lease = json.loads(hal("claim", "gpu:2", "--same", "model", "--same", "numa", "--distinct", "uuid", "--json"))
    assert len(lease["lease"]["devices"]) == 2
    assert "gpu:2 --same model --same numa" not in hal("explain", "gpu:2", "--same", "model", "--same", "numa")


def test_what_starts_in_two_hours_does_so_by_the_servers_clock(tmp_path, monkeypatch, capsys):
    broker = FakeBroker(tmp_path)
    broker.ahead = 1e6  # or our clock is as much behind
    with served(broker, tmp_path / "s"):
        monkeypatch.setenv("HAL_SERVER", str(tmp_path / "s"))
        assert main(["claim", "gpu", "--start", "+2h", "--id", "later"]) == 0
        with Client(tmp_path / "s") as client:
            assert asking.now_of(client) == pytest.approx(time.time() + 1e6, abs=600)
    start_at = broker.claims["later"].start_at
    assert 1e6 < start_at - time.time() < 1e6 + 7300
    capsys.readouterr()


def test_the_clock_of_a_broker_in_this_process_is_its_own(hal_broker):
    assert isinstance(hal_broker, LocalBroker)
    assert asking.now_of(hal_broker) == pytest.approx(hal_broker.now(), abs=600)


@pytest.mark.parametrize("words", [("--help",), ("claim", "--help"), ("--version",), ("completion", "bash")])
def test_help_that_cannot_be_written_is_no_traceback(doors, words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [BIN / "hal", *words], stdout=full, stderr=subprocess.PIPE, text=True, env=doors.environ, check=False
        )
    assert done.returncode == 75
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_one_line(doors):
    done = doors.run("hal", "claim", "gpu", "--duration", "soon")
    assert done.returncode == 64
    assert done.stderr == (
        "hal claim: argument --duration: 'soon' is no duration, such as 90, 15m, 2h or 1d (usage: hal claim --help)\n"
    )


def test_the_reason_for_waiting_is_kept_where_nothing_new_is_said_of_it(capsys):
    line = Progress()
    line.show(Queued(2, None, "all are held"), 0.0)
    line.show(Queued(2), 0.0)
    line.show(Queued(1), 0.0)
    said = capsys.readouterr().err.splitlines()
    assert said == ["hal: position 2 of the queue: all are held", "hal: position 1 of the queue: all are held"]


def test_following_ends_when_nobody_reads_any_more(hal, doors):
    hal("status")
    command = [BIN / "hal", "events", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as following:
        following.stdout.readline()
        following.stdout.close()
        assert following.wait(60) == 0
        assert following.stderr.read() == b""


def test_replicas_are_numbered_where_there_can_be_several(hal):
    assert "replica" not in hal("claim", "gpu", "--id", "one")
    said = hal("claim", "gpu", "--replicas", "2", "--id", "two")
    assert [line.rpartition("  ")[2] for line in said.splitlines()[1:3]] == ["replica 0", "replica 1"]


def test_how_long_events_are_followed_says_that_they_are(hal):
    hal("claim", "gpu", "--id", "a")
    assert " granted    a  default, fence " in hal("events", "--for", "0")
    assert "2 leases, 1 claim in the queue, 1 cordon, journal at" in _busy(hal)


def _busy(hal):
    hal("claim", "gpu:6", "--id", "b")
    hal("cordon", "mlx5_0")
    hal("claim", "gpu", "--id", "late", "--start", "+2h", "--duration", "1h")
    return hal("status")


def test_times_are_said_as_people_say_them():
    assert [span(one) for one in (-3, 0, 599, 1800, 7200, 86_400, 172_800, 86_400 * 3650)] == [
        "0 s",
        "0 s",
        "599 s",
        "30 min",
        "2 h",
        "24 h",
        "2 days",
        "3650 days",
    ]
    assert when(100.0, 90.0) == "in 10 s"
    assert when(90.0, 100.0) == "in 0 s"
    at = 1795335994.25
    assert localized(f"until {at:.3f}: it is needed") == f"until {local_time(at)}: it is needed"
    assert localized(f"gpu0 from {at:.3f}: it waits") == f"gpu0 from {local_time(at)}: it waits"
    assert localized("fence 1795335994000001: gpu0") == "fence 1795335994000001: gpu0"
    assert local_time(1e300) == f"{1e300:.0f}"
