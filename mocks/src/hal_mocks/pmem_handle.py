"""An opened mock region: its namespaces, plans to change them, mappings, health."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence

import msgspec

from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceBusy, DeviceGone, HalError, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.interfaces.pmem import (
    NAMESPACE_ALIGNMENT_BYTES,
    ByteRange,
    Namespace,
    NamespaceMode,
    PersistenceDomain,
    Plan,
    Region,
)
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal_mocks.base import MockHandle, tell_lies
from hal_mocks.faults import Fault, FaultType
from hal_mocks.machine import Machine
from hal_mocks.pmem_mapping import MockMapping, wipe, within
from hal_mocks.pmem_region import Record, RegionStore, region_facts

_SOURCE = "mock:smart"
HOT_CELSIUS = 86.0
"""What an overheated DIMM says."""


class MockPmem(MockHandle):
    """A region opened under a lease."""

    def __init__(self, machine: Machine, device: Device, guard: Guard, store: RegionStore) -> None:
        super().__init__(machine, device, guard)
        self._store = store
        self._page = store.page
        with store.locked():
            self._epoch = self._page[0] = store.load().epoch
        self._mappings: weakref.WeakSet[MockMapping] = weakref.WeakSet()

    def _look(self, step: str, deadline: Deadline | None = None) -> None:
        if self._page[0] != self._epoch:
            raise DeviceGone(
                "the power failed, or the region was taken back, since it was opened",
                device=self._id,
                during=step,
                hint="open it again and recover from what is durable",
            )
        self._store.meet_dimms(step, or_default(deadline))

    def region(self, *, deadline: Deadline | None = None) -> Region:
        """Return the region as it is now."""
        return region_facts(self._store, self._enter("region", deadline))

    def namespaces(self, *, deadline: Deadline | None = None) -> Sequence[Namespace]:
        """Return the namespaces by their place in the region."""
        poison = self._store.poison(self._enter("namespaces", deadline))
        return [_with_poison(namespace, poison) for namespace in self._store.load().namespaces]

    def deep_flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Nothing to do: on the mock the persistence domain is the media."""
        self._enter("deep_flush", deadline)
        if self._store.domain is PersistenceDomain.NONE:
            raise Unsupported(
                "volatile memory", device=self._id, during="deep_flush", hint="region().persistence_domain says so"
            )
        return Operation.completed(None, self._id, "deep_flush")

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges of the region."""
        return self._store.poison(self._enter("bad_blocks", deadline))

    def map(self, namespace: str, *, read_only: bool = False, deadline: Deadline | None = None) -> MockMapping:
        """Map a namespace by name or uuid; many may, in one process or in several."""
        faults = self._enter("map", deadline)
        with self._store.locked():
            self._look("map", deadline)
            found = self._find(self._store.load(), namespace, "map")
            if not found.mode.mappable:
                raise Unsupported(
                    f"{found.name} is in mode {found.mode}: it is a block device",
                    device=self._id,
                    during="map",
                    hint="create a namespace of mode devdax or fsdax",
                )
            if not read_only:
                self._refuse_read_only(faults, "map", "map it with read_only=True")
            mapping = MockMapping(self._store, found, self._epoch, self._enter, read_only=read_only)
        self._mappings.add(mapping)
        return mapping

    def plan_create(
        self, mode: NamespaceMode, size_bytes: int, *, sector_bytes: int = 4096, deadline: Deadline | None = None
    ) -> Plan:
        """Plan a namespace in the first free extent that is large enough."""
        self._enter("plan_create", deadline)
        return self._plan_create(self._store.load(), NamespaceMode(mode), size_bytes, sector_bytes)

    def plan_destroy(self, namespace: str, *, deadline: Deadline | None = None) -> Plan:
        """Plan to destroy a namespace that nobody has mapped."""
        self._enter("plan_destroy", deadline)
        record = self._store.load()
        return self._plan_destroy(record, self._find(record, namespace, "plan_destroy"))

    def confirm(self, plan: Plan, *, deadline: Deadline | None = None) -> Operation[Namespace]:
        """Carry out a plan that still fits the state."""
        faults = self._enter("confirm", deadline)
        try:
            self._refuse_read_only(faults, "confirm", "a worn region takes no changes: save the data")
            done = self._confirm(plan)
        except HalError as error:
            return Operation.failed(error, self._id, "confirm")
        return Operation.completed(done, self._id, "confirm")

    def telemetry(self, *, deadline: Deadline | None = None) -> dict[str, Attribute]:
        """Return what SMART would say; a volatile region has no wear and no shutdowns."""
        faults = self._enter("telemetry", deadline)
        record = self._store.load()
        bad_bytes = sum(bad.length for bad in self._store.poison(faults))
        worn = any(fault.type is FaultType.READ_ONLY for fault in faults)
        # Steady, different from device to device, and the same on every run.
        mark = int.from_bytes(hashlib.sha256(self._id.encode()).digest()[:2], "little")
        hot = any(fault.type is FaultType.THERMAL for fault in faults)
        found = {
            "temperature_celsius": known(HOT_CELSIUS if hot else 33.0 + mark % 80 / 10, _SOURCE),
            "health_state": known("fatal" if worn else "non-critical" if bad_bytes else "ok", _SOURCE),
            "bad_block_bytes": known(bad_bytes, _SOURCE),
        }
        if self._store.region.persistence_domain == "none":
            for name in ("spares_percent", "life_used_percent", "dirty_shutdown_count"):
                found[name] = absent(Absence.UNSUPPORTED, _SOURCE, "volatile memory")
        else:
            found["spares_percent"] = known(0 if worn else 100 - min(bad_bytes // (1 << 20), 99), _SOURCE)
            found["life_used_percent"] = known(100 if worn else mark % 20, _SOURCE)
            found["dirty_shutdown_count"] = known(record.dirty_shutdowns, _SOURCE)
        return tell_lies(found, faults)

    def close(self) -> None:
        """Unmap all that was mapped through this handle."""
        super().close()
        for mapping in list(self._mappings):
            mapping.close()

    # -- the two steps ------------------------------------------------------------------------------------------------

    def _plan_create(self, record: Record, mode: NamespaceMode, size_bytes: int, sector_bytes: int) -> Plan:
        if size_bytes <= 0 or size_bytes % NAMESPACE_ALIGNMENT_BYTES:
            raise self._invalid("plan_create", f"{size_bytes} bytes are not whole 2 MiB", "round up to 2 MiB")
        if mode is NamespaceMode.SECTOR and sector_bytes not in (512, 4096):
            raise self._invalid("plan_create", f"no sectors of {sector_bytes} bytes", "512 or 4096")
        namespace = self._store.next_namespace(record, mode, size_bytes, sector_bytes)
        if namespace is None:
            largest = max((extent.length for extent in self._store.free_extents(record)), default=0)
            raise self._invalid(
                "plan_create",
                f"{size_bytes} bytes do not fit: the largest free extent has {largest}",
                "destroy a namespace, or ask for less",
            )
        return self._plan("create", namespace, (), record)

    def _plan_destroy(self, record: Record, namespace: Namespace) -> Plan:
        if self._store.in_use(namespace):
            raise DeviceBusy(
                f"{namespace.name} is mapped", device=self._id, during="plan_destroy", hint="close its mappings first"
            )
        destroys = (
            f"namespace {namespace.name} ({namespace.mode}, uuid {namespace.uuid})",
            f"all of its {namespace.size_bytes} bytes, which cannot be brought back",
        )
        return self._plan("destroy", namespace, destroys, record)

    def _plan(self, action: str, namespace: Namespace, destroys: tuple[str, ...], record: Record) -> Plan:
        plan = Plan(action=action, region=self._id, namespace=namespace, destroys=destroys, token="")
        seed = msgspec.json.encode([plan, record.epoch, record.generation])
        return msgspec.structs.replace(plan, token=hashlib.sha256(seed).hexdigest()[:32])

    def _confirm(self, plan: Plan) -> Namespace:
        target = plan.namespace
        with self._store.locked():
            record = self._store.load()
            if plan.region != self._id or self._plan(plan.action, target, plan.destroys, record) != plan:
                raise self._invalid(
                    "confirm", "the plan is not of this region or no longer of its state", "plan again, and look again"
                )
            if plan.action == "destroy" and self._store.in_use(target):
                raise DeviceBusy(
                    f"{target.name} was mapped meanwhile", device=self._id, during="confirm", hint="close its mappings"
                )
            others = [namespace for namespace in record.namespaces if namespace.uuid != target.uuid]
            if plan.action == "create":
                others.append(target)
                record.created += 1
            for path in (self._store.memory_path(record.epoch), self._store.media_path()):
                if path is not None:
                    wipe(path, target)
            record.namespaces = tuple(sorted(others, key=lambda namespace: namespace.offset_bytes))
            record.generation += 1
            self._store.save(record)
        return target

    def _find(self, record: Record, name: str, step: str) -> Namespace:
        for namespace in record.namespaces:
            if name in (namespace.name, namespace.uuid):
                return namespace
        raise self._invalid(
            step,
            f"no namespace {name!r}",
            "one of " + ", ".join(namespace.name for namespace in record.namespaces)
            if record.namespaces
            else "create one: plan_create(), confirm()",
        )

    def _refuse_read_only(self, faults: Sequence[Fault], step: str, hint: str) -> None:
        if any(fault.type is FaultType.READ_ONLY for fault in faults):
            raise AccessDenied("the region is read-only", device=self._id, during=step, hint=hint)

    def _invalid(self, step: str, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._id, during=step, hint=hint)


def _with_poison(namespace: Namespace, poison: Sequence[ByteRange]) -> Namespace:
    return msgspec.structs.replace(namespace, bad_blocks=within(poison, namespace)) if poison else namespace
