"""The verbs of ``hal`` beyond a claim's short life: queue, quotas, cordons, the trail; with a server and without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hal.cli.claims import claim_of
from hal.cli.main import main
from hal.cli.options import parser
from hal.errors import ClaimError
from hal.model.claim import FRACTION, Preempt, Share

BIN = Path(sys.executable).parent


class Here:
    """Runs commands in this process, as fast as that; what they print is read back."""

    def __init__(self, capsys):
        self.capsys = capsys
        self.error = ""

    def __call__(self, *words, code=0):
        try:
            found = main(words)
        except SystemExit as left:
            found = left.code
        said = self.capsys.readouterr()
        self.error = said.err
        assert found == code, (words, said.out, said.err)
        return said.out

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture(params=["in this process", "through a server"])
def hal(request, doors, mock, monkeypatch, capsys):
    environ = {**doors.environ, **mock("dgx-h100")}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    server = None
    if request.param == "through a server":
        server = subprocess.Popen([str(BIN / "hal"), "serve"], env=environ, stdout=subprocess.PIPE, text=True)
        assert "hal serves on" in server.stdout.readline()
    yield Here(capsys)
    if server is not None:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()


def test_what_is_reserved_for_later_is_said_at_once_and_kept(hal):
    said = hal("claim", "gpu:8", "--start", "+2h", "--duration", "1h", "--id", "later")
    assert "reserved later" in said
    assert "kept" in hal.error + hal("claim", "gpu", "--id", "open-ended", code=1) + hal.error
    hal("claim", "gpu:8", "--duration", "10m", "--id", "short")
    assert [one["claim"]["id"] for one in hal.json("queue")["waiting"]] == ["later"]
    hal("release", "later")
    assert "nobody waits" in hal("queue")


def test_whoever_pushes_others_out_waits_without_keeping_them_from_leaving(hal):
    hal("claim", "gpu:8", "--id", "low", "--grace", "0.5")
    lease = hal.json("claim", "gpu:8", "--id", "high", "--priority", "5", "--preempt")["lease"]
    assert lease["state"] == "prepared"
    assert [one["id"] for one in hal.json("list")["leases"]] == ["high"]


def test_the_life_of_an_operators_day(hal):
    assert hal.json("claim", "gpu:8", "--id", "all", "--tenant", "physics/ada")["lease"]["tenant"] == "physics/ada"
    assert "8 devices asked" in hal("claim", "gpu:9", "--dry-run", code=1) or hal.error
    hal("claim", "gpu", "--queue", "--wait-for", "0.2", "--id", "late", code=1)
    assert "position 1" in hal.error, "how it stands is said while it waits"
    assert "nobody waits" in hal("queue")
    cordons = hal.json("cordon", "gpu3", "--why", "noisy")["cordons"]
    assert [one["why"] for one in cordons] == ["noisy"]
    told = hal.json("drain", "gpu4", "--grace", "1h", "--why", "firmware")["leases"]
    assert [(lease["id"], lease["state"]) for lease in told] == [("all", "draining")]
    assert "noisy" in hal("cordon", "gpu4")
    hal("uncordon", "gpu3")
    assert "nothing is cordoned" in hal("uncordon", "gpu4")
    hal("release", "all")
    quota = hal.json("quotas", "physics", "--quota", "gpu=2", "--weight", "3")["tenant"]
    assert (quota["quota"], quota["weight"]) == ({"gpu": 2}, 3)
    assert hal.json("quotas", "physics", "--most-claims", "5")["tenant"]["quota"] == {"gpu": 2}, (
        "what is not said stays"
    )
    hal("claim", "gpu:3", "--tenant", "physics/ada", code=1)
    hal("claim", "gpu:2", "--tenant", "physics/ada", "--id", "two")
    rows = {row["tenant"]["path"]: row for row in hal.json("tenants")["tenants"]}
    assert rows["physics"]["leases"] == 1
    assert "quota gpu=2" in hal("tenants", "physics")
    assert "nothing is said" in hal("quotas", "physics", "--forget")
    hal("resize", "two", "2", code=64)
    assert "not elastic" in hal.error
    lines = [json.loads(line) for line in hal("audit", "--json").splitlines()]
    assert {"cordon", "release"} <= {line["verb"] for line in lines}
    report = hal.json("audit", "--verify")
    assert report["ok"]
    anchor = "{}:{}".format(*report["head"]) if isinstance(report["head"], list) else None
    assert hal.json("audit", "--verify", "--anchor", anchor)["ok"]
    hal("audit", "--verify", "--anchor", f"{report['head'][0]}:{'0' * 64}", code=1)
    followed = hal("events", "--follow", "--for", "0.3", "--json")
    types = [json.loads(line)["type"] for line in followed.splitlines()]
    assert {"granted", "cordoned", "noticed", "queued"} <= set(types)


def test_a_claim_waits_in_the_queue_until_there_is_room_and_leaves_it_when_stopped(hal, doors, mock):
    environ = dict(os.environ)
    hal("claim", "gpu:8", "--id", "all")
    command = [str(BIN / "hal"), "claim", "gpu", "--queue", "--json", "--id"]
    waiting = subprocess.Popen([*command, "w"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "position 1 of the queue" in waiting.stderr.readline()
    stopped = subprocess.Popen([*command, "s"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "position 2 of the queue" in stopped.stderr.readline()
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(30) == 130
    assert "s has left the queue" in stopped.stderr.read()
    assert [one["claim"]["id"] for one in hal.json("queue")["waiting"]] == ["w"]
    hal("release", "all")
    out, _ = waiting.communicate(timeout=60)
    assert json.loads(out)["lease"]["id"] == "w"
    stopped.communicate()


def test_an_elastic_lease_is_resized(hal):
    found = hal.json("claim", "gpu:2", "--replicas", "1", "--max-replicas", "3", "--id", "e")["lease"]
    assert len(found["devices"]) == 6
    before = json.loads(hal("events", "--json").splitlines()[-1])["revision"]
    hal("resize", "e", "1")
    types = [json.loads(line)["type"] for line in hal("events", "--since", str(before), "--json").splitlines()]
    assert "shrunk" in types
    hal("resize", "e", "9", code=64)


def _claim(*words):
    return claim_of(parser("claim").parse_args(["claim", *words]))


def test_every_word_of_a_claim_is_understood():
    words = """gpu:4 rnic:4 --pairwise --distinct numa --replicas 2 --max-replicas 4 --gang spread --over node
        --duration 2h --start 1900000000 --grace 90 --priority 7 --preempt --wait-for 15m"""
    claim = _claim(*words.split())
    assert [(c.same, c.distinct, c.pairwise) for c in claim.constraints] == [
        ("pci-switch", "", True),
        ("", "numa", False),
    ]
    assert (claim.replicas, claim.max_replicas, claim.gang.how, claim.gang.over) == (2, 4, "spread", "node")
    assert (claim.duration_seconds, claim.start_at, claim.grace_seconds, claim.priority) == (7200, 1.9e9, 90, 7)
    assert (claim.preempt, claim.wait, claim.wait_seconds) == (Preempt.LOWER, True, 900)
    part = _claim(
        "gpu", "--share", "0.25", "--cel", 'device.driver == "x"', "--same", "gpu.example.com/model"
    ).requests[0]
    assert (part.share, part.capacity, part.cel) == (Share.SHARED, {FRACTION: 250}, ('device.driver == "x"',))
    big = _claim("gpu", "--capacity", "memory_bytes=80Gi", "--profile", "1g.10gb").requests[0]
    assert (big.share, big.capacity, big.profile) == (Share.EXCLUSIVE, {"memory_bytes": 80 << 30}, "1g.10gb")
    assert _claim("gpu:all").requests[0].count == "all"


@pytest.mark.parametrize(
    "words",
    [("--share", "2"), ("--share", "x=1"), ("--share", "nan"), ("--same", "the moon"), ("rnic", "--share", "0.5")],
)
def test_words_that_make_no_sense_are_refused(words):
    if words == ("--share", "x=1"):
        assert _claim("gpu", *words).requests[0].capacity == {"x": 1}
        return
    with pytest.raises(ClaimError):
        _claim("gpu", *words)


def test_what_is_said_beside_a_file_wins(tmp_path):
    (tmp_path / "c.toml").write_text('priority = 1\nsame = "numa"\n[[requests]]\nkind = "gpu"\n')
    claim = _claim("--file", str(tmp_path / "c.toml"), "--priority", "9", "--queue")
    assert (claim.priority, claim.wait, claim.constraints[0].same) == (9, True, "numa")
    with pytest.raises(ClaimError, match="already says"):
        _claim("--file", str(tmp_path / "c.toml"), "--share", "0.5")


@pytest.mark.parametrize(
    "words", [("--duration", "x"), ("--start", "tomorrow"), ("--capacity", "gpu"), ("--gang", "all")]
)
def test_times_and_amounts_that_are_none_end_with_64(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(["claim", "gpu", *words])
    assert left.value.code == 64
    assert "usage" in capsys.readouterr().err


def test_a_shell_completes_every_verb(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in ("claim", "uncordon", "quotas", "--max-replicas", "--tls-client-ca"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    tried = f"{script}\nCOMP_WORDS=(hal unc); COMP_CWORD=1; _shtab_hal; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", tried], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["uncordon"], done.stderr


def test_keys_and_tokens(tmp_path, capsys):
    here = Here(capsys)
    key = str(tmp_path / "key")
    assert here.json("token", "key", "--key", key) == {"key": key}
    here("token", "key", "--key", key, code=64)
    here("token", "make", "--key", key, code=64)
    here("token", "make", "--key", key, "--tenant", "a", "--for", "30d", code=64)
    assert len(here("token", "make", "--key", key, "--tenant", "physics").split(".")) == 3
    here("token", "make", "--key", str(tmp_path / "none"), "--tenant", "a", code=64)
    assert "hal token key" in here.error
