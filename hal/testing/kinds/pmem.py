"""What every driver of persistent memory must do.

The checks write into a namespace: give hardware whose content nobody misses. Without a namespace that can be mapped
they create one. A driver over real hardware usually declares ``lacks = {"reset", "poison", "power-failure"}``, because
nobody can break a DIMM on demand; one that can gives the fixtures ``inject_poison`` and ``cut_power``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from hal.drivers.contract import Driver, Grant, Scrubs
from hal.drivers.guard import GuardPages
from hal.errors import (
    AccessDenied,
    DeviceBusy,
    DeviceGone,
    InvalidArgument,
    LeaseEnded,
    UncorrectableError,
    Unsupported,
)
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.pmem import (
    NAMESPACE_ALIGNMENT_BYTES,
    Mapping,
    Namespace,
    NamespaceMode,
    PersistenceDomain,
    Pmem,
)
from hal.model.device import Device
from hal.model.kind import Kind
from hal.testing.conformance import DriverConformance, assert_error_is_for_people, needs

Inject = Callable[[int, int], None]
"""Poisons a range of the region: offset and length in bytes."""


class PmemConformance(DriverConformance):
    """The checks for persistent memory. ``lacks`` may name ``create``, ``poison``, ``power-failure``, ``reset`` and
    ``scrub``.
    """

    interface = Pmem

    @pytest.fixture
    def pmem(self, handle: Handle) -> Pmem:
        """The opened region."""
        assert isinstance(handle, Pmem), f"{type(handle).__name__} does not offer all of hal.interfaces.pmem.Pmem"
        return handle

    @pytest.fixture
    def namespace(self, pmem: Pmem) -> Namespace:
        """A namespace that can be mapped and overwritten; override to choose one."""
        return mappable(pmem)

    @pytest.fixture
    def mapping(self, pmem: Pmem, namespace: Namespace) -> Iterator[Mapping]:
        """The namespace mapped for writing."""
        with pmem.map(namespace.name) as mapping:
            yield mapping

    @pytest.fixture
    def inject_poison(self) -> Inject:
        """Override, or declare to lack ``poison``."""
        raise AssertionError("give a fixture 'inject_poison', or declare lacks = {'poison'}")

    @pytest.fixture
    def cut_power(self) -> Callable[[], None]:
        """Override, or declare to lack ``power-failure``."""
        raise AssertionError("give a fixture 'cut_power', or declare lacks = {'power-failure'}")

    def test_the_device_says_what_a_claim_selects_by(self, device: Device) -> None:
        assert device.kind is Kind.PMEM
        for name in ("persistence_domain", "size_bytes", "media"):
            assert name in device.attributes, f"{device.id} has no attribute {name}, not even an absent one"
        assert device.capacity.get("memory_bytes", 0) > 0

    def test_the_region_describes_itself(self, pmem: Pmem) -> None:
        region = pmem.region()
        assert region.persistence_domain in PersistenceDomain
        assert region.size_bytes > 0
        assert region.line_bytes in (32, 64, 128)
        assert region.granule_bytes >= region.line_bytes

    def test_namespaces_lie_in_the_region_and_do_not_overlap(self, pmem: Pmem) -> None:
        end = 0
        for namespace in pmem.namespaces():
            assert namespace.offset_bytes >= end, f"{namespace.name} overlaps the one before"
            end = namespace.offset_bytes + namespace.size_bytes
        assert end <= pmem.region().size_bytes

    def test_a_store_through_the_buffer_is_read_back(self, mapping: Mapping) -> None:
        mapping.buffer[128:133] = b"hello"
        assert mapping.read(128, 5) == b"hello"
        mapping.persist(128, 5)
        assert mapping.read(128, 5) == b"hello"

    def test_buffer_and_array_are_the_same_memory(self, mapping: Mapping) -> None:
        words = mapping.array("u8")
        words[2] = 0x0102030405060708
        assert bytes(mapping.buffer[16:24]) == bytes.fromhex("0807060504030201")
        assert len(mapping.buffer) == mapping.size_bytes == words.nbytes

    def test_two_mappings_see_each_other(self, pmem: Pmem, mapping: Mapping) -> None:
        with pmem.map(mapping.namespace.uuid) as other:
            mapping.buffer[0:4] = b"seen"
            assert other.read(0, 4) == b"seen"

    def test_memcpy_persist_stores(self, mapping: Mapping) -> None:
        mapping.memcpy_persist(4096, b"durable")
        assert mapping.read(4096, 7) == b"durable"

    def test_bytes_outlive_the_handle(
        self, driver: Driver, device: Device, pages: GuardPages, grant: Grant, mapping: Mapping, handle: Handle
    ) -> None:
        mapping.memcpy_persist(64, b"stays")
        mapping.close()
        handle.close()
        guard = pages.guard(device.id, grant.lease, grant.fence)
        with driver.open(device.id, guard, Deadline.after(10)) as again:
            reopened = cast(Pmem, again).map(mapping.namespace.name)
            assert reopened.read(64, 5) == b"stays"
            reopened.close()

    @pytest.mark.parametrize("verb", ["flush", "persist", "read"])
    def test_ranges_outside_the_mapping_are_refused(self, mapping: Mapping, device: Device, verb: str) -> None:
        for offset, length in ((-1, 8), (mapping.size_bytes, 1), (0, mapping.size_bytes + 1), (8, -1)):
            with pytest.raises(InvalidArgument) as caught:
                getattr(mapping, verb)(offset, length)
            assert_error_is_for_people(caught.value, device.id)

    def test_memcpy_past_the_end_changes_nothing(self, mapping: Mapping) -> None:
        last = mapping.size_bytes - 4
        mapping.memcpy_persist(last, b"last")
        with pytest.raises(InvalidArgument):
            mapping.memcpy_persist(last, b"12345678")
        assert mapping.read(last, 4) == b"last"

    def test_a_mapping_for_reading_cannot_be_written(self, pmem: Pmem, namespace: Namespace) -> None:
        with pmem.map(namespace.name, read_only=True) as mapping:
            assert mapping.read_only
            assert mapping.buffer.readonly
            with pytest.raises(AccessDenied):
                mapping.memcpy_persist(0, b"x")

    def test_an_unknown_namespace_is_refused(self, pmem: Pmem, device: Device) -> None:
        with pytest.raises(InvalidArgument) as caught:
            pmem.map("namespace99.99")
        assert_error_is_for_people(caught.value, device.id)

    def test_a_closed_mapping_refuses_and_closes_again(self, pmem: Pmem, namespace: Namespace) -> None:
        mapping = pmem.map(namespace.name)
        mapping.close()
        mapping.close()
        with pytest.raises(InvalidArgument):
            mapping.read(0, 1)

    def test_a_mapping_dies_with_the_lease(
        self, mapping: Mapping, device: Device, pages: GuardPages, grant: Grant
    ) -> None:
        pages.revoke(device.id, grant.fence)
        for step in (lambda: mapping.read(0, 1), lambda: mapping.persist(0, 1), mapping.drain):
            with pytest.raises(LeaseEnded):
                step()

    def test_health_is_told_or_excused(self, pmem: Pmem) -> None:
        found = pmem.telemetry()
        for name in ("temperature_celsius", "spares_percent", "life_used_percent", "dirty_shutdown_count"):
            assert name in found, f"telemetry does not speak of {name}, not even to say why it is absent"

    def test_a_deep_flush_ends_or_is_excused(self, pmem: Pmem) -> None:
        if pmem.region().persistence_domain is PersistenceDomain.NONE:
            with pytest.raises(Unsupported):
                pmem.deep_flush().wait(Deadline.after(30))
        else:
            pmem.deep_flush(deadline=Deadline.after(30)).wait(Deadline.after(30))

    @needs("create")
    def test_creating_takes_two_steps(self, pmem: Pmem) -> None:
        before = pmem.namespaces()
        plan = pmem.plan_create(NamespaceMode.DEVDAX, NAMESPACE_ALIGNMENT_BYTES)
        assert pmem.namespaces() == before, "a plan changes nothing"
        made = pmem.confirm(plan).wait(Deadline.after(30))
        assert made.size_bytes == NAMESPACE_ALIGNMENT_BYTES
        assert made in pmem.namespaces()
        with pmem.map(made.name) as mapping:
            assert mapping.read(0, 4096) == bytes(4096), "a new namespace shows nobody's data"
        destroy(pmem, made)

    @needs("create")
    def test_a_plan_to_destroy_says_what_is_lost(self, pmem: Pmem) -> None:
        made = create(pmem)
        plan = pmem.plan_destroy(made.name)
        assert made in pmem.namespaces(), "a plan changes nothing"
        assert any(made.name in words for words in plan.destroys)
        assert pmem.confirm(plan).wait(Deadline.after(30)).uuid == made.uuid
        assert made.uuid not in {namespace.uuid for namespace in pmem.namespaces()}

    @needs("create")
    def test_a_plan_dies_when_the_state_changes(self, pmem: Pmem, device: Device) -> None:
        made = create(pmem)
        plan = pmem.plan_destroy(made.name)
        other = create(pmem)
        with pytest.raises(InvalidArgument) as caught:
            pmem.confirm(plan).wait(Deadline.after(30))
        assert_error_is_for_people(caught.value, device.id)
        destroy(pmem, other)
        destroy(pmem, made)

    @needs("create")
    def test_a_plan_is_carried_out_once(self, pmem: Pmem) -> None:
        plan = pmem.plan_create(NamespaceMode.DEVDAX, NAMESPACE_ALIGNMENT_BYTES)
        made = pmem.confirm(plan).wait(Deadline.after(30))
        with pytest.raises(InvalidArgument):
            pmem.confirm(plan).wait(Deadline.after(30))
        destroy(pmem, made)

    @needs("create")
    def test_a_mapped_namespace_is_not_destroyed(self, pmem: Pmem) -> None:
        made = create(pmem)
        plan = pmem.plan_destroy(made.name)
        with pmem.map(made.name):
            with pytest.raises(DeviceBusy):
                pmem.plan_destroy(made.name)
            with pytest.raises(DeviceBusy):
                pmem.confirm(plan).wait(Deadline.after(30))
        destroy(pmem, made)

    @needs("create")
    def test_block_namespaces_are_not_mapped(self, pmem: Pmem, device: Device) -> None:
        made = create(pmem, NamespaceMode.SECTOR)
        with pytest.raises(Unsupported) as caught:
            pmem.map(made.name)
        assert_error_is_for_people(caught.value, device.id)
        destroy(pmem, made)

    @needs("create")
    def test_an_impossible_namespace_is_refused_before_anything_happens(self, pmem: Pmem) -> None:
        for size in (0, -1, 1, NAMESPACE_ALIGNMENT_BYTES + 512, 1 << 62):
            with pytest.raises(InvalidArgument):
                pmem.plan_create(NamespaceMode.DEVDAX, size)

    @needs("poison")
    def test_poison_is_never_read_silently(
        self, pmem: Pmem, mapping: Mapping, device: Device, inject_poison: Inject
    ) -> None:
        granule = pmem.region().granule_bytes
        mapping.memcpy_persist(0, bytes(range(1, 65)))
        inject_poison(mapping.namespace.offset_bytes + granule, 1)
        with pytest.raises(UncorrectableError) as caught:
            mapping.read(granule - 8, 16)
        assert_error_is_for_people(caught.value, device.id)
        assert mapping.read(0, 64) == bytes(range(1, 65)), "the rest can be read"
        assert [(bad.offset, bad.length) for bad in mapping.bad_blocks()] == [(granule, granule)]
        assert pmem.bad_blocks()

    @needs("poison")
    def test_poison_stays_until_cleared(
        self, pmem: Pmem, mapping: Mapping, namespace: Namespace, inject_poison: Inject
    ) -> None:
        granule = pmem.region().granule_bytes
        inject_poison(namespace.offset_bytes, 2 * granule)
        mapping.close()
        with pmem.map(namespace.name) as again:
            with pytest.raises(UncorrectableError):
                again.read(0, 8)
            with pytest.raises(InvalidArgument):
                again.clear_poison(0, granule - 1)
            again.clear_poison(0, granule)
            assert again.read(0, granule) == bytes(granule)
            assert [(bad.offset, bad.length) for bad in again.bad_blocks()] == [(granule, granule)]
            again.clear_poison(granule, granule)
            assert not again.bad_blocks()

    @needs("power-failure")
    def test_what_was_persisted_survives_a_power_failure(
        self,
        driver: Driver,
        device: Device,
        pages: GuardPages,
        grant: Grant,
        mapping: Mapping,
        cut_power: Callable[[], None],
    ) -> None:
        mapping.buffer[0:5] = b"first"
        mapping.persist(0, 5)
        cut_power()
        with pytest.raises(DeviceGone):
            mapping.read(0, 5)
        guard = pages.guard(device.id, grant.lease, grant.fence)
        with driver.open(device.id, guard, Deadline.after(10)) as again:
            reopened = cast(Pmem, again).map(mapping.namespace.name)
            assert reopened.read(0, 5) == b"first"

    @needs("scrub")
    def test_scrubbing_leaves_nothing_of_the_holder(
        self, driver: Driver, device: Device, pages: GuardPages, grant: Grant, mapping: Mapping, handle: Handle
    ) -> None:
        mapping.memcpy_persist(0, b"secret")
        mapping.close()
        handle.close()
        assert isinstance(driver, Scrubs)
        driver.scrub(device.id).wait(Deadline.after(60))
        guard = pages.guard(device.id, grant.lease, grant.fence)
        with driver.open(device.id, guard, Deadline.after(10)) as again:
            reopened = cast(Pmem, again).map(mapping.namespace.name)
            assert reopened.read(0, 6) == bytes(6)
            reopened.close()


def create(pmem: Pmem, mode: NamespaceMode = NamespaceMode.DEVDAX) -> Namespace:
    """Create the smallest namespace."""
    return pmem.confirm(pmem.plan_create(mode, NAMESPACE_ALIGNMENT_BYTES)).wait(Deadline.after(30))


def destroy(pmem: Pmem, namespace: Namespace) -> None:
    """Destroy a namespace."""
    pmem.confirm(pmem.plan_destroy(namespace.name)).wait(Deadline.after(30))


def mappable(pmem: Pmem) -> Namespace:
    """Return the first namespace that can be mapped, made if there is none."""
    for namespace in pmem.namespaces():
        if namespace.mode.mappable:
            return namespace
    return create(pmem)
