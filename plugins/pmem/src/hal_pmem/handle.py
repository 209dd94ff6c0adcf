"""An opened region; see :class:`hal.interfaces.pmem.Pmem` for what each verb must do."""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from collections.abc import Sequence

from hal.drivers.guard import Guard
from hal.drivers.opened import OpenedDevice
from hal.errors import AccessDenied, DeviceBusy, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.interfaces.pmem import ByteRange, Namespace, NamespaceMode, PersistenceDomain, Plan, Region
from hal.model.attributes import Attribute
from hal.model.device import Device
from hal_pmem.backing import Backing, digest
from hal_pmem.mapping import PmemMapping

_CHANGE_SECONDS = 60.0
"""ndctl creates a namespace in seconds; zeroing a large one takes longer."""


class OpenedRegion(OpenedDevice):
    """A region under a lease, in the holder's own process."""

    def __init__(self, device: Device, guard: Guard, backing: Backing) -> None:
        super().__init__(device, guard)
        self._backing = backing
        self._mappings: list[PmemMapping] = []

    def region(self, *, deadline: Deadline | None = None) -> Region:
        """Return the region as it is now."""
        self._enter("region", deadline)
        return self._backing.region()

    def namespaces(self, *, deadline: Deadline | None = None) -> Sequence[Namespace]:
        """Return the namespaces by their place in the region."""
        self._enter("namespaces", deadline)
        return self._backing.namespaces()

    def map(self, namespace: str, *, read_only: bool = False, deadline: Deadline | None = None) -> PmemMapping:
        """Map a namespace by its name or uuid; the mapping says which persistence it really has."""
        self._enter("map", deadline)
        found = self._find(namespace, "map")
        if not found.mode.mappable:
            raise Unsupported(
                f"{found.name} is in mode {found.mode}, which offers blocks and no memory",
                device=self._device.id,
                during="map",
                hint="create a namespace in mode devdax or fsdax",
            )
        region = self._backing.region()
        if region.locked or (region.read_only and not read_only):
            raise AccessDenied(
                "the region is locked" if region.locked else "the region is read-only",
                device=self._device.id,
                during="map",
                hint=f"ndctl unlock-dimm; ndctl list -r {region.name}" if region.locked else "map with read_only=True",
            )
        mapping = PmemMapping(self._backing, found, self._backing.attach(found, read_only=read_only), self._guard)
        self._mappings = [known for known in self._mappings if known.is_open]
        self._mappings.append(mapping)
        return mapping

    def deep_flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Push what is durable into the media."""
        self._enter("deep_flush", deadline)
        if self._backing.region().persistence_domain is PersistenceDomain.NONE:
            raise Unsupported(
                "no persistence domain stands for this region, so there is nothing to push further",
                device=self._device.id,
                during="deep_flush",
                hint="persist() does all that can be done; see the mapping's persistence",
            )
        limit = or_default(deadline)
        return Operation.spawn(self._device.id, "deep_flush", lambda _: self._backing.deep_flush(limit))

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return the poisoned ranges of the whole region."""
        self._enter("bad_blocks", deadline)
        return self._backing.bad_blocks()

    def plan_create(
        self, mode: NamespaceMode, size_bytes: int, *, sector_bytes: int = 4096, deadline: Deadline | None = None
    ) -> Plan:
        """Plan a namespace; nothing is changed."""
        self._enter("plan_create", deadline)
        state = self._backing.state()
        draft = self._backing.draft(NamespaceMode(mode), size_bytes, sector_bytes)
        return self._plan("create", draft, (), state)

    def plan_destroy(self, namespace: str, *, deadline: Deadline | None = None) -> Plan:
        """Plan to destroy a namespace; nothing is changed."""
        self._enter("plan_destroy", deadline)
        state = self._backing.state()
        found = self._find(namespace, "plan_destroy")
        self._refuse_used(found, "plan_destroy")
        words = f"all {found.size_bytes} bytes of {found.name} ({found.mode}, uuid {found.uuid})"
        return self._plan("destroy", found, (words,), state)

    def confirm(self, plan: Plan, *, deadline: Deadline | None = None) -> Operation[Namespace]:
        """Carry a plan out, if the region is still as it was when the plan was made."""
        self._enter("confirm", deadline)
        state = self._backing.state()
        if plan.token != digest(plan.action, self._device.id, plan.namespace, state):
            raise InvalidArgument(
                "the plan is not of this region as it is now",
                device=self._device.id,
                during="confirm",
                hint="the namespaces have changed since: look at them, and plan again",
            )
        if self._backing.region().read_only:
            raise AccessDenied(
                "the region is read-only", device=self._device.id, during="confirm", hint="save the data, replace it"
            )
        limit = or_default(deadline, _CHANGE_SECONDS)
        if plan.action == "create":
            return Operation.spawn(
                self._device.id, "create", lambda _: self._backing.create(plan.namespace, state, limit)
            )
        self._refuse_used(plan.namespace, "confirm")
        return Operation.spawn(
            self._device.id, "destroy", lambda _: self._backing.destroy(plan.namespace, state, limit)
        )

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapped[str, Attribute]:
        """Return what the DIMMs measure, and say what they do not."""
        self._enter("telemetry", deadline)
        return self._backing.telemetry(or_default(deadline, 2.0))

    def _plan(self, action: str, namespace: Namespace, destroys: tuple[str, ...], state: str) -> Plan:
        return Plan(
            action=action,
            region=self._backing.region().name,
            namespace=namespace,
            destroys=destroys,
            token=digest(action, self._device.id, namespace, state),
        )

    def _find(self, name: str, step: str) -> Namespace:
        there = self._backing.namespaces()
        for found in there:
            if name and name in (found.name, found.uuid):
                return found
        names = ", ".join(found.name for found in there)
        raise InvalidArgument(
            f"no namespace {name!r}",
            device=self._device.id,
            during=step,
            hint=f"there are {names}" if names else "there is none yet: plan_create() and confirm()",
        )

    def _refuse_used(self, namespace: Namespace, step: str) -> None:
        user = self._backing.user_of(namespace)
        if user:
            raise DeviceBusy(
                f"{namespace.name} is {user}", device=self._device.id, during=step, hint="close the mapping first"
            )

    def _release(self) -> None:
        for mapping in self._mappings:
            mapping.close()

    def _abandon(self) -> None:
        for mapping in self._mappings:
            mapping.abandon()
