"""A lease in the hands of its holder: open its devices, renew it, give it back, or hand it to another process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from hal.drivers.guard import PageGuard, page_path
from hal.errors import DeviceNotFound, LeaseEnded, UsageError
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline, or_default
from hal.model.lease import AllocatedDevice, Lease

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hal.drivers.contract import Driver

_PLUGINS_SECONDS = 2.0


class Keeper(Protocol):
    """Who can renew and release: a broker."""

    def renew(self, lease_id: str, ttl_seconds: float | None = None) -> Lease:
        """Renew; return the lease as it is then."""
        ...

    def release(self, lease_id: str) -> Lease:
        """Release; return the lease as it is then."""
        ...


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """All that another process needs to open the devices: the lease, and where its guard pages are."""

    lease: Lease
    guards: str
    version: int = 1


class HeldLease:
    """A lease that this process may use. As a context manager it closes its handles and releases at the end.

    Opening a device calls its driver and maps its guard page; no broker is asked, then or later.
    """

    def __init__(self, lease: Lease, drivers: Mapping[str, Driver], guards: Path, keeper: Keeper | None = None) -> None:
        self.lease = lease
        self._drivers = drivers
        self._guards = guards
        self._keeper = keeper
        self._handles: list[Handle] = []

    @property
    def id(self) -> str:
        """The lease's id."""
        return self.lease.id

    @property
    def fence(self) -> int:
        """The lease's fence."""
        return self.lease.fence

    @property
    def devices(self) -> tuple[AllocatedDevice, ...]:
        """What was given, in the order of the requests."""
        return self.lease.devices

    def find(self, device: str | AllocatedDevice | None = None) -> AllocatedDevice:
        """Return one device of the lease by id, name, ``node/name`` or alias; without a name the only one."""
        if isinstance(device, AllocatedDevice):
            device = device.id
        if device is None:
            if len(self.devices) == 1:
                return self.devices[0]
            names = ", ".join(held.name for held in self.devices)
            raise UsageError(f"the lease has {len(self.devices)} devices; say which", device=self.id, hint=names)
        fitting = [
            held
            for held in self.devices
            if device in (held.id, held.opened_as or held.id, held.name, f"{held.node}/{held.name}", *held.aliases)
        ]
        if len(fitting) != 1:
            raise DeviceNotFound(
                f"lease {self.id} has {f'{len(fitting)} such devices' if fitting else 'no such device'}",
                device=str(device),
                during="open",
                hint=", ".join(f"{held.node}/{held.name}" for held in self.devices),
            )
        return fitting[0]

    def open(self, device: str | AllocatedDevice | None = None, *, deadline: Deadline | None = None) -> Any:
        """Open one device and return its handle (one of :mod:`hal.interfaces`, by the device's kind).

        Raises :class:`~hal.errors.LeaseEnded` if the lease is over, and what the driver raises.
        """
        held = self.find(device)
        name = held.opened_as or held.id
        page = page_path(self._guards, self.lease.slot_of(held))
        guard = PageGuard(page, name, self.id, self.lease.fence_of(held))
        handle = self._driver(held.driver).open(name, guard, or_default(deadline))
        self._handles.append(handle)
        return handle

    def _driver(self, name: str) -> Driver:
        driver = self._drivers.get(name)
        if driver is None:
            from hal.agent.drivers import create_drivers

            self._drivers = {**self._drivers, **create_drivers([name])}
            driver = self._drivers[name]
        return driver

    def env(self, exporters: Iterable[Any] | None = None) -> dict[str, str]:
        """Return the environment for a program that shall use the devices (see :mod:`hal.export.environment`).

        ``exporters`` are asked after the built-in ones; without it, those of all installed plugins.
        """
        from hal.export.environment import environment

        if exporters is None:
            from hal.drivers.entries import installed
            from hal.drivers.loader import loaded_exporters

            exporters = loaded_exporters(installed(), Deadline.after(_PLUGINS_SECONDS))
        return environment(self.devices, self.lease, exporters)

    def renew(self, ttl_seconds: float | None = None) -> Lease:
        """Let the lease last for another time to live from now; raises ``LeaseEnded`` if it is too late."""
        self.lease = self._broker("renew").renew(self.id, ttl_seconds)
        return self.lease

    def release(self) -> None:
        """Close the handles and give the devices back; the same again is no error."""
        self.close()
        self.lease = self._broker("release").release(self.id)

    def _broker(self, step: str) -> Keeper:
        if self._keeper is None:
            raise UsageError(
                "this process holds a ticket and no broker", device=self.id, during=step, hint=f"hal {step} {self.id}"
            )
        return self._keeper

    def close(self) -> None:
        """Close every handle opened here; the lease goes on."""
        handles, self._handles = self._handles, []
        for handle in reversed(handles):
            handle.close()

    def ticket(self) -> str:
        """Return the lease as a text with which another process of this machine can open it: :meth:`from_ticket`."""
        return msgspec.json.encode(Ticket(lease=self.lease, guards=str(self._guards))).decode()

    @classmethod
    def from_ticket(cls, text: str, drivers: Mapping[str, Driver] | None = None) -> HeldLease:
        """Return a lease that another process was granted; its drivers are created when a device is opened."""
        try:
            ticket = msgspec.json.decode(text, type=Ticket)
        except msgspec.DecodeError as error:
            raise UsageError(f"not a ticket: {error}", during="open", hint="HeldLease.ticket() makes one") from error
        return cls(ticket.lease, drivers or {}, Path(ticket.guards))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is None:
            self.close()
            return
        try:
            self.release()
        except LeaseEnded:
            pass  # it ended by itself: there is nothing left to give back

    def __repr__(self) -> str:
        names = ", ".join(device.name for device in self.devices)
        return f"<HeldLease {self.id}: {names} (fence {self.fence})>"


def open_lease(ticket: str, drivers: Mapping[str, Driver] | None = None) -> HeldLease:
    """Return the lease of a ticket (:meth:`HeldLease.ticket`), to open its devices in this process."""
    return HeldLease.from_ticket(ticket, drivers)
