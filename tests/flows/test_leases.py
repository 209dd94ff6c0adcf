"""``hal`` as people and programs run it: each command a process of its own, on a mock machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from hal.broker.journal.sqlite import SqliteStore
from hal.cli.claim_file import read_claim
from hal.cli.leases import quoted
from hal.cli.main import main
from hal.errors import ClaimError
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
    assert f"export CUDA_VISIBLE_DEVICES={ids[0]},{ids[1]}" in hal("env", "a")
    opened = hal.json("open", "a")
    assert [row["id"] for row in opened["devices"]] == ids
    assert all(row["telemetry"] and row["error"] is None and row["can"]["peer topology"] for row in opened["devices"])
    again = hal.json("claim", "gpu", "--count", "2", "--same", "numa", "--where", "memory_bytes >= 80*GB", "--id", "a")
    assert again["lease"]["fence"] == found["lease"]["fence"], "asked twice, granted once"
    hal("claim", "gpu:3", "--id", "a", code=64)
    assert "different claim" in hal.stderr
    assert hal.json("renew", "a", "--ttl", "300")["lease"]["expires_at"] > found["lease"]["expires_at"]
    counts = hal.json("status")["devices"]["gpu"]
    assert {name: count for name, count in counts.items() if count} == {"all": 8, "free": 6, "held": 2}
    assert hal.json("release", "a")["lease"]["state"] == "ended"
    hal("env", "nobody", code=1)
    assert "no such lease" in hal.stderr
    assert "no leases" in hal("list")
    types = [json.loads(line)["type"] for line in hal("events", "--json").splitlines()]
    assert types[-5:] == ["granted", "prepared", "renewed", "releasing", "released"]


def test_what_cannot_be_is_refused_and_explained(hal):
    devices = hal.json("claim", "gpu", "rnic", "--same", "pci-switch", "--id", "pair")["lease"]["devices"]
    assert [device["kind"] for device in devices] == ["gpu", "rnic"]
    hal("claim", "gpu:8", code=1)
    assert "7 devices are free" in hal.stderr
    told = hal.json("explain", "gpu:9", code=1)
    assert told["requests"][0]["blocks"]
    assert told["nearest"] == ["gpu:7"]
    assert {reason["reason"] for reason in told["devices"]} == {"held by lease pair of default (prepared)"}
    said = hal("explain", "gpu:9", code=1)
    assert "  1 device (dgx-h100/gpu" in said
    assert "): held by lease pair of default (prepared)\n" in said


def test_a_gpu_that_is_lost_is_refused_and_after_its_repair_claimed_again(hal):
    gpu = hal.machine.resolve("gpu3")
    hal.machine.inject(gpu, FaultType.FALLEN_OFF_BUS)
    hal("claim", "gpu", "--where", 'name == "gpu3"', code=1)
    hal("repair", "gpu3", code=1)
    assert "during reset" in hal.stderr
    hal.machine.heal(gpu)
    assert "it may be claimed again" in hal("repair", "gpu3")
    assert hal.json("claim", "gpu", "--where", 'name == "gpu3"')["lease"]["devices"][0]["id"] == gpu


def test_an_expired_lease_is_taken_back_by_whoever_comes_next(hal, tmp_path):
    toml = tmp_path / "claim.toml"
    toml.write_text('id = "f"\nsame = "numa"\n[[requests]]\nkind = "gpu"\ncount = 4\n[[requests]]\nkind = "rnic"\n')
    lease = hal.json("claim", "--file", str(toml), "--ttl", "0.001")["lease"]
    assert (lease["id"], len(lease["devices"]), lease["ttl_seconds"]) == ("f", 5, 0.001)
    assert len(hal.json("claim", "gpu:8", "--id", "b")["lease"]["devices"]) == 8
    hal("renew", "f", code=1)


def test_a_machine_that_cannot_be_looked_at_is_said_on_standard_error(hal, tmp_path):
    hal.environ["HAL_MACHINE"] = "no-such-profile"
    hal("status", "--state", str(tmp_path / "mine"))
    assert "no-such-profile" in hal.stderr


WRONG = [
    ((), "usage"),
    (("clam",), "did you mean claim"),
    (("claim",), "nothing is asked"),
    (("claim", "gpus"), "one of gpu"),
    (("claim", "gpu:x"), "not a number"),
    (("claim", "gpu:" + "9" * 5000), "not a number"),
    (("claim", "gpu", "--count", "x"), "usage"),
    (("claim", "gpu", "--count", "0"), "count is 0"),
    (("claim", "gpu", "--ttl", "nan"), "no duration"),
    (("claim", "gpu", "--ttl", "0"), "ttl_seconds"),
    (("claim", "gpu", "--count", "1e3"), "no whole number"),
    (("claim", "gpu", "--wait", "nan"), "seconds"),
    (("claim", "gpu", "--id", "a b"), "without spaces"),
    (("claim", "gpu", "--tenant", ""), "tenant"),
    (("claim", "gpu", "--where", "memory_byts > 1"), "did you mean memory_bytes"),
    (("claim", "gpu", "--where", "memory_bytes >"), "position"),
    (("claim", "gpu", "--same", "moon"), "numa"),
    (("claim", "gpu", "--same", "modle"), "did you mean model?"),
    (("claim", "gpu", "--same", "a b"), "an attribute"),
    (("quotas", "physics", "--quota", "memory_bytes=16Gi"), "no number of devices"),
    (("quotas", "physics", "--guarantee", "gpus=1"), "one of gpu"),
    (("cordon", "--why", "noisy"), "what is to be cordoned?"),
    (("list", "extra"), "hal list: there is no use for extra (usage: hal list --help)"),
    (("claim", "gpu", "--nonsense"), "hal claim: there is no use for --nonsense"),
    (("run", "gpu", "--nonsense", "--", "true"), "hal run: there is no use for --nonsense"),
    (("quotas", "physics", "--claims-per-second", "x"), "no number a second"),
    (("audit", "--anchor", "3:x"), "no anchor"),
    (("claim", "gpu", "--start", "+x"), "no time"),
    (("claim", "gpu", "--ttl", "-5"), "no duration"),
    (("claim", "--file", "/nowhere.json"), "cannot be read"),
    (("claim", "gpu", "--file", "x"), "leave out"),
    (("events", "--since", "-1"), "revision"),
    (("events", "--since", "9" * 30), "revision"),
    (("status", "--state", ""), "folder"),
    (("repair", "gpu0", "--by-operator", " "), "a reason"),
    (("repair", "gpu0", "--timeout", "x"), "seconds"),
]


def test_wrong_usage_is_said_and_ends_with_64(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HAL_MACHINE", f"dgx-h100?state={tmp_path / 'mock'}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for words, said in WRONG:
        try:
            code = main(words)
        except SystemExit as left:
            code = left.code
        error = capsys.readouterr().err
        assert code == 64, (words, error)
        assert said in error, words
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[requests]]\nkind = "gpu"\nhowmany = 2\n', "howmany"),
        ("[" * 20_000, "claim.toml"),
        ('constraints = "x"\nsame = "numa"\n[[requests]]\nkind = "gpu"\n', "leave out one"),
        ('constraints = "x"\n[[requests]]\nkind = "gpu"\n', "array"),
        ('[[requests]]\nkind = "gpu"\ncount = 1e400\n', "claim.toml"),
        ("\x00", "claim.toml"),
    ],
)
def test_a_file_that_is_no_claim_is_a_mistake_in_that_file(tmp_path, text, said):
    (tmp_path / "claim.toml").write_text(text)
    with pytest.raises(ClaimError, match=said):
        read_claim(tmp_path / "claim.toml")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh"])
def test_values_reach_every_shell_unchanged(shell):
    program = shutil.which(shell)
    values = ["=mlx5_0", "~root", "a b", "", "it's", "$HOME `id` \\", "x\ny", "*", "a,b:1", "{a,b}", "租", "!!"]
    for value in values:
        word = quoted(value)
        assert "=" not in word or word.startswith("'"), "zsh looks up =word"
        if program is not None:
            script = f'export X={word}\nprintf %s "$X"'
            assert subprocess.run([program, "-c", script], capture_output=True, text=True, check=True).stdout == value


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


def test_a_mistake_of_ours_ends_with_70(tmp_path, monkeypatch, capsys):
    def fail(options):
        raise RuntimeError("no idea")

    monkeypatch.setattr("hal.cli.leases.do_list", fail)
    assert main(["list"]) == 70
    assert "RuntimeError: no idea" in capsys.readouterr().err
    main(["list", "--traceback"])
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr("hal.cli.leases.do_list", lambda options: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    assert main(["list"]) == 75


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ttl = 5\n", "allowed are id, requests, constraints, tenant, ttl_seconds, "),
        ('[[requests]]\nkind = "gpu"\nconut = 3\n', "allowed are kind, count, where, name"),
        ('[[requests]]\nkind = "gpuu"\n', "one of gpu, dpu"),
        ('same = "nu ma"\n[[requests]]\nkind = "gpu"\n', "one of node, numa, pci-switch, rack"),
        ('ttl_seconds = "5"\n[[requests]]\nkind = "gpu"\n', "requests = ["),
    ],
)
def test_a_word_that_a_claims_file_cannot_have_is_answered_with_those_it_can(tmp_path, text, hint):
    (tmp_path / "claim.toml").write_text(text)
    with pytest.raises(ClaimError) as caught:
        read_claim(tmp_path / "claim.toml")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)
