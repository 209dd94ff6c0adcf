"""``hal`` as people and programs run it: each command a process of its own, on a mock machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hal.broker.sqlite import SqliteStore
from hal.interfaces.deadline import Deadline
from hal_mocks.faults import FaultType
from hal_mocks.machine import open_machine


class Hal:
    def __init__(self, doors, environ):
        self.doors = doors
        self.environ = environ

    def __call__(self, *words, code=0):
        done = self.doors.run("hal", *words, environ=self.environ)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        self.stderr = done.stderr
        return done.stdout

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))

    @property
    def machine(self):
        return open_machine(self.environ)


@pytest.fixture
def hal(doors, mock):
    return Hal(doors, mock("dgx-h100"))


def test_a_lease_from_claim_to_release(hal):
    found = hal.json("claim", "gpu", "--count", "2", "--same", "numa", "--where", "memory_bytes >= 80*GB", "--id", "a")
    ids = [device["id"] for device in found["lease"]["devices"]]
    assert len(ids) == 2
    assert found["lease"]["state"] == "prepared"
    assert [lease["id"] for lease in hal.json("list")["leases"]] == ["a"]
    assert f"export CUDA_VISIBLE_DEVICES={ids[0]},{ids[1]}" in hal("env", "a")
    opened = hal.json("open", "a")
    assert [row["id"] for row in opened["devices"]] == ids
    assert all(row["telemetry"] and row["error"] is None for row in opened["devices"])
    assert hal.json("renew", "a", "--ttl", "300")["lease"]["expires_at"] > found["lease"]["expires_at"]
    assert hal.json("status")["devices"]["gpu"] == {"all": 8, "free": 6, "held": 2, "fenced": 0}
    assert hal.json("release", "a")["lease"]["state"] == "ended"
    assert "no such lease" in hal.doors.run("hal", "env", "nobody", environ=hal.environ).stderr
    assert "no leases" in hal("list")
    types = [json.loads(line)["type"] for line in hal("events", "--json").splitlines()]
    assert types[-5:] == ["granted", "prepared", "renewed", "releasing", "released"]


def test_the_same_claim_twice_is_one_lease_and_a_different_one_is_wrong_usage(hal):
    first = hal.json("claim", "gpu", "--id", "a")
    assert hal.json("claim", "gpu", "--id", "a")["lease"]["fence"] == first["lease"]["fence"]
    hal("claim", "gpu:2", "--id", "a", code=64)
    assert "different claim" in hal.stderr


def test_a_gpu_comes_with_the_nic_of_its_switch(hal):
    devices = hal.json("claim", "gpu", "rnic", "--same", "pci-switch")["lease"]["devices"]
    assert [device["kind"] for device in devices] == ["gpu", "rnic"]


def test_what_cannot_be_is_refused_and_explained(hal):
    hal("claim", "gpu:8", "--id", "a")
    hal("claim", "gpu", code=1)
    assert "0 devices are free" in hal.stderr
    told = hal.json("explain", "gpu", code=1)
    assert told["requests"][0]["blocks"]
    assert {reason["reason"] for reason in told["devices"]} == {"held by lease a of default (prepared)"}
    hal("explain", "rnic")


def test_a_gpu_that_is_lost_is_refused_and_after_its_repair_claimed_again(hal):
    gpu = hal.json("claim", "gpu", "--id", "a", "--where", 'name == "gpu3"')["lease"]["devices"][0]["id"]
    hal("release", "a")
    hal.machine.inject(gpu, FaultType.LOST)
    hal("claim", "gpu", "--where", 'name == "gpu3"', code=1)
    hal("claim", "gpu:8", code=1)
    hal.machine.heal(gpu)
    assert hal.json("claim", "gpu", "--where", 'name == "gpu3"')["lease"]["devices"][0]["id"] == gpu


def test_a_claim_from_a_file(hal, tmp_path):
    toml = tmp_path / "claim.toml"
    toml.write_text('id = "f"\nsame = "numa"\n[[requests]]\nkind = "gpu"\ncount = 2\n[[requests]]\nkind = "rnic"\n')
    lease = hal.json("claim", "--file", str(toml), "--ttl", "30")["lease"]
    assert (lease["id"], len(lease["devices"]), lease["ttl_seconds"]) == ("f", 3, 30)
    toml.write_text('[[requests]]\nkind = "gpu"\nhowmany = 2\n')
    hal("claim", "--file", str(toml), code=64)
    assert "howmany" in hal.stderr
    hal("claim", "--file", str(tmp_path / "none.json"), code=64)


def test_an_expired_lease_is_taken_back_by_whoever_comes_next(hal):
    hal("claim", "gpu:8", "--id", "a", "--ttl", "0.001")
    assert len(hal.json("claim", "gpu:8", "--id", "b")["lease"]["devices"]) == 8
    hal("renew", "a", code=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage"),
        (("clam",), "did you mean claim"),
        (("claim",), "nothing is asked"),
        (("claim", "gpus"), "one of gpu"),
        (("claim", "gpu:x"), "not a number"),
        (("claim", "gpu", "--count", "x"), "usage"),
        (("claim", "gpu", "--where", "memory_byts > 1"), "did you mean memory_bytes"),
        (("claim", "gpu", "--where", "memory_bytes >"), "position"),
        (("claim", "gpu", "--same", "moon"), "numa"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_64(hal, words, said):
    hal(*words, code=64)
    assert said in hal.stderr


def test_an_unknown_command_is_a_program_on_the_path(hal, tmp_path):
    program = tmp_path / "hal-greet"
    program.write_text('#!/bin/sh\necho "hello $*"\nexit 7\n')
    program.chmod(0o755)
    hal.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    assert hal("greet", "you", code=7) == "hello you\n"


def test_a_journal_that_somebody_else_holds_is_a_temporary_failure(hal, tmp_path):
    store = SqliteStore(tmp_path / "mine", Deadline.after(1))
    hal("status", "--state", str(tmp_path / "mine"), "--wait", "0.1", code=75)
    assert "has the journal open" in hal.stderr
    store.close()
    hal("status", "--state", str(tmp_path / "mine"))


def test_another_process_opens_the_devices_with_a_ticket_until_the_lease_ends(hal):
    ticket = hal.json("claim", "gpu", "--id", "a")["ticket"]
    program = (
        "import sys\n"
        "from hal.api.held import open_lease\n"
        "from hal.errors import LeaseEnded\n"
        "handle = open_lease(sys.argv[1]).open()\n"
        "print(len(handle.telemetry()), flush=True)\n"
        "sys.stdin.readline()\n"
        "try: handle.telemetry()\n"
        "except LeaseEnded as error: print(error)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, ticket],
        env={**hal.doors.environ, **hal.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert int(holder.stdout.readline()) > 3
        hal("release", "a")
        said, _ = holder.communicate("\n", timeout=60)
    assert "has ended" in said


def test_a_mistake_of_ours_ends_with_70(hal, tmp_path):
    (tmp_path / "mine" / "run").mkdir(parents=True)
    (tmp_path / "mine" / "run" / "guards").write_text("in the way")
    hal("status", "--state", str(tmp_path / "mine"), code=70)
    assert "FileExistsError" in hal.stderr
