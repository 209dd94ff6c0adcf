"""The independent reader is read by somebody, too: it passes what is right, and finds each kind of wrong."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hal.broker.journal import schema
from hal.broker.journal.audit import GENESIS, AuditEntry, seal
from tests.unit.broker.checker import check

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "journal_v1.jsonl").read_text().splitlines()]
GPU0, GPU2 = "n0/gpu0", "n0/gpu2"


def given(name, device="n0/gpu0", fence=2_000_000_000, tenant="physics", **fields):
    part = {"id": device, "kind": "gpu", "name": device, "node": "n0", "driver": "fake"} | fields
    lease = {"id": name, "tenant": tenant, "devices": [part], "fence": fence}
    return {"type": "lease-granted", "at": 1100.0, "claim": {"id": name}, "lease": lease}


def said(kind, **fields):
    return {"type": kind, "at": 1100.0, **fields}


def ended(name, freed, fenced=None, proof="unprepared"):
    return said("lease-ended", lease=name, freed=freed, fenced=fenced or {}, proof=proof)


def written(folder, *more):
    path = folder / "journal.sqlite"
    connection = schema.prepare(path)
    for revision, record in enumerate([*GOLDEN, *more], 1):
        values = (revision, record["at"], record["type"], json.dumps(record))
        connection.execute(schema.ADD_RECORD, values)
    connection.close()
    return path


def test_a_history_without_fault_passes(memory_path):
    assert check(written(memory_path), quiet=True) == ({"a": (1000000001, [GPU0], "prepared")}, set())


def test_queues_notices_growth_shrinking_shares_and_cordons_pass(memory_path):
    half = {"uses": {"fraction_milli": 500}}
    grown = given("f", "n0/gpu1", replica=1)["lease"]["devices"]
    path = written(
        memory_path,
        said("tenant-set", tenant={"path": "physics", "quota": {"gpu": 3}}),
        said("claim-queued", claim={"id": "f"}),
        said("claim-kept", claim="f", devices=[]),
        given("f", GPU2, 2_000_000_000),
        said("lease-grown", lease="f", devices=grown, fence=2_000_000_001),
        said("lease-noticed", lease="f", leave_by=1.0, why="w", leaving=[1]),
        said("lease-shrunk", lease="f", replicas=[1], freed=["n0/gpu1"], proof="p"),
        given("s1", "n0/gpu1", 2_000_000_002, **half),
        given("s2", "n0/gpu1", 2_000_000_003, **half),
        said("cordoned", target="node:n0", why="w", by="b"),
        said("lease-releasing", lease="s1", why="w"),
        ended("s1", [], {"n0/gpu1+s1": "stuck"}),
        said("device-freed", device="n0/gpu1+s1", proof="p"),
        said("uncordoned", target="node:n0", by="b"),
        said("claim-queued", claim={"id": "g"}),
        said("claim-left", claim="g", why="w"),
        said("lease-noticed", lease="f", leave_by=1.0, why="w"),
        said("lease-releasing", lease="f", why="w"),
    )
    live, fenced = check(path)
    assert {name: entry[1:] for name, entry in live.items()} == {
        "a": ([GPU0], "prepared"),
        "f": ([GPU2], "releasing"),
        "s2": (["n0/gpu1+s2"], "bound"),
    }
    assert not fenced
    with pytest.raises(AssertionError, match="not ended at rest"):
        check(path, quiet=True)


HALF = {"uses": {"fraction_milli": 600}}
WRONG = {
    "doubled": [given("x")],
    "granted twice": [given("a", GPU2)],
    "the fence of x does not grow": [given("x", GPU2, fence=1000000003)],
    "ended while prepared": [ended("a", [GPU0])],
    "without a proof": [said("lease-releasing", lease="a", why="w"), ended("a", [GPU0], proof="")],
    "holds": [said("lease-releasing", lease="a", why="w"), ended("a", [])],
    "both freed and fenced": [said("lease-releasing", lease="a", why="w"), ended("a", [GPU0], {GPU0: "?"})],
    "was not fenced": [said("device-freed", device=GPU0, proof="p")],
    "forgotten while it is held": [said("device-forgotten", device=GPU0)],
    "is cordoned": [said("cordoned", target="node:n0", why="", by=""), given("x", GPU2)],
    "n0/gpu2 is given at": [said("cordoned", target=GPU2, why="", by=""), given("x", GPU2)],
    "used more than once over": [given("x", GPU2, **HALF), given("y", GPU2, 2_000_000_001, **HALF)],
    "n0/gpu2#1g@0 is doubled": [given("x", GPU2, partition="1g@0"), given("y", GPU2, 2_000_000_001, partition="1g@0")],
    "holds 2 gpu of 1": [said("tenant-set", tenant={"path": "physics", "quota": {"gpu": 1}}), given("x", GPU2)],
    "the root holds": [said("tenant-set", tenant={"path": "", "quota": {"gpu": 1}}), given("x", GPU2)],
    "grows while": [
        said("lease-releasing", lease="a", why="w"),
        said("lease-grown", lease="a", devices=given("a", GPU2)["lease"]["devices"], fence=2_000_000_000),
    ],
    "shrinks by nothing": [said("lease-shrunk", lease="a", replicas=[4], freed=[], proof="p")],
    "is left; that is its end": [said("lease-shrunk", lease="a", replicas=[0], freed=[GPU0], proof="p")],
    "becomes suspect": [said("lease-releasing", lease="a", why="w"), said("lease-suspected", lease="a")],
    "waits, and has a lease": [said("claim-queued", claim={"id": "a"})],
    "does not know": [said("lease-parked", lease="a")],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_found(memory_path, wrong):
    with pytest.raises(AssertionError, match=wrong):
        check(written(memory_path, *WRONG[wrong]))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("DELETE FROM records WHERE revision = 5", "hole"),
        ("UPDATE audit SET detail = 'other'", "altered"),
        ("UPDATE audit SET revision = 99", "altered|speaks of"),
        ("INSERT INTO meta VALUES ('compacted', '3'); DELETE FROM records WHERE revision < 4", "no snapshot"),
    ],
)
def test_a_journal_that_was_tampered_with_is_found(memory_path, damage, word):
    path = written(memory_path)
    connection = sqlite3.connect(path)
    entry = AuditEntry(at=1.0, actor="a", tenant="t", verb="v", subject="s", detail="d", revision=3)
    connection.executemany(schema.ADD_LINE, seal([entry], (0, GENESIS), 0))
    connection.commit()
    check(path)
    connection.executescript(f"DROP TRIGGER audit_UPDATE;{damage}")
    connection.close()
    with pytest.raises(AssertionError, match=word):
        check(path)


def test_the_reader_runs_on_its_own(memory_path):
    path = written(memory_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-I", str(Path(__file__).parent / "checker.py"), str(path)]
    done = subprocess.run(words, cwd=memory_path, env=environment, capture_output=True, text=True, check=True)
    assert "prepared" in done.stdout
