"""What a driver is: few verbs that all have, and facets that some have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from hal.drivers.match import Match
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.kind import Kind

if TYPE_CHECKING:
    from pathlib import Path

    from hal.drivers.guard import Guard
    from hal.interfaces.common import Handle
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.operation import Operation
    from hal.model.event import Event


class Cause(StrEnum):
    """Ready, or the one thing that is in the way."""

    READY = "ready"
    NO_BINDING = "no-binding"
    NO_LIBRARY = "no-library"
    NO_DRIVER = "no-kernel-driver"
    NO_PERMISSION = "no-permission"
    NO_HARDWARE = "no-hardware"
    VERSION_MISMATCH = "version-mismatch"
    BROKEN = "broken"
    TIMEOUT = "timeout"


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Can the driver work here, and if not, what mends it (``remedy``: a command, where there is one)."""

    cause: Cause
    detail: str = ""
    remedy: str = ""

    @property
    def ready(self) -> bool:
        """True if discovery is worth calling."""
        return self.cause is Cause.READY


READY = Readiness(cause=Cause.READY)


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that went wrong without stopping the rest: one line in the report."""

    source: str
    step: str
    detail: str
    hint: str = ""
    fatal: bool = True


class Discovery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a driver found. A problem marked ``fatal`` makes the report partial."""

    devices: tuple[Device, ...] = ()
    problems: tuple[Problem, ...] = ()


class HostRoot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One machine that can be looked at: its name, and the folder that stands for its ``/``.

    ``None`` as ``root`` is the running machine itself.
    """

    node: str
    root: str | None = None
    rack: str | None = None

    def path(self, *parts: str) -> Path:
        """Return a path on that machine (``path("sys", "class")``)."""
        from pathlib import Path

        return Path(self.root or "/", *parts)


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver is given when it is created: the machines to look at and the environment."""

    hosts: tuple[HostRoot, ...]
    environ: Mapping[str, str]


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """For whom a device is prepared. ``fence`` only grows; the driver refuses a lower one than it has seen."""

    lease: str
    fence: int
    tenant: str = "default"


@runtime_checkable
class Driver(Protocol):
    """Talks to one family of hardware.

    Creating one touches no hardware. All verbs are idempotent, keep their deadline as well as the vendor's library
    lets them, and raise :mod:`hal.errors`. One broken device never hides the others: it is returned with conditions
    and absent attributes. A driver that can also reset, scrub, partition or report events implements the facets below.
    """

    @property
    def name(self) -> str:
        """The driver's name, the same as its factory's."""
        ...

    def readiness(self) -> Readiness:
        """Say whether the driver can work here, or why not; quick, raises nothing."""
        ...

    def discover(self, deadline: Deadline) -> Discovery:
        """Find all devices, with conditions as they are now."""
        ...

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold on the devices now. No answer in time is a condition of status unknown."""
        ...

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Make the device ready for a holder. Raises ``StaleFence`` for a fence below the highest seen,
        ``DeviceGone``, ``DeviceBusy``. Preparing twice under the same grant is one preparation.
        """
        ...

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Take the device back so that the holder can do nothing more with it; the same again is no error."""
        ...

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> Handle:
        """Open a prepared device in this process. The handle asks ``guard`` before every verb."""
        ...

    def close(self) -> None:
        """Give back what the driver holds; the last call."""
        ...


@runtime_checkable
class Resets(Protocol):
    """Devices that can be reset. The caller has ended every lease within the reset's blast radius."""

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset one device; done when it answers again."""
        ...


@runtime_checkable
class Scrubs(Protocol):
    """Devices whose memory can be wiped, or whose bad places cleared, between tenants."""

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Erase the previous holder's data and clear what the hardware lets clear."""
        ...


@runtime_checkable
class Reports(Protocol):
    """Drivers that say by themselves when something changes."""

    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield events until the deadline; a loss of events is an event itself, followed by a resynchronisation."""
        ...


class DriverFactory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a plugin registers: facts about a driver, and how to create it.

    ``matches`` says which hardware it can drive; with none it is always asked. ``priority`` decides whose id and
    attributes stand when two drivers find the same device: the higher one's, the kernel's own view being 0.
    ``hosts`` is for machines that are not this one: it names the trees that host discovery shall read instead.
    """

    name: str
    kinds: tuple[Kind, ...]
    create: Callable[[Context], Driver]
    matches: tuple[Match, ...] = ()
    priority: int = 10
    hosts: Callable[[Mapping[str, str]], Sequence[HostRoot]] | None = None
