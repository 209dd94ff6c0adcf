"""The mock of persistent memory: conformance, faults, locks, and what other processes see."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import OpenGuard
from hal.errors import AccessDenied, DeadlineExceeded, DeviceGone, HalError, InvalidArgument, UncorrectableError
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import ByteRange, NamespaceMode
from hal.model.attributes import Absence
from hal.model.device import Device
from hal.model.health import Health
from hal.model.kind import Kind
from hal.testing.kinds.pmem import Inject, PmemConformance
from hal_mocks.clock import VirtualClock
from hal_mocks.faults import FaultType
from hal_mocks.graph import Dimm, Graph, Host, Numa, PmemNamespace, PmemRegion
from hal_mocks.machine import Machine
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.pmem_crash import power_failure
from hal_mocks.pmem_mapping import MockMapping

MIB = 1 << 20


def region(name: str = "region0", cookie: str = "0xa1b2c3d4e5f60718", domain: str = "memory_controller", **more):
    locked = more.pop("locked", False)
    return PmemRegion(
        name=name,
        numa_node=0,
        set_cookie=cookie,
        size_bytes=more.pop("size_bytes", 64 * MIB),
        persistence_domain=domain,
        media="optane",
        dimms=(
            Dimm(
                name=f"nmem{name[-1]}",
                id="8089-a2-2031-0001",
                serial=f"0x0000c0d{name[-1]}",
                capacity_bytes=64 * MIB,
                media="optane",
                locked=locked,
            ),
        ),
        namespaces=(
            PmemNamespace(name=f"namespace{name[-1]}.0", uuid=f"uuid-{name}", mode="devdax", size_bytes=8 * MIB),
        ),
        **more,
    )


def graph(*regions: PmemRegion) -> Graph:
    host = Host(name="node0", numa=(Numa(id=0, cpus="0-1", memory_bytes=1 << 30),), pmem=regions or (region(),))
    return Graph(name="pmem-test", hosts=(host,))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "machine", VirtualClock())


def opened(machine: Machine, index: int = 0):
    driver = MockPmemDriver(machine)
    device = driver.describe()[index]
    return driver.open(device.id, OpenGuard(), Deadline.after(10))


class TestMockPmem(PmemConformance):
    lacks = frozenset({"reset"})

    @pytest.fixture
    def driver(self, machine: Machine) -> Driver:
        return MockPmemDriver(machine)

    @pytest.fixture
    def inject_poison(self, machine: Machine, device: Device) -> Inject:
        return lambda offset, length: machine.inject(device.id, FaultType.BAD_BLOCK, offset=offset, length=length)

    @pytest.fixture
    def cut_power(self, machine: Machine, device: Device) -> Callable[[], None]:
        return lambda: power_failure(machine, device.id, seed=1)


class TestCpuCacheDomain(TestMockPmem):
    @pytest.fixture
    def machine(self, tmp_path: Path) -> Machine:
        return Machine(graph(region(domain="cpu_cache")), tmp_path / "machine", VirtualClock())


class TestVolatileMemory(TestMockPmem):
    """Volatile CXL memory has the same interface; only nothing survives."""

    lacks = frozenset({"reset", "power-failure"})

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Machine:
        return Machine(graph(region(domain="none")), tmp_path / "machine", VirtualClock())


def test_the_kit_goes_red_for_a_mapping_that_reads_poison_silently(machine, monkeypatch):
    monkeypatch.setattr(MockMapping, "_refuse_poison", lambda *_: None)
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    check = PmemConformance().test_poison_is_never_read_silently

    def inject(offset, length):
        machine.inject(pmem.device.id, FaultType.BAD_BLOCK, offset=offset, length=length)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(pmem, mapping, pmem.device, inject)


def test_the_kit_goes_red_for_a_driver_that_does_not_scrub(machine, monkeypatch, tmp_path):
    from hal.drivers.guard import GuardPages
    from hal.interfaces.operation import Operation

    monkeypatch.setattr(MockPmemDriver, "scrub", lambda *_, **__: Operation.completed(None))
    driver = MockPmemDriver(machine)
    device = driver.describe()[0]
    pages = GuardPages(tmp_path / "pages")
    pages.grant(device.id, 1)
    grant = Grant(lease="kit", fence=1)
    handle = driver.open(device.id, pages.guard(device.id, "kit", 1), Deadline.after(10))
    with pytest.raises(AssertionError):
        PmemConformance().test_scrubbing_leaves_nothing_of_the_holder(
            driver, device, pages, grant, handle.map("namespace0.0"), handle
        )


def test_a_region_is_found_with_its_dimms(machine):
    devices = MockPmemDriver(machine).discover(Deadline.after(1)).devices
    found = {device.id: device for device in devices}
    pmem = found["pmem-a1b2c3d4e5f60718"]
    assert (pmem.kind, pmem.name, pmem.allocatable, pmem.parent) == (Kind.PMEM, "region0", True, None)
    assert pmem.value("mode") == "devdax"
    assert pmem.value("dimms") == ("dimm-0x0000c0d0",)
    dimm = found["dimm-0x0000c0d0"]
    assert (dimm.kind, dimm.allocatable) == (Kind.MEMORY, False)


def test_a_region_without_a_namespace_has_no_mode_and_says_so(tmp_path):
    import msgspec

    bare = msgspec.structs.replace(region(), namespaces=())
    machine = Machine(graph(bare), tmp_path, VirtualClock())
    assert MockPmemDriver(machine).describe()[0].why_absent("mode") is Absence.NOT_REPORTED


def test_half_a_tebibyte_costs_nothing(tmp_path):
    machine = Machine(graph(region(size_bytes=512 << 30)), tmp_path, VirtualClock())
    pmem = opened(machine)
    pmem.confirm(pmem.plan_create(NamespaceMode.DEVDAX, 500 << 30)).wait()
    with pmem.map("namespace0.1") as mapping:
        mapping.memcpy_persist(499 << 30, b"far away")
    power_failure(machine, seed=3)
    with opened(machine).map("namespace0.1") as mapping:
        assert mapping.read(499 << 30, 8) == b"far away"
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file()) < 4 * MIB


def test_bytes_survive_a_killed_process(machine, tmp_path):
    script = (
        "import os, signal, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "from test_pmem import *\n"
        "mapping = opened(Machine(graph(), Path(sys.argv[2]), VirtualClock())).map('namespace0.0')\n"
        "mapping.buffer[0:7] = b'written'\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, __file__, str(machine.state.folder)], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    pmem = opened(machine)
    with pmem.map("namespace0.0") as mapping:
        assert mapping.read(0, 7) == b"written"
    assert pmem.telemetry()["dirty_shutdown_count"].value == 0
    pmem.plan_destroy("namespace0.0")  # the dead process has nothing mapped any more


def test_another_process_sees_the_bytes_and_the_namespaces(machine):
    pmem = opened(machine)
    made = pmem.confirm(pmem.plan_create(NamespaceMode.FSDAX, 4 * MIB)).wait()
    with pmem.map(made.name) as mapping:
        mapping.buffer[0:4] = b"both"
        script = (
            "import os, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
            "from test_pmem import *\n"
            "pmem = opened(Machine(graph(), Path(sys.argv[2]), VirtualClock()))\n"
            "mapping = pmem.map(sys.argv[3])\n"
            "assert mapping.read(0, 4) == b'both'\n"
            "mapping.buffer[0:4] = b'BOTH'\n"
        )
        subprocess.run(
            [sys.executable, "-c", script, __file__, str(machine.state.folder), made.uuid], timeout=60, check=True
        )
        assert mapping.read(0, 4) == b"BOTH"


def test_a_locked_region_is_listed_but_not_opened(tmp_path):
    machine = Machine(graph(region(locked=True)), tmp_path, VirtualClock())
    driver = MockPmemDriver(machine)
    device = driver.discover(Deadline.after(1)).devices[0]
    assert any(condition.blocks_new_leases for condition in device.conditions)
    assert device.value("locked") is True
    with pytest.raises(AccessDenied, match="unlock"):
        driver.open(device.id, OpenGuard(), Deadline.after(1))
    with pytest.raises(AccessDenied):
        driver.prepare(device.id, Grant(lease="a", fence=1), Deadline.after(1))


def test_a_bad_block_degrades_the_region_until_it_is_cleared(machine):
    driver = MockPmemDriver(machine)
    pmem = opened(machine)
    machine.inject(pmem.device.id, FaultType.BAD_BLOCK, offset=1000, length=100)
    assert driver.find(pmem.device.id).health is Health.DEGRADED
    assert pmem.namespaces()[0].bad_blocks == (ByteRange(768, 512),)
    with pmem.map("namespace0.0") as mapping:
        mapping.clear_poison(768, 512)
    assert driver.find(pmem.device.id).health is Health.HEALTHY
    assert not pmem.bad_blocks()


def test_the_same_place_can_go_bad_again(machine):
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    for _ in range(2):
        machine.inject(pmem.device.id, FaultType.BAD_BLOCK, offset=0, length=256)
        with pytest.raises(UncorrectableError):
            mapping.read(0, 1)
        mapping.clear_poison(0, 256)
        assert mapping.read(0, 1) == b"\0"


def test_poison_survives_a_power_failure_and_a_scrub(machine):
    pmem = opened(machine)
    machine.inject(pmem.device.id, FaultType.BAD_BLOCK, offset=512, length=256)
    power_failure(machine, seed=1)
    assert opened(machine).bad_blocks() == (ByteRange(512, 256),)
    MockPmemDriver(machine).scrub(pmem.device.id).wait()
    assert opened(machine).bad_blocks() == (ByteRange(512, 256),)


def test_writing_onto_poison_is_refused(machine):
    pmem = opened(machine)
    machine.inject(pmem.device.id, FaultType.BAD_BLOCK, offset=0, length=1)
    with pmem.map("namespace0.0") as mapping, pytest.raises(UncorrectableError):
        mapping.memcpy_persist(255, b"ab")


def test_a_region_gone_read_only_takes_no_stores_but_gives_its_data(machine):
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    mapping.memcpy_persist(0, b"save me")
    machine.inject(pmem.device.id, FaultType.READ_ONLY)
    assert pmem.region().read_only
    for step in (
        lambda: mapping.persist(0, 8),
        lambda: mapping.memcpy_persist(0, b"no"),
        lambda: pmem.map("namespace0.0"),
        lambda: pmem.confirm(pmem.plan_create(NamespaceMode.DEVDAX, 2 * MIB)).wait(),
    ):
        with pytest.raises(AccessDenied):
            step()
    assert mapping.read(0, 7) == b"save me"
    with pmem.map("namespace0.0", read_only=True) as reading:
        assert reading.read(0, 7) == b"save me"
    assert MockPmemDriver(machine).find(pmem.device.id).health is Health.SUSPECT


def test_a_lost_region_ends_every_verb_and_comes_back(machine):
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    mapping.memcpy_persist(0, b"kept")
    machine.inject(pmem.device.id, FaultType.LOST)
    for step in (lambda: mapping.read(0, 4), pmem.namespaces, lambda: opened(machine)):
        with pytest.raises(DeviceGone):
            step()
    machine.heal(pmem.device.id)
    assert mapping.read(0, 4) == b"kept"


def test_a_lost_dimm_takes_its_region_along(machine):
    driver = MockPmemDriver(machine)
    pmem = opened(machine)
    machine.inject("dimm-0x0000c0d0", FaultType.LOST)
    assert driver.find(pmem.device.id).health is Health.FAILED
    for step in (
        pmem.namespaces,
        lambda: opened(machine),
        lambda: driver.prepare(pmem.device.id, Grant(lease="a", fence=1), Deadline.after(1)),
    ):
        with pytest.raises(DeviceGone):
            step()
    machine.heal()
    assert pmem.namespaces()


def test_a_hung_region_costs_the_deadline_and_a_slow_one_time(machine):
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    machine.inject(pmem.device.id, FaultType.SLOW, seconds=2.0)
    before = machine.clock.now()
    mapping.read(0, 1)
    assert machine.clock.now() == before + 2.0
    machine.heal()
    machine.inject(pmem.device.id, FaultType.HANG)
    with pytest.raises(DeadlineExceeded):
        mapping.read(0, 1, deadline=Deadline.after(5))


def test_a_changed_plan_is_refused(machine):
    import msgspec

    pmem = opened(machine)
    plan = pmem.plan_create(NamespaceMode.DEVDAX, 2 * MIB)
    larger = msgspec.structs.replace(plan, namespace=msgspec.structs.replace(plan.namespace, size_bytes=32 * MIB))
    with pytest.raises(InvalidArgument):
        pmem.confirm(larger).wait()


def test_a_plan_of_another_region_is_refused(tmp_path):
    machine = Machine(graph(region(), region("region1", "0x1")), tmp_path, VirtualClock())
    plan = opened(machine, 0).plan_create(NamespaceMode.DEVDAX, 2 * MIB)
    with pytest.raises(InvalidArgument):
        opened(machine, 1).confirm(plan).wait()


def test_a_plan_does_not_survive_a_power_failure(machine):
    plan = opened(machine).plan_destroy("namespace0.0")
    power_failure(machine, seed=0)
    with pytest.raises(InvalidArgument):
        opened(machine).confirm(plan).wait()


def test_what_a_destroyed_namespace_held_is_gone(machine):
    pmem = opened(machine)
    with pmem.map("namespace0.0") as mapping:
        mapping.memcpy_persist(4096, b"secret")
    pmem.confirm(pmem.plan_destroy("namespace0.0")).wait()
    pmem.confirm(pmem.plan_create(NamespaceMode.DEVDAX, 8 * MIB)).wait()
    with pmem.map("namespace0.0") as mapping:
        assert mapping.read(4096, 6) == bytes(6)
    power_failure(machine, seed=1)
    with opened(machine).map("namespace0.0") as mapping:
        assert mapping.read(4096, 6) == bytes(6)


def test_a_holder_that_keeps_its_mapping_cannot_reach_the_next_one(machine):
    driver = MockPmemDriver(machine)
    stale = opened(machine)
    mapping = stale.map("namespace0.0")
    mapping.memcpy_persist(0, b"before")
    driver.unprepare(stale.device.id, Grant(lease="old", fence=1), Deadline.after(1))
    mapping.buffer[0:6] = b"scribb"
    with opened(machine).map("namespace0.0") as fresh:
        assert fresh.read(0, 6) == b"before"
    with pytest.raises(DeviceGone):
        mapping.read(0, 6)


def test_heat_degrades_a_region_and_shows_in_its_telemetry(machine):
    pmem = opened(machine)
    machine.inject(pmem.device.id, FaultType.THERMAL)
    assert MockPmemDriver(machine).find(pmem.device.id).health is Health.DEGRADED
    assert pmem.telemetry()["temperature_celsius"].value > 85


def test_a_region_that_lies_says_what_the_fault_says(machine):
    pmem = opened(machine)
    machine.inject(pmem.device.id, FaultType.LIE, attribute="media", value="unobtainium")
    assert MockPmemDriver(machine).find(pmem.device.id).value("media") == "unobtainium"
    machine.inject(pmem.device.id, FaultType.LIE, attribute="spares_percent", value="3")
    assert pmem.telemetry()["spares_percent"].value == 3


def test_every_error_of_the_mock_names_the_device(machine):
    pmem = opened(machine)
    mapping = pmem.map("namespace0.0")
    for step in (lambda: pmem.map("x"), lambda: mapping.read(-1, 1), lambda: pmem.plan_create(NamespaceMode.RAW, 1)):
        with pytest.raises(HalError) as caught:
            step()
        assert caught.value.device == pmem.device.id
