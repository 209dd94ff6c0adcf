"""What is found on machines that have persistent memory: rendered trees, and the running machine in a namespace."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import AccessDenied, DeviceNotFound, Unsupported
from hal.host.driver import discover_host
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence
from hal.model.health import Action, Health, Severity
from hal.model.inventory import merge
from hal.model.kind import Kind
from hal_mocks.faults import FaultType
from hal_mocks.machine import open_machine
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.sysfs import host_roots
from hal_pmem.driver import PmemDriver
from hal_pmem.events import watch

KINDS = (Kind.PMEM, Kind.MEMORY)


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_STATE_HOME": str(tmp_path / "state"), "PATH": "/nonexistent"}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HostRoot]:
    """The trees of machines that no test breaks for good: each is rendered once."""
    known: dict[str, HostRoot] = {}

    def render(profile: str) -> HostRoot:
        if profile not in known:
            state = tmp_path_factory.mktemp("machine") / "state"
            (known[profile],) = host_roots({"HAL_MACHINE": f"{profile}?state={state}"})
        return known[profile]

    return render


@pytest.fixture
def root(rendered) -> HostRoot:
    return rendered("optane-server")


@pytest.fixture
def edit(root: HostRoot) -> Iterator[Callable[[str, str], None]]:
    """Change attributes of the tree for the time of a test."""
    before: dict[Path, str] = {}

    def write(name: str, text: str) -> None:
        path = Path(os.path.realpath(root.path("sys", "bus/nd/devices"))) / name
        path = Path(os.path.realpath(path.parent)) / path.name
        before.setdefault(path, path.read_text())
        path.write_text(text)

    yield write
    for path, text in before.items():
        path.write_text(text)


@pytest.fixture
def driver(root: HostRoot, environ: dict[str, str]) -> PmemDriver:
    return PmemDriver([root], environ)


def regions(driver: PmemDriver) -> list:
    return [device for device in driver.discover(soon()).devices if device.kind is Kind.PMEM]


def region_named(driver: PmemDriver, name: str):
    return next(device for device in driver.discover(soon()).devices if device.name == name)


# --- the same as everybody else sees


@pytest.mark.parametrize("profile", ["optane-server", "cxl-server"])
def test_ids_and_attributes_are_those_of_the_other_faces(profile, rendered, environ, tmp_path):
    root = rendered(profile)
    driver = PmemDriver([root], environ)
    ours = {device.id: device for device in driver.discover(soon()).devices}
    kernels = [one for one in discover_host(root).devices if one.kind in KINDS and "/memory/" not in one.id]
    assert set(ours) == {device.id for device in kernels}
    for device in kernels:
        mine = ours[device.id]
        assert (mine.name, mine.kind, mine.aliases, mine.location) == (
            device.name, device.kind, device.aliases, device.location,
        )  # fmt: skip
        for name, attribute in device.attributes.items():
            assert mine.attributes[name] == attribute or not attribute.known, (device.id, name)
    for device in MockPmemDriver(open_machine({"HAL_MACHINE": f"{profile}?state={tmp_path}/mock"})).describe():
        mine = ours.get(device.id) or next(one for one in ours.values() if one.name.endswith(device.name))
        for name in ("set_cookie", "size_bytes", "persistence_domain", "persistent", "mode", "read_only", "serial"):
            theirs = device.value(name)
            if theirs is not None and mine.value(name) is not None:
                assert mine.value(name) == theirs, (device.id, name)


def test_merged_with_the_kernels_view_nothing_is_doubled(driver, root):
    kernels = discover_host(root).devices
    united = merge([(0, kernels), (20, driver.discover(soon()).devices)])
    assert len(united) == len(kernels)
    assert {device.driver for device in united.of_kind(Kind.PMEM)} == {"pmem"}


def test_volatile_memory_is_never_called_persistent(rendered, environ):
    driver = PmemDriver([rendered("cxl-server")], environ)
    volatile = next(one for one in regions(driver) if one.value("persistence_domain") == "none")
    assert volatile.value("persistent") is False
    assert volatile.value("persistence") == "none"


def test_a_hostile_tree_costs_nothing_but_what_it_spoils(rendered, environ):
    discovery = PmemDriver([rendered("hostile")], environ).discover(soon())
    assert all(device.driver == "pmem" for device in discovery.devices)
    assert len({device.id for device in discovery.devices}) == len(discovery.devices)


# --- a tree can be looked at


def test_a_recorded_region_is_not_opened_and_the_hint_says_where(driver):
    device = regions(driver)[0]
    assert not device.allocatable
    for step in (
        lambda: driver.open(device.id, OpenGuard(), soon()),
        lambda: driver.prepare(device.id, Grant(lease="a", fence=1), soon()),
        lambda: driver.scrub(device.id),
    ):
        with pytest.raises(Unsupported, match="HAL_SYSFS_ROOT"):
            step()
    module = next(one for one in driver.discover(soon()).devices if one.kind is Kind.MEMORY)
    with pytest.raises(Unsupported, match="claim the region"):
        driver.open(module.id, OpenGuard(), soon())
    with pytest.raises(DeviceNotFound):
        driver.sample(["pmem-none"], soon())


def test_region_files_belong_to_the_running_machine_and_to_no_tree(root, environ, tmp_path):
    environ["HAL_PMEM_FILES"] = f"{tmp_path}/a.pmem=4M"
    found = PmemDriver([root], environ).discover(soon())
    assert not (tmp_path / "a.pmem").exists()
    assert any("recorded" in problem.detail for problem in found.problems)
    assert not any(problem.fatal for problem in found.problems)


# --- health


@pytest.mark.hal_machine("optane-server")
def test_faults_become_conditions_and_events_and_heal(hal_machine, hal_fault, environ):
    (root,) = host_roots(os.environ)
    driver = PmemDriver([root], environ)
    region, other = regions(driver)
    assert region.health is Health.HEALTHY
    hal_fault(region.name, FaultType.BAD_BLOCK, offset=4096, length=512)
    hal_fault(region.name, FaultType.READ_ONLY)
    found = {one.type: one for one in driver.sample([region.id], soon())}
    assert set(found) == {"BadBlocks", "ReadOnly"}
    assert "1 sectors" in found["BadBlocks"].evidence
    assert found["ReadOnly"].action is Action.REPLACE
    assert not driver.sample([other.id], soon())
    hal_fault.heal()
    assert not driver.sample([region.id], soon())

    looks = 0

    def look(deadline: Deadline):
        nonlocal looks
        looks += 1
        if looks == 2:
            hal_fault(region.name, FaultType.BAD_BLOCK, offset=0, length=512)
        return driver._look(deadline)

    first = next(watch([root], look, soon(), every=0.01))
    assert (first.type, first.subject) == ("condition", region.id)
    assert "BadBlocks" in first.detail

    hal_fault("nmem0", FaultType.FALLEN_OFF_BUS)
    (gone,) = driver.sample([region.id], soon())
    assert (gone.type, gone.severity) == ("NotEnumerated", Severity.FATAL)
    assert not driver.sample([other.id], soon()), "one that is lost hides no other"


def test_flags_of_a_module_are_conditions_of_it_and_of_its_region(driver, edit):
    edit("nmem0/nfit/flags", "save_fail smart_event unheard_of\n")
    edit("nmem1/nfit/flags", "save_fail\n")
    region = region_named(driver, "region0")
    found = {one.type: one for one in region.conditions}
    assert set(found) == {"FailedSave", "SmartEvent"}
    assert found["FailedSave"].severity is Severity.CRITICAL
    assert found["FailedSave"].latched
    assert "nmem0" in found["FailedSave"].evidence
    assert "nmem1" in found["FailedSave"].evidence
    assert {one.type for one in region_named(driver, "nmem1").conditions} == {"FailedSave"}
    assert not region_named(driver, "region1").conditions


def test_a_dirty_shutdown_is_an_increase_that_outlives_the_process(driver, root, environ, edit):
    edit("nmem2/nfit/dirty_shutdown", "3\n")
    assert not region_named(driver, "region0").conditions, "the first count seen is where it is reckoned from"
    edit("nmem2/nfit/dirty_shutdown", "5\n")
    for look in (driver, PmemDriver([root], environ)):
        (condition,) = region_named(look, "region0").conditions
        assert condition.type == "DirtyShutdown"
        assert condition.latched
        assert "from 3 to 5" in condition.evidence


def test_a_locked_module_locks_its_region(driver, edit):
    edit("nmem0/security", "locked\n")
    region = region_named(driver, "region0")
    assert region.value("locked") is True
    assert [one.type for one in region.conditions] == ["Locked"]


# --- the tools, on the running machine

SMART = """
import json
print(json.dumps([{"provider": "ACPI.NFIT", "dev": "ndbus0", "dimms": [
  {"dev": "nmem0", "flag_failed_flush": True, "health": {"health_state": "critical", "temperature_celsius": 71.0,
   "spares_percentage": 8, "spares_threshold": 50, "life_used_percentage": -95, "shutdown_count": 4,
   "alarm_spares": True}},
  {"dev": "nmem1", "health": {"health_state": "ok", "temperature_celsius": 40.0, "spares_percentage": 99}},
]}]))
"""


def fake_tool(folder: Path, name: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    script = folder / name
    script.write_text(f"#!/usr/bin/python3\n{code}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


@pytest.fixture
def tools(tmp_path: Path, environ: dict[str, str]) -> Path:
    environ["PATH"] = f"{tmp_path}/tools:{os.environ['PATH']}"
    for name in ("ndctl", "daxctl", "cxl"):
        fake_tool(tmp_path / "tools", name, "print('[]')")
    return tmp_path / "tools"


def look(environ: dict[str, str], seconds: float = 20.0):
    driver = PmemDriver([HostRoot(node="here")], environ)
    start = time.monotonic()
    found = driver.discover(Deadline.after(seconds))
    return found.devices, found.problems, time.monotonic() - start


@pytest.mark.hal_machine("optane-server")
def test_what_ndctl_knows_of_health_is_told(hal_namespace, tools, environ):
    fake_tool(tools, "ndctl", SMART)
    devices, problems, _ = hal_namespace.run(lambda: look(environ))
    named = {device.name: device for device in devices}
    assert named["nmem0"].value("temperature_celsius") == 71.0
    assert named["nmem0"].why_absent("life_used_percent") is Absence.MALFORMED, "nothing has used -95 per cent"
    assert named["nmem1"].value("spares_percent") == 99
    assert named["nmem2"].why_absent("spares_percent") is Absence.NOT_REPORTED
    region = {one.type: one for one in named["region0"].conditions}
    assert set(region) == {"FailedFlush", "HealthState", "SparesLow"}
    assert region["HealthState"].action is Action.REPLACE
    assert region["SparesLow"].count == 2, "the alarm, and the number below its threshold"
    assert named["region0"].allocatable
    assert not problems


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


BROKEN_TOOLS = {
    "print('not json at all')": Absence.MALFORMED,
    "import sys; sys.stdout.buffer.write(bytes(range(256)) * 100)": Absence.MALFORMED,
    'print(\'[1, null, "x", {"dev": ["nmem0"], "dimms": {"dev": 3}}]\')': Absence.MALFORMED,
    "import sys; sys.exit('ndctl: failed to open: Permission denied')": Absence.PERMISSION,
    "import sys; sys.exit(3)": Absence.ERROR,
    "import time; time.sleep(600)": Absence.TIMEOUT,
    "import os, time; os.fork(); open(f'{__file__}.{os.getpid()}', 'w'); time.sleep(600)": Absence.TIMEOUT,
}


@pytest.mark.hal_machine("optane-server")
def test_a_tool_that_fails_costs_attributes_and_no_device(hal_namespace, tools, environ):
    def work() -> list:
        found = []
        for code in BROKEN_TOOLS:
            fake_tool(tools, "ndctl", code)
            found.append(look(environ, 2.0))
        return found

    for (code, reason), (devices, problems, seconds) in zip(BROKEN_TOOLS.items(), hal_namespace.run(work), strict=True):
        assert [device.name for device in devices if device.kind is Kind.PMEM] == ["region0", "region1"], code
        module = next(device for device in devices if device.name == "nmem0")
        assert module.why_absent("health_state") is reason, code
        assert seconds < 60, "nobody waits for a tool that sleeps"
        assert all(not problem.fatal for problem in problems)
        assert any("ndctl" in problem.source for problem in problems), code
    pids = [int(path.suffix[1:]) for path in tools.glob("ndctl.*")]
    assert pids, "the last one said who it is"
    limit = soon()
    while any(is_running(pid) for pid in pids):
        assert not limit.expired, "a tool that hangs is killed with all it started"
        time.sleep(0.01)


@pytest.mark.hal_machine("cxl-server")
def test_health_flags_of_cxl_memory_are_conditions(hal_namespace, tools, environ):
    fake_tool(
        tools,
        "cxl",
        'print(\'[{"memdevs": [{"memdev": "mem2", "health": {"hw_replacement_needed": true, "media_normal": false,'
        ' "media_data_lost": true, "life_used_percent": 12, "dirty_shutdowns": 2, "temperature": 30}}]}]\')',
    )
    fake_tool(
        tools, "daxctl", 'print(\'[{"id": 0, "devices": [{"chardev": "dax0.0", "mode": "system-ram"}, 7]}, null]\')'
    )
    devices, _, _ = hal_namespace.run(lambda: look(environ))
    named = {device.name: device for device in devices}
    assert named["cxl-region0"].value("mode") == "system-ram"
    assert not named["cxl-region0"].allocatable, "the kernel has taken it as its own"
    assert named["region1"].allocatable
    assert {one.type for one in named["mem2"].conditions} == {"DataLost", "ReplacementNeeded", "HealthState"}
    assert named["mem2"].value("dirty_shutdown_count") == 2
    assert named["mem2"].value("life_used_percent") == 12
    assert {one.type for one in named["region1"].conditions} == {"DataLost", "ReplacementNeeded", "HealthState"}


@pytest.mark.hal_machine("optane-server")
def test_a_namespace_is_planned_and_made_by_ndctl_with_its_words(hal_namespace, tools, environ, tmp_path):
    fake_tool(
        tools,
        "ndctl",
        f"import sys; open({str(tmp_path / 'said')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        "if sys.argv[1] == 'list': print('[]')\n"
        "else: sys.exit('failed to create namespace: Permission denied')",
    )

    def work() -> tuple[list[str], tuple[str, ...], str]:
        from hal.interfaces.pmem import NamespaceMode

        driver = PmemDriver([HostRoot(node="here")], environ)
        device = region_named(driver, "region0")
        with driver.open(device.id, OpenGuard(), soon()) as region:
            names = [namespace.name for namespace in region.namespaces()]
            plan = region.plan_create(NamespaceMode.SECTOR, 1 << 30, sector_bytes=512)
            try:
                region.confirm(plan).wait(soon())
            except AccessDenied as error:
                return names, region.plan_destroy("namespace0.1").destroys, str(error)
        return names, (), ""

    names, destroys, error = hal_namespace.run(work)
    assert names == ["namespace0.0", "namespace0.1"]
    assert "namespace0.1" in destroys[0]
    assert "root alone" in error
    said = (tmp_path / "said").read_text().splitlines()
    (create,) = [line for line in said if line.startswith("create-namespace")]
    assert "--region=region0 --mode=sector --size=1073741824 --uuid=" in create
    assert create.endswith("--sector-size=512")


def test_a_machine_without_any_says_what_to_do(tmp_path):
    (tmp_path / "sys" / "class").mkdir(parents=True)
    readiness = PmemDriver([HostRoot(node="n1", root=str(tmp_path))], {}).readiness()
    assert readiness.cause is Cause.NO_DRIVER
    assert "modprobe" in readiness.remedy
    assert "HAL_PMEM_FILES" in readiness.remedy
