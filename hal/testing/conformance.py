"""What every driver must do, whatever its kind. A kind adds its own in :mod:`hal.testing.kinds`.

A plugin author writes::

    class TestAcme(GpuConformance):
        lacks = frozenset({"reset"})

        @pytest.fixture
        def driver(self, tmp_path):
            return AcmeDriver(fake_tree(tmp_path, cards=2))

Checks are ordinary pytest tests. One that needs an optional ability carries ``@needs("ability")``; an ability named in
``lacks`` is not asked for and is listed at the end of the run. A lack that is declared but untrue fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from hal.drivers.contract import Driver, Grant, Readiness, Resets, Scrubs
from hal.drivers.guard import GuardPages
from hal.errors import DeadlineExceeded, DeviceNotFound, HalError, InvalidArgument, LeaseEnded, StaleFence
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Attribute
from hal.model.device import Device
from hal.model.health import Condition

_Test = TypeVar("_Test", bound=Callable[..., object])


def needs(ability: str) -> Callable[[_Test], _Test]:
    """Mark a check as wanting an optional ability, which a driver may declare to lack."""

    def mark(test: _Test) -> _Test:
        marked: _Test = pytest.mark.hal_needs(ability)(test)
        return marked

    return mark


class DriverConformance:
    """The checks for all kinds. Give the ``driver`` fixture; it must find at least one allocatable device."""

    lacks: ClassVar[frozenset[str]] = frozenset()
    interface: ClassVar[type] = Handle
    facets: ClassVar[dict[str, type]] = {"reset": Resets, "scrub": Scrubs}
    unknown_id: ClassVar[str] = "no-such-device"

    @pytest.fixture
    def driver(self) -> Driver:
        """Override: a driver that is ready, over real or pretended hardware."""
        raise AssertionError(f"{type(self).__name__} must give a fixture 'driver'")

    @pytest.fixture
    def device(self, driver: Driver) -> Device:
        """The first device that can be leased; override to choose another."""
        for device in driver.discover(Deadline.after(10)).devices:
            if device.allocatable:
                return device
        raise AssertionError(f"driver {driver.name} discovers no allocatable device to examine")

    @pytest.fixture
    def pages(self, tmp_path: Path) -> GuardPages:
        """Where the leases of the examination live."""
        return GuardPages(tmp_path / "guards")

    @pytest.fixture
    def grant(self, driver: Driver, device: Device, pages: GuardPages) -> Iterator[Grant]:
        """A prepared device, unprepared at the end."""
        grant = Grant(lease="conformance", fence=1_000)
        driver.prepare(device.id, grant, Deadline.after(10))
        pages.grant(device.id, grant.fence)
        yield grant
        pages.revoke(device.id, grant.fence)
        driver.unprepare(device.id, Grant(lease="conformance", fence=1_000_000), Deadline.after(10))

    @pytest.fixture
    def handle(self, driver: Driver, device: Device, pages: GuardPages, grant: Grant) -> Iterator[Handle]:
        """The device opened under the grant."""
        handle = driver.open(device.id, pages.guard(device.id, grant.lease, grant.fence), Deadline.after(10))
        yield handle
        handle.close()

    def test_readiness_is_a_value_with_a_cause(self, driver: Driver) -> None:
        readiness = driver.readiness()
        assert isinstance(readiness, Readiness)
        assert readiness.ready or readiness.remedy or readiness.detail, "not ready must say why and what to do"

    def test_discovery_twice_finds_the_same(self, driver: Driver) -> None:
        first = driver.discover(Deadline.after(10)).devices
        again = driver.discover(Deadline.after(10)).devices
        assert [d.id for d in first] == [d.id for d in again]
        assert len({d.id for d in first}) == len(first), "ids are unique"

    def test_every_attribute_has_a_source_or_a_reason(self, driver: Driver) -> None:
        for device in driver.discover(Deadline.after(10)).devices:
            for name, attribute in device.attributes.items():
                _assert_honest(device.id, name, attribute)

    def test_parents_exist_or_are_the_hosts(self, driver: Driver) -> None:
        devices = driver.discover(Deadline.after(10)).devices
        for device in devices:
            assert device.parent != device.id, f"{device.id} is its own parent"
            assert device.driver == driver.name

    def test_sample_gives_conditions_of_the_devices_asked_for(self, driver: Driver, device: Device) -> None:
        for condition in driver.sample([device.id], Deadline.after(10)):
            assert isinstance(condition, Condition)
            assert condition.device == device.id
            assert condition.evidence, "a condition without evidence convinces nobody"
            assert condition.source

    def test_an_unknown_device_is_not_found(self, driver: Driver) -> None:
        with pytest.raises(DeviceNotFound) as caught:
            driver.prepare(self.unknown_id, Grant(lease="x", fence=1), Deadline.after(10))
        assert self.unknown_id in str(caught.value), "the error names the device"

    def test_prepare_and_unprepare_twice_are_no_error(self, driver: Driver, device: Device) -> None:
        grant = Grant(lease="twice", fence=7)
        for verb in (driver.prepare, driver.prepare, driver.unprepare, driver.unprepare):
            verb(device.id, grant, Deadline.after(10))

    def test_an_older_fence_is_refused(self, driver: Driver, device: Device) -> None:
        driver.prepare(device.id, Grant(lease="new", fence=20), Deadline.after(10))
        with pytest.raises(StaleFence):
            driver.prepare(device.id, Grant(lease="old", fence=19), Deadline.after(10))
        with pytest.raises(StaleFence):
            driver.unprepare(device.id, Grant(lease="old", fence=19), Deadline.after(10))
        driver.unprepare(device.id, Grant(lease="new", fence=20), Deadline.after(10))

    def test_a_handle_knows_its_device(self, handle: Handle, device: Device) -> None:
        assert isinstance(handle, Handle)
        assert handle.device.id == device.id

    def test_telemetry_is_honest(self, handle: Handle, device: Device) -> None:
        for name, attribute in handle.telemetry(deadline=Deadline.after(10)).items():
            _assert_honest(device.id, name, attribute)

    def test_a_handle_dies_with_its_lease(
        self, handle: Handle, device: Device, pages: GuardPages, grant: Grant
    ) -> None:
        handle.telemetry()
        pages.revoke(device.id, grant.fence)
        with pytest.raises(LeaseEnded):
            handle.telemetry()

    def test_a_handle_dies_when_its_lease_expires(
        self, handle: Handle, device: Device, pages: GuardPages, grant: Grant
    ) -> None:
        pages.grant(device.id, grant.fence, expires_boottime_ns=1)
        with pytest.raises(LeaseEnded):
            handle.telemetry()

    def test_a_later_holder_ends_the_earlier(self, handle: Handle, device: Device, pages: GuardPages) -> None:
        pages.grant(device.id, 2_000)
        with pytest.raises(LeaseEnded):
            handle.telemetry()

    def test_closing_twice_is_no_error(self, handle: Handle) -> None:
        handle.close()
        handle.close()

    def test_a_closed_handle_refuses(self, handle: Handle, device: Device) -> None:
        handle.close()
        with pytest.raises(InvalidArgument) as caught:
            handle.telemetry()
        assert_error_is_for_people(caught.value, device.id)

    def test_a_deadline_that_has_passed_is_refused_at_once(self, handle: Handle, device: Device) -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            handle.telemetry(deadline=Deadline.after(0))
        assert_error_is_for_people(caught.value, device.id)

    def test_every_verb_takes_what_the_interface_says(self, handle: Handle) -> None:
        for name, verb in vars_of(self.interface).items():
            told, wanted = parameters_of(getattr(handle, name)), parameters_of(verb)
            if told is not None and wanted is not None:
                assert ("self", *told) == wanted, f"{type(handle).__name__}.{name} takes {told}, not {wanted[1:]}"

    def test_a_declared_lack_is_true(self, driver: Driver) -> None:
        for ability, facet in self.facets.items():
            if ability in self.lacks:
                assert not isinstance(driver, facet), f"{driver.name} declares to lack {ability}, but has it"

    @needs("reset")
    def test_reset_completes(self, driver: Driver, device: Device) -> None:
        assert isinstance(driver, Resets), f"{driver.name} cannot reset; declare lacks = {{'reset'}}"
        driver.reset(device.id, deadline=Deadline.after(30)).wait(Deadline.after(30))

    @needs("scrub")
    def test_scrub_completes(self, driver: Driver, device: Device) -> None:
        assert isinstance(driver, Scrubs), f"{driver.name} cannot scrub; declare lacks = {{'scrub'}}"
        driver.scrub(device.id, deadline=Deadline.after(30)).wait(Deadline.after(30))


def _assert_honest(device: str, name: str, attribute: Attribute) -> None:
    assert isinstance(attribute, Attribute), f"{device}.{name} is not an Attribute"
    assert attribute.source, f"{device}.{name} does not say where it comes from"
    assert (attribute.value is None) == (attribute.absent is not None), (
        f"{device}.{name}: a value or a reason, not both"
    )


def vars_of(protocol: type) -> dict[str, object]:
    """Return the verbs of a Protocol and of the facets that it is composed of."""
    return {
        name: verb
        for facet in reversed(protocol.__mro__)
        for name, verb in vars(facet).items()
        if not name.startswith("_") and inspect.isfunction(verb)
    }


def parameters_of(verb: object) -> tuple[str, ...] | None:
    """Return a verb's parameters as they can be named, ``*`` before those by name only; None if nobody can tell."""
    try:
        parameters = inspect.signature(verb).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):  # an extension's function without a signature
        return None
    by_place = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
    return (*by_place, "*", *sorted(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)))


def assert_error_is_for_people(error: HalError, device: str) -> None:
    """Check that an error names the device, the step and the next thing to try."""
    assert error.device == device, f"the error does not name {device}: {error}"
    assert error.during, f"the error does not name the step: {error}"
    assert error.hint, f"the error does not say what to try: {error}"
