"""What every DPU driver must do.

The checks restart the card, run services on its cores and change its flow table: give a card that nobody needs. On
real hardware override ``bfb`` with an image that the card boots, or declare to lack ``image``; a check that restarts
takes as long as the card does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import ClassVar

import pytest

from hal.drivers.contract import Driver, Grant, Resets, Scrubs
from hal.drivers.guard import GuardPages
from hal.errors import DeviceBusy, InvalidArgument, LeaseEnded, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import (
    BOOT_TIMEOUT_SECONDS,
    BootState,
    Dpu,
    DpuMode,
    FlowAction,
    FlowMatch,
    FlowVerdict,
    ResetLevel,
    Service,
    ServiceSpec,
    ServiceState,
)
from hal.model.device import Device
from hal.model.kind import Kind
from hal.testing.conformance import assert_error_is_for_people, needs
from hal.testing.kinds.dpu_offloads import DpuOffloadConformance


class DpuConformance(DpuOffloadConformance):
    """The checks for DPUs.

    ``lacks`` may name ``reset``, ``scrub``, ``mode``, ``power-cycle``, ``image``, ``console``, ``services``,
    ``service-limits``, ``flows``, ``vfs``, ``nvme`` and ``offload:crc32``, ``offload:sha``, ``offload:compress``,
    ``offload:decompress``, ``offload:aes``.
    """

    interface = Dpu

    boot_seconds: ClassVar[float] = BOOT_TIMEOUT_SECONDS + 30.0

    @pytest.fixture
    def bfb(self) -> bytes:
        """An image that the card boots; this one is only long enough to be told from something else."""
        return b"Bf\x02\x13" + bytes(4096)

    def _until_booted(self) -> Deadline:
        return Deadline.after(self.boot_seconds)

    # The card as a device

    def test_the_device_says_what_it_is(self, device: Device) -> None:
        assert device.kind is Kind.DPU
        assert device.id.startswith("dpu-")
        for name in ("mode", "generation", "cores", "rnics"):
            assert name in device.attributes, f"{name} must be known, or absent with a reason"

    def test_children_are_those_of_discovery(self, dpu: Dpu, device: Device) -> None:
        rnics = device.value("rnics")
        assert dpu.children() == (rnics if isinstance(rnics, tuple) else ())
        assert all(child.startswith("rnic-") for child in dpu.children())

    # Mode, boot, image, console

    def test_mode_is_one_of_the_known_and_like_the_attribute(self, dpu: Dpu, device: Device) -> None:
        assert dpu.mode().current in DpuMode
        assert device.value("mode") in (None, dpu.mode().current)

    @needs("mode")
    def test_a_mode_is_pending_and_can_be_taken_back(self, dpu: Dpu) -> None:
        current = dpu.mode().current
        other = DpuMode.NIC if current is DpuMode.DPU else DpuMode.DPU
        report = dpu.set_mode(other)
        assert (report.current, report.pending) == (current, other), "nothing changes before the power cycle"
        assert dpu.mode() == report
        assert dpu.set_mode(current).pending is None

    @needs("mode")
    @needs("power-cycle")
    def test_a_power_cycle_applies_the_mode_and_nic_mode_has_no_cores(self, dpu: Dpu) -> None:
        before = dpu.mode().current
        dpu.set_mode(DpuMode.NIC)
        dpu.power_cycle(deadline=self._until_booted()).wait(self._until_booted())
        assert dpu.mode().current is DpuMode.NIC
        assert dpu.offloads() == ()
        with pytest.raises(Unsupported):
            dpu.offload("crc32", b"")
        with pytest.raises(Unsupported):
            dpu.services()
        dpu.set_mode(before)
        dpu.power_cycle(deadline=self._until_booted()).wait(self._until_booted())
        assert dpu.mode().current is before

    @needs("reset")
    def test_reset_completes(self, driver: Driver, device: Device) -> None:
        assert isinstance(driver, Resets), f"{driver.name} cannot reset; declare lacks = {{'reset'}}"
        driver.reset(device.id, deadline=self._until_booted()).wait(self._until_booted())

    @needs("scrub")
    def test_scrub_completes(self, driver: Driver, device: Device) -> None:
        assert isinstance(driver, Scrubs), f"{driver.name} cannot scrub; declare lacks = {{'scrub'}}"
        driver.scrub(device.id, deadline=self._until_booted()).wait(self._until_booted())

    @needs("reset")
    def test_a_reset_ends_ready_and_mode_stays(self, dpu: Dpu) -> None:
        mode = dpu.mode()
        for level in ResetLevel:
            dpu.reset(level, deadline=self._until_booted()).wait(self._until_booted())
            assert dpu.boot().state is BootState.READY
            assert dpu.mode() == mode

    @needs("image")
    def test_an_image_is_pushed_and_booted(self, dpu: Dpu, bfb: bytes) -> None:
        operation = dpu.push_image(bfb, deadline=self._until_booted())
        image = operation.wait(self._until_booted())
        assert operation.progress == 1.0
        assert (image.size_bytes, image.sha256) == (len(bfb), hashlib.sha256(bfb).hexdigest())
        assert dpu.image() == image
        assert dpu.boot().state is BootState.READY

    @needs("image")
    def test_what_is_no_image_is_refused_before_it_is_written(self, dpu: Dpu, device: Device) -> None:
        before = dpu.image()
        with pytest.raises(InvalidArgument) as caught:
            dpu.push_image(b"#!/bin/sh\n").wait(Deadline.after(10))
        assert_error_is_for_people(caught.value, device.id)
        assert dpu.image() == before

    @needs("console")
    @needs("reset")
    def test_the_console_tells_of_the_boot(self, dpu: Dpu) -> None:
        before = dpu.read_console()
        start = before[-1].number + 1 if before else 0
        dpu.reset(ResetLevel.HARD, deadline=self._until_booted()).wait(self._until_booted())
        lines = dpu.read_console(start)
        assert lines, "a boot writes to the console"
        assert [line.number for line in lines] == list(range(start, start + len(lines)))
        assert list(dpu.console(start))[: len(lines)] == [line.text for line in lines]

    # Services

    def _deploy(self, dpu: Dpu, script: str, name: str = "conformance", **fields: object) -> Service:
        spec = ServiceSpec(name=name, command=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]
        return dpu.deploy(spec).wait(Deadline.after(30))

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = Deadline.after(30)
        pause = threading.Event()
        while not holds():
            assert not deadline.expired, f"waited in vain: {what}"
            pause.wait(0.01)

    @needs("services")
    def test_a_service_runs_with_its_environment_until_it_is_stopped(self, dpu: Dpu) -> None:
        service = self._deploy(dpu, 'echo "ready $WORD"; exec sleep 600', env={"WORD": "lark"})
        assert service.state is ServiceState.RUNNING
        self._until(lambda: "ready lark" in dpu.logs("conformance"), "the log says what the service wrote")
        stopped = dpu.stop("conformance", deadline=Deadline.after(30)).wait(Deadline.after(30))
        assert stopped.state is ServiceState.STOPPED
        assert [found.state for found in dpu.services()] == [ServiceState.STOPPED]
        assert "ready lark" in dpu.logs("conformance"), "the log outlives the service"

    @needs("services")
    def test_a_service_that_does_not_listen_is_killed_after_the_grace(self, dpu: Dpu) -> None:
        self._deploy(dpu, "trap '' TERM; echo deaf; while :; do sleep 1; done")
        self._until(lambda: "deaf" in dpu.logs("conformance"), "the log says what the service wrote")
        stopped = dpu.stop("conformance", grace_seconds=0.1, deadline=Deadline.after(30)).wait(Deadline.after(30))
        assert stopped.state is ServiceState.STOPPED

    @needs("services")
    def test_a_service_that_ends_says_how(self, dpu: Dpu) -> None:
        self._deploy(dpu, "exit 7")
        self._until(lambda: dpu.services()[0].state is not ServiceState.RUNNING, "the service ends")
        service = dpu.services()[0]
        assert (service.state, service.exit_code) == (ServiceState.EXITED, 7)

    @needs("services")
    def test_a_name_and_a_port_are_used_once(self, dpu: Dpu) -> None:
        self._deploy(dpu, "exec sleep 600", ports=(4791,))
        with pytest.raises(DeviceBusy):
            self._deploy(dpu, "exec sleep 600")
        with pytest.raises(DeviceBusy):
            self._deploy(dpu, "exec sleep 600", name="other", ports=(4791,))

    @needs("services")
    @needs("service-limits")
    def test_cores_are_reserved(self, dpu: Dpu, device: Device) -> None:
        cores = device.value("cores")
        assert isinstance(cores, int)
        with pytest.raises(InvalidArgument):
            self._deploy(dpu, "exec sleep 600", cores=cores + 1)
        self._deploy(dpu, "exec sleep 600", cores=cores)
        with pytest.raises(DeviceBusy):
            self._deploy(dpu, "exec sleep 600", name="other", cores=1)

    @needs("services")
    def test_a_program_that_does_not_exist_is_refused(self, dpu: Dpu, device: Device) -> None:
        with pytest.raises(InvalidArgument) as caught:
            dpu.deploy(ServiceSpec(name="nothing", command=("/no/such/program",))).wait(Deadline.after(30))
        assert_error_is_for_people(caught.value, device.id)

    @needs("services")
    def test_a_reset_ends_services(self, dpu: Dpu) -> None:
        self._deploy(dpu, "exec sleep 600")
        dpu.reset(deadline=self._until_booted()).wait(self._until_booted())
        assert dpu.services() == ()

    @needs("services")
    def test_services_end_with_the_lease(self, driver: Driver, device: Device, pages: GuardPages, dpu: Dpu) -> None:
        self._deploy(dpu, "exec sleep 600")
        driver.unprepare(device.id, Grant(lease="conformance", fence=1_000), Deadline.after(30))
        driver.prepare(device.id, Grant(lease="next", fence=1_001), Deadline.after(30))
        pages.grant(device.id, 1_001)
        with driver.open(device.id, pages.guard(device.id, "next", 1_001), Deadline.after(30)) as later:
            assert isinstance(later, Dpu)
            assert later.services() == ()

    # Flows, virtual functions, NVMe

    @needs("flows")
    def test_flow_rules_are_listed_in_the_order_in_which_they_are_asked(self, dpu: Dpu) -> None:
        before = {rule.id for rule in dpu.flows()}
        drop, passed = FlowAction(verdict=FlowVerdict.DROP), FlowAction(verdict=FlowVerdict.PASS)
        late = dpu.add_flow(FlowMatch(), passed, priority=900)
        early = dpu.add_flow(FlowMatch(destination="10.0.0.0/8", protocol=6), drop, priority=10)
        also = dpu.add_flow(FlowMatch(protocol=17), drop, priority=10)
        ours = [rule for rule in dpu.flows() if rule.id not in before]
        assert [rule.id for rule in ours] == [early.id, also.id, late.id]
        assert ours[0].match == FlowMatch(destination="10.0.0.0/8", protocol=6)
        assert (ours[0].packets, ours[0].bytes) == (0, 0)
        dpu.delete_flow(also.id)
        assert [rule.id for rule in dpu.flows() if rule.id not in before] == [early.id, late.id]
        with pytest.raises(InvalidArgument):
            dpu.delete_flow(also.id)

    @needs("flows")
    def test_a_flow_rule_that_makes_no_sense_is_refused(self, dpu: Dpu, device: Device) -> None:
        wrong = (
            (FlowMatch(source="10.0.0.0/33"), FlowAction(verdict=FlowVerdict.DROP)),
            (FlowMatch(), FlowAction(verdict=FlowVerdict.REDIRECT)),
        )
        for match, action in wrong:
            with pytest.raises(InvalidArgument) as caught:
                dpu.add_flow(match, action)
            assert_error_is_for_people(caught.value, device.id)

    @needs("vfs")
    def test_virtual_functions_are_bounded_and_change_by_way_of_none(self, dpu: Dpu, device: Device) -> None:
        most = dpu.max_vf_count()
        assert most >= 2, "a card with no virtual functions declares to lack vfs"
        dpu.set_vf_count(0)
        dpu.set_vf_count(2)
        assert dpu.vf_count() == 2
        with pytest.raises(DeviceBusy):
            dpu.set_vf_count(1)
        for count in (-1, most + 1):
            with pytest.raises(InvalidArgument) as caught:
                dpu.set_vf_count(count)
            assert_error_is_for_people(caught.value, device.id)
        dpu.set_vf_count(0)
        assert dpu.vf_count() == 0

    @needs("nvme")
    def test_namespaces_are_shown_and_taken_away(self, dpu: Dpu) -> None:
        left = dict(dpu.nvme_backings())
        backing, room = max(left.items(), key=lambda item: item[1])
        size = min(room, 1 << 30) // 512 * 512
        shown = dpu.expose_nvme("conformance", size_bytes=size, backing=backing)
        assert shown in dpu.nvme_exposures()
        assert dpu.nvme_backings()[backing] <= room - size
        with pytest.raises(DeviceBusy):
            dpu.expose_nvme("conformance", size_bytes=512, backing=backing)
        dpu.remove_nvme("conformance")
        assert shown not in dpu.nvme_exposures()
        with pytest.raises(InvalidArgument):
            dpu.remove_nvme("conformance")

    @needs("nvme")
    def test_more_than_there_is_cannot_be_shown(self, dpu: Dpu) -> None:
        for backing, room in dpu.nvme_backings().items():
            with pytest.raises(DeviceBusy):
                dpu.expose_nvme("too-much", size_bytes=(room // 512 + 1) * 512, backing=backing)
        with pytest.raises(InvalidArgument):
            dpu.expose_nvme("nowhere", size_bytes=512, backing="no-such-backing")

    @needs("scrub")
    @needs("flows")
    @needs("vfs")
    def test_a_scrub_leaves_nothing_of_the_holder(self, driver: Driver, device: Device, dpu: Dpu) -> None:
        assert isinstance(driver, Scrubs)
        dpu.add_flow(FlowMatch(), FlowAction(verdict=FlowVerdict.DROP))
        dpu.set_vf_count(2)
        driver.scrub(device.id, deadline=self._until_booted()).wait(self._until_booted())
        assert dpu.flows() == ()
        assert dpu.vf_count() == 0

    # The lease

    def test_every_verb_ends_with_the_lease(self, dpu: Dpu, device: Device, pages: GuardPages, grant: Grant) -> None:
        pages.revoke(device.id, grant.fence)
        verbs = (
            dpu.mode,
            dpu.boot,
            dpu.reset,
            dpu.power_cycle,
            dpu.image,
            lambda: dpu.push_image(b""),
            dpu.read_console,
            lambda: list(dpu.console()),
            lambda: dpu.deploy(ServiceSpec(name="late", command=("true",))),
            dpu.services,
            lambda: dpu.stop("late"),
            lambda: dpu.logs("late"),
            dpu.offloads,
            lambda: dpu.offload("crc32", b""),
            dpu.flows,
            lambda: dpu.add_flow(FlowMatch(), FlowAction(verdict=FlowVerdict.DROP)),
            lambda: dpu.delete_flow(1),
            dpu.vf_count,
            dpu.max_vf_count,
            lambda: dpu.set_vf_count(0),
            lambda: dpu.set_mode(DpuMode.DPU),
            dpu.nvme_exposures,
            dpu.nvme_backings,
            lambda: dpu.expose_nvme("late", size_bytes=512),
            lambda: dpu.remove_nvme("late"),
            dpu.telemetry,
            dpu.children,
        )
        for verb in verbs:
            with pytest.raises(LeaseEnded):
                verb()

    def test_telemetry_uses_the_agreed_names(self, dpu: Dpu) -> None:
        readings = dpu.telemetry()
        for name in (
            "temperature_celsius",
            "power_watts",
            "arm_utilization_percent",
            "memory_used_bytes",
            "uptime_seconds",
        ):
            assert name in readings, f"{name} must be measured, or absent with a reason"
