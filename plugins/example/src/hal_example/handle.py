"""An opened card, and its memory in this process. See :mod:`hal.interfaces.pmem` for what each verb must do."""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Mapped
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeadlineExceeded, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.pmem import ByteRange, Namespace, NamespaceMode, PersistenceDomain, Plan, Region
from hal.model.attributes import Absence, Attribute, absent
from hal.model.device import Device
from hal_example.cards import Card

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

_PAGE = mmap.PAGESIZE


class AcmeMapping:
    """A card's memory, mapped. The guard is asked before every verb."""

    def __init__(self, memory: str, namespace: Namespace, device: str, guard: Guard, *, read_only: bool) -> None:
        self.namespace = namespace
        self.size_bytes = namespace.size_bytes
        self.read_only = read_only
        self._device = device
        self._check = guard.check
        try:
            descriptor = os.open(memory, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except PermissionError as error:
            raise AccessDenied(
                f"{memory}: {error.strerror}", device=device, during="map", hint="ask for the group of its device file"
            ) from None
        try:
            prot = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
            self._map = mmap.mmap(descriptor, self.size_bytes, mmap.MAP_SHARED, prot)
        finally:
            os.close(descriptor)
        self._view = memoryview(self._map)
        self._open = True

    @property
    def buffer(self) -> memoryview:
        """The memory itself."""
        self._enter("buffer", None)
        return self._view

    def array(self, dtype: DTypeLike = "u1") -> NDArray[np.generic]:
        """Return the same memory as an array."""
        import numpy as np

        self._enter("array", None)
        kind = np.dtype(dtype)
        whole: NDArray[np.generic] = np.frombuffer(self._view, dtype=kind, count=self.size_bytes // kind.itemsize)
        return whole

    def flush(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Write the pages of a range back (msync, which also waits: nothing is left to drain)."""
        self._enter("flush", deadline, offset, length, store=True)
        if length:
            start = offset - offset % _PAGE
            self._map.flush(start, min(self.size_bytes - start, offset + length - start))

    def drain(self, *, deadline: Deadline | None = None) -> None:
        """Return: a flush has waited already."""
        self._enter("drain", deadline)

    def persist(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Flush and drain."""
        self.flush(offset, length, deadline=deadline)

    def memcpy_persist(self, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy bytes in and flush them."""
        view = memoryview(data).cast("B")
        self._enter("memcpy_persist", deadline, offset, len(view), store=True)
        self._view[offset : offset + len(view)] = view
        self.flush(offset, len(view), deadline=deadline)

    def read(self, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes out."""
        self._enter("read", deadline, offset, length)
        return bytes(self._view[offset : offset + length])

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return nothing: the card mends its own memory and does not speak of it."""
        self._enter("bad_blocks", deadline)
        return ()

    def clear_poison(self, offset: int, length: int, *, deadline: Deadline | None = None) -> None:
        """Refuse: there is never any."""
        self._enter("clear_poison", deadline, offset, length, store=True)
        raise Unsupported(
            "the card has no poison to clear", device=self._device, during="clear_poison", hint="scrub it"
        )

    def close(self) -> None:
        """Unmap, or where a view was handed out leave that to its last holder."""
        if self._open:
            self._open = False
            with contextlib.suppress(BufferError):
                self._view.release()
                self._map.close()

    def _enter(
        self, step: str, deadline: Deadline | None, offset: int = 0, length: int = 0, *, store: bool = False
    ) -> None:
        self._check()
        in_time(self._device, step, deadline)
        if not self._open:
            raise InvalidArgument("the mapping is closed", device=self._device, during=step, hint="map it again")
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidArgument(
                f"bytes {offset} to {offset + length}",
                device=self._device,
                during=step,
                hint=f"the mapping has {self.size_bytes} bytes",
            )
        if store and self.read_only:
            raise AccessDenied("mapped for reading", device=self._device, during=step, hint="map with read_only=False")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AcmeMemory:
    """An opened card: one region with one namespace that fills it and cannot be changed."""

    def __init__(self, card: Card, memory: str, device: Device, guard: Guard, look: Callable[[], Card]) -> None:
        self.device = device
        self._card = card
        self._look = look
        self._memory = memory
        self._guard = guard
        self._check = guard.check
        self._mappings: list[AcmeMapping] = []
        self._open = True
        self._namespace = Namespace(
            name=f"{card.name}.0",
            uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"acme:{card.id}")),
            mode=NamespaceMode.DEVDAX,
            size_bytes=card.size_bytes,
            offset_bytes=0,
        )

    def region(self, *, deadline: Deadline | None = None) -> Region:
        """Return the card as a region."""
        self._enter("region", deadline)
        return Region(
            name=self._card.name,
            set_cookie=str(self._card.facts["serial"].value or ""),
            size_bytes=self._card.size_bytes,
            available_bytes=0,
            persistence_domain=_domain(self._card.facts["persistence_domain"]),
            media="acme",
            line_bytes=64,
            granule_bytes=_PAGE,
        )

    def namespaces(self, *, deadline: Deadline | None = None) -> Sequence[Namespace]:
        """Return the only one."""
        self._enter("namespaces", deadline)
        return (self._namespace,)

    def map(self, namespace: str, *, read_only: bool = False, deadline: Deadline | None = None) -> AcmeMapping:
        """Map the card's memory."""
        self._enter("map", deadline)
        if namespace not in (self._namespace.name, self._namespace.uuid):
            raise InvalidArgument(
                f"no namespace {namespace!r}", device=self._card.id, during="map", hint=f"map {self._namespace.name}"
            )
        mapping = AcmeMapping(self._memory, self._namespace, self._card.id, self._guard, read_only=read_only)
        self._mappings.append(mapping)
        return mapping

    def bad_blocks(self, *, deadline: Deadline | None = None) -> Sequence[ByteRange]:
        """Return nothing: the card does not speak of bad places."""
        self._enter("bad_blocks", deadline)
        return ()

    def deep_flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Write all of the card's pages back (fsync)."""
        self._enter("deep_flush", deadline)
        if _domain(self._card.facts["persistence_domain"]) is PersistenceDomain.NONE:
            raise Unsupported(
                "the card does not say that it keeps anything",
                device=self._card.id,
                during="deep_flush",
                hint="keep a copy elsewhere",
            )

        def work(_: Operation[None]) -> None:
            descriptor = os.open(self._memory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

        return Operation.spawn(self._card.id, "deep_flush", work)

    def plan_create(
        self, mode: NamespaceMode, size_bytes: int, *, sector_bytes: int = 4096, deadline: Deadline | None = None
    ) -> Plan:
        """Refuse: the namespace is fixed."""
        raise self._fixed("plan_create", deadline)

    def plan_destroy(self, namespace: str, *, deadline: Deadline | None = None) -> Plan:
        """Refuse: the namespace is fixed."""
        raise self._fixed("plan_destroy", deadline)

    def confirm(self, plan: Plan, *, deadline: Deadline | None = None) -> Operation[Namespace]:
        """Refuse: no plan was made here."""
        raise self._fixed("confirm", deadline)

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapped[str, Attribute]:
        """Return what the card measures, and say what it does not."""
        self._enter("telemetry", deadline)
        facts = self._look().facts
        silent = absent(Absence.UNSUPPORTED, "class/acme")
        return {
            "temperature_celsius": facts["temperature_celsius"],
            "life_used_percent": facts["life_used_percent"],
            "spares_percent": silent,
            "dirty_shutdown_count": silent,
            "health_state": facts["health"],
        }

    def close(self) -> None:
        """Unmap everything. Idempotent."""
        self._open = False
        while self._mappings:
            self._mappings.pop().close()

    def _enter(self, step: str, deadline: Deadline | None) -> None:
        self._check()
        in_time(self._card.id, step, deadline)
        if not self._open:
            raise InvalidArgument("the handle is closed", device=self._card.id, during=step, hint="open the card again")

    def _fixed(self, step: str, deadline: Deadline | None) -> Unsupported:
        self._enter(step, deadline)
        return Unsupported(
            "the card has one namespace for good", device=self._card.id, during=step, hint=f"map {self._namespace.name}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_time(device: str, step: str, deadline: Deadline | None) -> None:
    """Refuse what cannot be done in time any more, before anything is done."""
    if deadline is not None and deadline.expired:
        raise DeadlineExceeded("the deadline had passed", device=device, during=step, hint="give a later deadline")


def _domain(told: Attribute) -> PersistenceDomain:
    """Return what the card says, and ``none`` where it does not: never promise what nobody promised."""
    try:
        return PersistenceDomain(str(told.value))
    except ValueError:
        return PersistenceDomain.NONE
