"""``hal-probe`` as people and programs run it: real processes on mock machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine, open_machine
from tests.flows.conftest import BIN, Doors

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEMA = json.loads((Path(__file__).parents[2] / "hal" / "cli" / "probe.schema.json").read_text())
PATIENT = ("--timeout", "30")


class Machines:
    """Mock machines that several tests look at and none harms, and one's own for those that do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.doors = Doors(folder)

    def environ(self, profile: str, state: str = "shared") -> dict[str, str]:
        return {"HAL_MACHINE": f"{profile}?state={self.folder / state / profile}"}

    def probe(self, profile: str, *arguments: str, state: str = "shared", **environ: str) -> Any:
        return self.doors.run("hal-probe", *arguments, *PATIENT, environ={**self.environ(profile, state), **environ})

    def machine(self, profile: str, state: str) -> Machine:
        machine = open_machine(self.environ(profile, state))
        assert machine is not None
        return machine


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("probe") / "home")


@pytest.fixture(scope="module")
def report(machines: Machines) -> dict[str, Any]:
    done = machines.probe("dgx-h100", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {device["name"]: device for device in report["devices"]}


def validate(report: object) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(report)


def test_the_published_schema_is_what_the_records_amount_to(machines: Machines):
    from hal.cli.probe_schema import made, published

    assert published() == made(), "run: python -m hal.cli.probe_schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(machines.probe("dgx-h100", "schema").stdout) == SCHEMA


def test_the_json_is_valid_and_holds_everything(report: dict[str, Any]):
    validate(report)
    kinds = [device["kind"] for device in report["devices"]]
    assert (kinds.count("gpu"), kinds.count("cpu"), kinds.count("memory")) == (8, 2, 2)
    assert kinds.count("switch") > 0
    gpu = by_name(report)["gpu0"]
    assert gpu["id"].startswith("GPU-")
    assert gpu["attributes"]["link_max_width"]["value"] == 16
    assert gpu["attributes"]["numa_node"]["source"]


def test_yaml_says_the_same_as_json(machines: Machines):
    once = json.loads(machines.probe("optane-server", "--json").stdout)
    again = yaml.safe_load(machines.probe("optane-server", "--format", "yaml").stdout)
    for document in (once, again):
        document["taken_at"] = 0
        for driver in document["drivers"]:
            driver.pop("seconds", None)
    assert once == again


@pytest.mark.parametrize(
    ("profile", "arguments"),
    [
        ("dgx-h100", ("tree",)),
        ("dgx-h100", ("topology", "--matrix")),
        ("optane-server", ("list",)),
        ("bluefield-host", ("tree",)),
    ],
)
def test_the_output_for_people_is_the_recorded_one(machines: Machines, profile: str, arguments: tuple[str, ...]):
    done = machines.probe(profile, *arguments)
    golden = GOLDEN / f"{profile}.{arguments[0]}.txt"
    if os.environ.get("HAL_RECORD_GOLDEN"):
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_shows_in_every_output_and_in_the_exit_status(machines: Machines, report: dict[str, Any]):
    machine = machines.machine("dgx-h100", "faulty")
    sick, lost = by_name(report)["gpu3"]["id"], by_name(report)["gpu5"]["id"]
    machine.inject(sick, FaultType.LINK_DEGRADED, generation=4, width=8)
    done = machines.probe("dgx-h100", "--json", state="faulty")
    validate(json.loads(done.stdout))
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 1
    assert by_name(json.loads(done.stdout))["gpu3"]["health"] != "healthy"

    machine.inject(lost, FaultType.FALLEN_OFF_BUS)
    done = machines.probe("dgx-h100", "--expect", "gpu=8", state="faulty")
    assert done.returncode == 2
    assert "expected 8 gpu, found 7" in done.stderr
    row = next(line for line in done.stdout.splitlines() if " gpu5 " in line)
    assert "failed" in row
    doctor = machines.probe("dgx-h100", "doctor", "--kind", "gpu", state="faulty")
    assert doctor.returncode == 1
    assert "gpu5 is failed: FallenOffBus" in doctor.stdout
    metrics = machines.probe("dgx-h100", "--format", "prometheus", state="faulty").stdout
    assert f'device="{lost}",health="failed"}} 1' in metrics

    machine.heal()
    assert machines.probe("dgx-h100", "--expect", "gpu=8", state="faulty").returncode == 0


def test_filters_choose_by_kind_and_by_expression(machines: Machines):
    chosen = json.loads(machines.probe("dgx-h100", "--json", "--kind", "gpu,rnic", "--where", "numa_node == 1").stdout)
    assert {device["kind"] for device in chosen["devices"]} == {"gpu", "rnic"}
    assert {device["location"]["numa_node"] for device in chosen["devices"]} == {1}


def test_the_topology_report_pairs_every_gpu_with_the_nic_at_its_switch(machines: Machines, tmp_path: Path):
    picture = tmp_path / "dgx.svg"
    done = machines.probe("dgx-h100", "topology", "--json", "--svg", str(picture))
    found = json.loads(done.stdout)
    validate(found)
    assert len(found["nearest"]) == 8
    assert all(pair["distance"] == "PIX" and len(pair["nics"]) == 1 for pair in found["nearest"])
    assert len({pair["nics"][0] for pair in found["nearest"]}) == 8
    texts = [
        element.text for element in ElementTree.fromstring(picture.read_text()).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert [text for text in texts if text and text.startswith("gpu") and text != "gpu"] == [
        f"gpu{n}" for n in range(8)
    ]


def test_lines_fit_the_terminal_and_colour_is_only_for_terminals(machines: Machines):
    for verb, columns in (("list", 43), ("topology", 61)):
        lines = machines.probe("dgx-h100", verb, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) <= columns
    plain = machines.probe("dgx-h100", "tree", PYTHONIOENCODING="ascii").stdout
    assert plain.isascii()
    assert "|  |     |- gpu0" in plain
    assert "\x1b" not in plain
    assert "\x1b[32m" in machines.probe("dgx-h100", "--color", "always").stdout


def test_a_hostile_tree_costs_attributes_and_never_the_probe(machines: Machines):
    done = machines.probe("hostile", "--json")
    validate(json.loads(done.stdout))
    assert done.returncode in (0, 1)
    for verb in ("topology", "doctor"):
        shown = machines.probe("hostile", verb, "--all")
        assert shown.returncode == done.returncode
        assert all(line.isprintable() for line in shown.stdout.splitlines())


def test_a_snapshot_shows_the_same_machine_and_hides_who_it_is(machines: Machines, tmp_path: Path):
    archive = tmp_path / "machine.tgz"
    assert machines.probe("upmem-server", "snapshot", str(archive)).returncode == 0
    replayed = machines.doors.run("hal-probe", "--json", "--root", str(archive), *PATIENT)
    found = json.loads(replayed.stdout)
    validate(found)
    live = json.loads(machines.probe("upmem-server", "--json").stdout)
    kinds = [sorted(device["kind"] for device in one["devices"]) for one in (found, live)]
    assert kinds[0] == kinds[1]
    serials = {device["id"] for device in live["devices"] if device["id"].startswith(("upmem-", "nvme-"))}
    assert serials.isdisjoint(device["id"] for device in found["devices"])
    same = machines.doors.run("hal-probe", "diff", str(archive), str(archive), *PATIENT)
    assert (same.returncode, same.stdout) == (0, "no difference\n")


def test_diff_names_what_is_gone_new_and_changed(machines: Machines, report: dict[str, Any], tmp_path: Path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report))
    later = json.loads(old.read_text())
    gone = later["devices"].pop(0)
    by_name(later)["gpu1"]["attributes"]["link_width"]["value"] = 8
    new.write_text(json.dumps(later))
    done = machines.doors.run("hal-probe", "diff", str(old), str(new))
    assert done.returncode == 1
    assert f"({gone['id']})" in done.stdout
    assert "link_width: 16 -> 8" in done.stdout
    told = json.loads(machines.doors.run("hal-probe", "diff", "--json", str(new), str(old)).stdout)
    validate(told)
    assert [change["type"] for change in told["changes"]] == ["added", "changed"]
    (tmp_path / "sys").mkdir()
    assert machines.doors.run("hal-probe", "diff", str(old), str(tmp_path)).returncode in (1, 3)
    refused = machines.doors.run("hal-probe", "diff", str(old), __file__)
    assert refused.returncode == 64
    assert "no report of hal-probe" in refused.stderr


def test_watch_says_what_fails_and_what_heals(machines: Machines, report: dict[str, Any]):
    machine = machines.machine("dgx-h100", "watched")
    victim = by_name(report)["gpu2"]["id"]
    command = [str(BIN / "hal-probe"), "watch", "--json", "--interval", "0.05", "--for", "100", *PATIENT]
    environ = {**machines.doors.environ, **machines.environ("dgx-h100", "watched")}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None

        def next_of(kind: str) -> dict[str, Any]:
            for line in watching.stdout:
                event = json.loads(line)
                validate(event)
                if event["type"] == kind:
                    return event
            raise AssertionError(f"watch ended before a {kind}")

        assert next_of("watching")["device"] is None
        machine.inject(victim, FaultType.LOST)
        failed = next_of("condition")
        assert (failed["device"], failed["health"]) == (victim, "failed")
        machine.heal()
        assert next_of("condition")["health"] == "healthy"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0


@pytest.mark.parametrize(
    "arguments", [("--frmat", "json"), ("--root", "/nonexistent"), ("--where", "1 +"), ("--where", "numer == 1")]
)
def test_usage_mistakes_end_with_64_and_say_what_to_try(machines: Machines, arguments: tuple[str, ...]):
    done = machines.doors.run("hal-probe", *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert "try:" in done.stderr


def test_a_reader_that_goes_away_hears_no_complaint(machines: Machines):
    command = f"{BIN / 'hal-probe'} --all --timeout 30 | true; echo ${{PIPESTATUS[0]}}"
    environ = {**machines.doors.environ, **machines.environ("dgx-h100")}
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout in ("141\n", "0\n")  # 0 if all of it fitted into the pipe before the reader went


def test_the_short_way_needs_nothing_heavy_and_leaves_imports_as_they_were(machines: Machines):
    heavy = ["argparse", "json", "inspect", "pluggy", "numpy", "asyncio", "threading", "pathlib", "dataclasses"]
    program = (
        "import sys; before = set(sys.modules); from hal.cli.probe import guarded; code = guarded(['--json'])\n"
        f"found = sorted(set({heavy}) & (set(sys.modules) - before))\n"
        "import platform, typing_extensions; assert platform.machine() and typing_extensions.TypedDict\n"
        "print(found, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    for _ in range(2):  # the second start finds the list of plugins that the first one wrote
        done = subprocess.run(command, env=machines.doors.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) in ((0, "[]"), (1, "[]"))
    validate(json.loads(done.stdout))


def test_a_recorded_machine_is_not_mixed_with_a_mock_one(machines: Machines, tmp_path: Path):
    (tmp_path / "sys").mkdir()
    done = machines.probe("dgx-h100", "--root", str(tmp_path), "--json")
    assert json.loads(done.stdout)["devices"] == []
    said = machines.probe("dgx-h100", "doctor", "--root", str(tmp_path), COLUMNS="").stdout
    assert "HAL_MACHINE is not set" not in said
    assert "driver mock-gpu of mocks" in said


def test_what_is_no_recorded_machine_is_refused_in_one_line(machines: Machines, tmp_path: Path):
    text, pipe, other, empty = (tmp_path / name for name in ("text", "pipe", "other.tgz", "empty"))
    text.write_text("hello")
    os.mkfifo(pipe)
    subprocess.run(["tar", "czf", str(other), "-C", str(tmp_path), "text"], check=True)
    empty.mkdir()
    for path in (text, pipe, other, empty, Path("/dev/zero")):
        done = machines.doors.run("hal-probe", "--root", str(path), *PATIENT)
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr.startswith(f"hal-probe: during --root: {path}")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [("hal-probe",), ("hal-probe", "--json"), ("hal", "list"), ("hal-mock", "profiles")]
)
@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_an_output_that_takes_nothing_is_no_mistake_of_ours(machines: Machines, command: tuple[str, ...], output: str):
    words = " ".join([str(BIN / command[0]), *command[1:], output])
    done = subprocess.run(["sh", "-c", words], env=machines.doors.environ, capture_output=True, text=True, check=False)
    assert "report" not in done.stderr
    assert "Traceback" not in done.stderr
    if output == ">/dev/full":
        assert done.returncode != 0
        assert "No space left on device" in done.stderr
