"""The mock DPU: conformance, discovery, modes, and what a card has to give away."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.drivers.contract import Grant
from hal.drivers.guard import OpenGuard
from hal.errors import (
    AccessDenied,
    DeviceNotFound,
    Unsupported,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import (
    BOOT_TIMEOUT_SECONDS,
    BootState,
    DpuMode,
    FlowAction,
    FlowMatch,
    FlowVerdict,
    ResetLevel,
    ServiceSpec,
)
from hal.model.attributes import Absence
from hal.model.health import Action, Health
from hal.testing.kinds.dpu import DpuConformance
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.dpu_state import begin_boot, bmc_set_mode, card_of_rnic
from hal_mocks.machine import Machine
from mocks.tests.cards import BFB, SOON, graph, open_card


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "state", VirtualClock())


@pytest.fixture
def driver(machine: Machine) -> MockDpuDriver:
    return MockDpuDriver(machine)


@pytest.fixture
def dpu(machine: Machine) -> MockDpu:
    return open_card(machine)


class TestBlueField3(DpuConformance):
    lacks = frozenset({"offload:compress"})

    @pytest.fixture
    def driver(self, machine: Machine) -> MockDpuDriver:
        return MockDpuDriver(machine)


class TestBlueField2(DpuConformance):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> MockDpuDriver:
        return MockDpuDriver(
            Machine(graph(generation="BlueField-2", offloads=(), cores=8), tmp_path / "state", VirtualClock())
        )


class _Broken(MockDpu):
    def set_mode(self, mode, *, deadline=None):  # applies at once
        with self._card.locked():
            self._card.change(mode=mode)
        return self.mode()

    def offload(self, name, buffer, *, deadline=None, **parameters):  # forgets the lease
        return super().offload("crc32", bytes(reversed(bytes(buffer))))

    def flows(self, *, deadline=None):
        return tuple(reversed(super().flows(deadline=deadline)))


class _Driver(MockDpuDriver):
    def open(self, device_id, guard, deadline):
        return _Broken(self.machine, self.find(device_id), guard)

    def scrub(self, device_id, *, deadline=None):
        return super().reset("dpu-of-somebody-else", deadline=deadline)


def test_the_kit_goes_red_for_a_broken_mock(machine: Machine) -> None:
    kit = TestBlueField3()
    driver = _Driver(machine)
    device = driver.discover(Deadline.after(SOON)).devices[0]
    driver.prepare(device.id, Grant(lease="conformance", fence=1_000), Deadline.after(SOON))
    broken = driver.open(device.id, OpenGuard(fence=1_000), Deadline.after(SOON))
    with pytest.raises(AssertionError):
        kit.test_crc32_is_that_of_ethernet(broken)
    with pytest.raises(AssertionError):
        kit.test_flow_rules_are_listed_in_the_order_in_which_they_are_asked(broken)
    with pytest.raises(AssertionError):
        kit.test_a_mode_is_pending_and_can_be_taken_back(broken)
    with pytest.raises(DeviceNotFound):
        kit.test_scrub_completes(driver, device)


class TestDiscovery:
    def test_a_card_is_found_with_its_nics_and_its_names(self, machine: Machine, driver: MockDpuDriver) -> None:
        first, second = driver.discover(Deadline.after(SOON)).devices
        host = machine.graph.hosts[0]
        assert first.id == f"dpu-{host.dpus[0].serial}"
        assert first.allocatable
        assert first.health is Health.HEALTHY
        assert first.value("mode") == "dpu"
        assert second.value("mode") == "nic"
        nics = [rnic for rnic in host.rnics if rnic.dpu == "dpu0"]
        assert first.value("rnics") == tuple("rnic-" + rnic.node_guid.replace(":", "") for rnic in nics)
        network, management = host.dpus[0].pci[:-1], host.dpus[0].pci[-1]
        assert {f"pci:{management}", "rshim:rshim0", f"serial:{host.dpus[0].serial}"} == set(first.aliases)
        assert first.location.pci_address == management
        assert first.value("functions") == (*network, management)
        assert [card_of_rnic(machine, rnic.name, host.name) for rnic in nics] == [first.id, first.id]
        assert card_of_rnic(machine, "mlx5_99", host.name) is None

    def test_what_a_card_computes_depends_on_its_generation_and_mode(self, tmp_path: Path) -> None:
        for generation, has_compress in (("BlueField-2", True), ("BlueField-3", False)):
            machine = Machine(graph(generation=generation, offloads=()), tmp_path / generation, VirtualClock())
            names = {offload.name for offload in open_card(machine).offloads()}
            assert ("compress" in names) is has_compress
            assert "regex" not in names
        listed = Machine(graph(offloads=("sha256", "regex")), tmp_path / "listed", VirtualClock())
        assert [offload.name for offload in open_card(listed).offloads()] == ["sha256"]


class TestModes:
    def test_a_pending_mode_waits_through_resets_for_the_power_cycle(self, dpu: MockDpu) -> None:
        dpu.set_mode(DpuMode.NIC)
        dpu.reset(ResetLevel.HARD).wait(Deadline.after(SOON))
        assert dpu.mode().current is DpuMode.DPU
        assert dpu.mode().pending is DpuMode.NIC
        dpu.power_cycle().wait(Deadline.after(SOON))
        assert dpu.mode().current is DpuMode.NIC
        assert dpu.mode().pending is None

    def test_a_pending_mode_is_seen_by_discovery(self, dpu: MockDpu, driver: MockDpuDriver) -> None:
        dpu.set_mode(DpuMode.NIC)
        device = driver.discover(Deadline.after(SOON)).devices[0]
        assert device.value("pending_mode") == "nic"
        (condition,) = device.conditions
        assert (condition.type, condition.action) == ("ModePending", Action.POWER_CYCLE)
        assert device.health is Health.HEALTHY

    def test_a_nic_has_functions_and_flows_but_no_cores(self, dpu: MockDpu) -> None:
        dpu.set_mode(DpuMode.NIC)
        dpu.power_cycle().wait(Deadline.after(SOON))
        for verb in (
            lambda: dpu.deploy(ServiceSpec(name="a", command=("true",))),
            dpu.services,
            lambda: dpu.offload("crc32", b""),
            lambda: dpu.expose_nvme("a", size_bytes=512),
        ):
            with pytest.raises(Unsupported):
                verb()
        dpu.set_vf_count(4)
        dpu.add_flow(FlowMatch(), FlowAction(verdict=FlowVerdict.DROP))
        assert dpu.telemetry()["arm_utilization_percent"].absent is Absence.UNSUPPORTED
        assert dpu.telemetry()["temperature_celsius"].known

    def test_a_restricted_card_denies_its_host_everything(self, tmp_path: Path) -> None:
        machine = Machine(graph(privileged=False), tmp_path / "state", VirtualClock())
        driver = MockDpuDriver(machine)
        device = driver.discover(Deadline.after(SOON)).devices[0]
        assert not device.allocatable
        assert device.value("mode") == "restricted"
        assert device.why_absent("rshim") is Absence.PERMISSION
        assert not [name for name in device.aliases if name.startswith("rshim:")]
        with pytest.raises(AccessDenied):
            driver.prepare(device.id, Grant(lease="a", fence=1), Deadline.after(SOON))
        with pytest.raises(AccessDenied):
            driver.reset(device.id)
        dpu = driver.open(device.id, OpenGuard(), Deadline.after(SOON))
        for verb in (
            dpu.boot,
            dpu.reset,
            dpu.power_cycle,
            dpu.image,
            dpu.console,
            dpu.services,
            dpu.offloads,
            dpu.flows,
            dpu.vf_count,
            dpu.nvme_exposures,
            lambda: dpu.set_mode(DpuMode.DPU),
            lambda: dpu.push_image(BFB),
        ):
            with pytest.raises(AccessDenied):
                verb()
        assert dpu.mode().current is DpuMode.RESTRICTED
        assert dpu.telemetry()["arm_utilization_percent"].absent is Absence.PERMISSION

    def test_the_cards_own_controller_leads_out_of_restricted_mode(self, tmp_path: Path) -> None:
        machine = Machine(graph(privileged=False), tmp_path / "state", VirtualClock())
        driver = MockDpuDriver(machine)
        device = driver.discover(Deadline.after(SOON)).devices[0]
        bmc_set_mode(machine, device.id, DpuMode.DPU)
        begin_boot(machine, device.id, BootState.OFF)
        machine.clock.sleep(BOOT_TIMEOUT_SECONDS)
        assert driver.discover(Deadline.after(SOON)).devices[0].allocatable
        assert open_card(machine).mode().current is DpuMode.DPU


def test_a_reset_forgets_functions_flows_and_exposures(dpu: MockDpu) -> None:
    dpu.set_vf_count(3)
    dpu.add_flow(FlowMatch(), FlowAction(verdict=FlowVerdict.DROP))
    dpu.expose_nvme("a", size_bytes=1 << 20, backing="nvme0")
    assert dpu.nvme_exposures()[0].nsid == 1
    dpu.reset().wait(Deadline.after(SOON))
    assert (dpu.vf_count(), dpu.flows(), dpu.nvme_exposures()) == (0, (), ())


def test_namespace_ids_are_used_again_and_memory_is_counted(dpu: MockDpu) -> None:
    whole = dpu.nvme_backings()["memory"]
    for name in ("a", "b", "c"):
        dpu.expose_nvme(name, size_bytes=1 << 20)
    dpu.remove_nvme("b")
    assert dpu.expose_nvme("d", size_bytes=512).nsid == 2
    assert dpu.nvme_backings()["memory"] == whole - 2 * (1 << 20) - 512
    assert dpu.telemetry()["memory_used_bytes"].value > 2 << 20
