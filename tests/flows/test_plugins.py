"""A plugin that is broken costs one line and exit code 3; all other devices are listed."""

from __future__ import annotations

import json
import shutil
import textwrap

import pytest

GOOD = """
    from hal.drivers.contract import READY, Discovery, DriverFactory
    from hal.drivers.hookspecs import hookimpl
    from hal.model.device import Device, Location
    from hal.model.kind import Kind

    class Driver:
        name = "good"
        def readiness(self): return READY
        def discover(self, deadline):
            return Discovery(devices=(Device(id="good-1", kind=Kind.UPMEM, name="rank0", driver="good",
                                             location=Location(node="here"), allocatable=True),))
        def sample(self, device_ids, deadline): return ()
        def prepare(self, device_id, grant, deadline): ...
        def unprepare(self, device_id, grant, deadline): ...
        def open(self, device_id, guard, deadline): ...
        def close(self): ...

    @hookimpl
    def hal_drivers():
        return [DriverFactory(name="good", kinds=(Kind.UPMEM,), create=lambda context: Driver())]
"""

BROKEN = {
    "raises at import": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "exits at import": ("raise SystemExit(5)", "SystemExit: 5"),
    "hangs at import": ("import threading\nthreading.Event().wait()", "did not finish loading in time"),
    "misspells its hook": (
        "from hal.drivers.hookspecs import hookimpl\n@hookimpl\ndef hal_driver():\n    return []\n",
        "hal_driver",
    ),
    "has a hook with a wrong argument": (
        "from hal.drivers.hookspecs import hookimpl\n@hookimpl\ndef hal_drivers(machine):\n    return []\n",
        "machine",
    ),
    "gives something that is no driver": (
        "from hal.drivers.hookspecs import hookimpl\n@hookimpl\ndef hal_drivers():\n    return [42]\n",
        "not a DriverFactory",
    ),
    "raises halfway through its hook": (
        GOOD.replace("        return [", "        yield from [").replace('"good"', '"half"').replace("good-1", "half-1")
        + "\n        raise OSError('halfway')\n",
        "OSError: halfway",
    ),
    "raises in discovery": (
        GOOD.replace("return Discovery(", "raise ValueError('bad card'); return Discovery(").replace('"good"', '"bad"'),
        "ValueError: bad card",
    ),
    "hangs in discovery": (
        GOOD.replace(
            "def discover(self, deadline):",
            "def discover(self, deadline):\n            import threading; threading.Event().wait()",
        ).replace('"good"', '"hung"'),
        "did not answer in time",
    ),
    "creates something that is no driver": (
        GOOD.replace("create=lambda context: Driver()", "create=lambda context: 7").replace('"good"', '"seven"'),
        "of type int, which lacks name, readiness, discover, sample, prepare, unprepare, open, close of",
    ),
    "misspells a verb": (
        GOOD.replace("def unprepare(", "def unprepar(").replace('"good"', '"short"'),
        "of type Driver, which lacks unprepare of the driver contract",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_one_line_and_all_others_work(doors, how):
    source, line = BROKEN[how]
    doors.install("good", GOOD)
    doors.install("broken", source)
    found = doors.run("hal-probe", "--format", "json", "--timeout", "1")
    assert found.returncode == 3, found.stderr
    answer = json.loads(found.stdout)
    assert "good-1" in {device["id"] for device in answer["devices"]}
    assert [p for p in answer["problems"] if line in p["detail"]], answer["problems"]
    if how == "raises halfway through its hook":
        assert "half-1" in {device["id"] for device in answer["devices"]}, "what it gave before it failed is kept"
    table = doors.run("hal-probe", "--timeout", "1")
    assert table.returncode == 3
    assert len([text for text in table.stderr.splitlines() if line in text]) == 1, table.stderr
    assert "rank0" in table.stdout


def test_a_good_plugin_works_with_and_without_the_cache(doors):
    doors.install("good", GOOD)
    first, second = doors.run("hal-probe", "--format", "json"), doors.run("hal-probe", "--format", "json")
    for found in (first, second):
        assert "good-1" in {device["id"] for device in json.loads(found.stdout)["devices"]}
    assert list((doors.home / "cache" / "hal").glob("plugins-*.json"))


def test_a_broken_plugin_is_still_reported_the_second_time(doors):
    doors.install("broken", "raise RuntimeError('no licence')")
    assert [doors.run("hal-probe").returncode for _ in range(2)] == [3, 3]


def test_a_damaged_cache_is_no_cache(doors):
    doors.install("good", GOOD)
    doors.run("hal-probe")
    for file in (doors.home / "cache" / "hal").glob("plugins-*.json"):
        file.write_bytes(b"\xff{")
    assert "rank0" in doors.run("hal-probe").stdout


def test_a_file_written_beside_the_packages_does_not_make_the_next_probe_look_for_plugins(doors):
    doors.run("hal-probe")
    (doors.site / "of_some_tool").mkdir()
    again = doors.run("hal-probe", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    assert again.returncode in (0, 1), again.stderr
    assert "hal.drivers.entries" in again.stderr
    assert "importlib.metadata" not in again.stderr


def test_a_plugin_that_is_installed_upgraded_or_removed_is_noticed_at_once(doors):
    def found():
        devices = json.loads(doors.run("hal-probe", "--format", "json").stdout)["devices"]
        return {device["id"] for device in devices} & {"good-1", "better-1", "best-1"}

    assert found() == set()
    doors.install("good", GOOD)
    assert found() == {"good-1"}
    (doors.site / "halplug_better.py").write_text(textwrap.dedent(GOOD.replace("good", "better")))
    info = doors.site / "rackhal_good-1.0.dist-info"
    shutil.rmtree(info)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rackhal-good\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hal.plugins]\nbetter = halplug_better\n")
    assert found() == {"better-1"}
    doors.install("best", GOOD.replace("good", "best"))
    assert found() == {"better-1", "best-1"}
    shutil.rmtree(info)
    assert found() == {"best-1"}


RULES = """
    from hal.drivers.hookspecs import Exporter, HealthRule, hookimpl
    from hal.model.health import Condition, Severity

    def hot(device, now):
        if device.kind == "cpu":
            yield Condition(device=device.id, type="TooHot", severity=Severity.DEGRADED, evidence="91 C", source="rule",
                            first_seen_at=now, last_seen_at=now)

    @hookimpl
    def hal_health_rules():
        return [HealthRule(name="hot", judge=hot)]

    @hookimpl
    def hal_exporters():
        return [Exporter(name="acme", environment=lambda devices: {"ACME_DEVICES": str(len(devices))})]
"""


def test_a_plugins_health_rule_judges_every_device_every_time(doors):
    doors.install("rules", RULES)
    for _ in range(2):  # the second time the list of plugins comes from the cache
        found = doors.run("hal-probe", "--format", "json")
        assert found.returncode == 1, found.stderr
        hot = {
            d["kind"]
            for d in json.loads(found.stdout)["devices"]
            for c in d.get("conditions", ())
            if c["type"] == "TooHot"
        }
        assert hot == {"cpu"}


def test_a_health_rule_that_raises_is_one_line(doors):
    doors.install("rules", RULES.replace("if device.kind", "if 1 / 0 or device.kind"))
    found = doors.run("hal-probe", "--format", "json")
    assert found.returncode == 3
    (problem,) = json.loads(found.stdout)["problems"]
    assert problem["step"] == "hot"
    assert "ZeroDivisionError" in problem["detail"]


def test_a_plugins_exporter_reaches_the_holder(doors, mock):
    doors.install("rules", RULES)
    environ = mock("upmem-server")
    assert doors.run("hal", "claim", "upmem:2", "--id", "x", environ=environ).returncode == 0
    assert "export ACME_DEVICES=2" in doors.run("hal", "env", "x", environ=environ).stdout


def test_commands_say_their_version_and_find_each_other_without_being_on_the_path(doors):
    doors.environ["PATH"] = "/usr/bin:/bin"
    for command in ("hal", "hal-probe"):
        assert doors.run(command, "--version").stdout.startswith(f"{command} 0.")
    assert "dgx-h100" in doors.run("hal", "mock", "profiles").stdout
