"""What carries the bytes of an opened NIC: the facet between the handle and its data planes, and how one is chosen.

The handle answers for ports, counters and telemetry; memory and endpoints it asks of one :class:`Transport`. Which one
is never a secret: its name and the reason are in the handle's telemetry, and the reasons against the others are in the
error when there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

from hal.errors import InvalidArgument, NotReady
from hal.interfaces.rnic import Access, Endpoint, Port, Region
from hal.model.attributes import Attribute
from hal.model.device import Device, alias

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline
    from hal.interfaces.rnic import Writable

FORCED = "HAL_RDMA_TRANSPORT"
"""The variable that names the only transport that may be used: ``verbs`` or ``ucx``."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport is given when a NIC is opened.

    ``check`` is the guard's: it raises ``LeaseEnded`` and is the first thing that every verb of a connection calls.
    ``enter(step, deadline)`` is the handle's: the same, then the deadline, then whether the handle is still open.
    ``ports`` reads the ports as they are now.
    """

    device: Device
    environ: Mapping[str, str]
    check: Callable[[], None]
    enter: Callable[[str, Deadline | None], None]
    ports: Callable[[], Sequence[Port]]

    @property
    def rdma_name(self) -> str:
        """The name of the device in ``class/infiniband``."""
        return alias(self.device, "rdma") or self.device.name


@runtime_checkable
class Transport(Protocol):
    """One opened data plane of one NIC in one process. Its regions and endpoints end with it.

    ``register`` and ``endpoint`` are called after the handle has checked lease, deadline and port; connections and
    endpoints check by themselves, with the ``check`` and ``enter`` they were opened with.
    """

    @property
    def name(self) -> str:
        """``verbs`` or ``ucx``."""
        ...

    def register(self, memory: Writable | int, access: Access) -> Region:
        """Register a buffer in place, or that many bytes of new memory; see :class:`hal.interfaces.rnic.Memory`."""
        ...

    def endpoint(self, port: int, rnr_timeout_seconds: float) -> Endpoint:
        """Create an endpoint; see :class:`hal.interfaces.rnic.Endpoints`."""
        ...

    def telemetry(self) -> Mapping[str, Attribute]:
        """Return what the data plane itself can tell, named ``transport_…``; quick, raises nothing."""
        ...

    def close(self) -> None:
        """Close all endpoints and regions. Idempotent."""
        ...

    def abandon(self) -> None:
        """Let go in a forked child, without touching what the parent shares."""
        ...


@runtime_checkable
class OwnPorts(Protocol):
    """A transport whose NIC is in no sysfs, and which tells of its ports and counters itself."""

    def ports(self) -> Sequence[Port]:
        """Return the ports as they are now."""
        ...

    def counters(self, port: int) -> Mapping[str, Attribute]:
        """Return what a port has counted, by the names of :class:`hal.interfaces.rnic.Ports`."""
        ...


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The transport chosen and why, and why not the others (name to reason)."""

    name: str
    reason: str
    open: Callable[[Opening], Transport]
    against: dict[str, str] = {}


def choose(device: Device, environ: Mapping[str, str]) -> Choice:
    """Return the first transport that can carry this device's bytes: verbs, then UCX; or only the one that is forced.

    Raises ``NotReady`` with the reason against each when there is none, ``InvalidArgument`` for a name nobody knows.
    """
    forced = environ.get(FORCED, "").strip().lower()
    if forced and forced not in _CANDIDATES:
        raise InvalidArgument(
            f"{FORCED}={forced!r} names no transport",
            device=device.id,
            during="open",
            hint=f"{FORCED}={'|'.join(_CANDIDATES)}, or unset it",
        )
    against: dict[str, str] = {}
    for name in (forced,) if forced else tuple(_CANDIDATES):
        why_not, opened = _CANDIDATES[name]()
        reason = why_not(device, environ)
        if reason:
            against[name] = reason
            continue
        return Choice(name=name, reason=_say(forced, against), open=opened, against=against)
    raise NotReady(
        "no transport can carry data: " + "; ".join(f"{name}: {reason}" for name, reason in against.items()),
        device=device.id,
        during="open",
        hint="apt install python3-pyverbs libibverbs1 ibverbs-providers (verbs), or libucx0 (UCX)"
        if not forced
        else f"unset {FORCED}",
    )


def _say(forced: str, against: Mapping[str, str]) -> str:
    if forced:
        return f"forced by {FORCED}"
    return "; ".join(f"not {name}: {reason}" for name, reason in against.items()) or "the first choice"


_WhyNot = Callable[[Device, Mapping[str, str]], str]
_Open = Callable[[Opening], Transport]


def _verbs() -> tuple[_WhyNot, _Open]:
    from hal_rdma.verbs import open_verbs, why_not_verbs

    return why_not_verbs, open_verbs


def _ucx() -> tuple[_WhyNot, _Open]:
    from hal_rdma.ucx import open_ucx, why_not_ucx

    return why_not_ucx, open_ucx


_CANDIDATES: dict[str, Callable[[], tuple[_WhyNot, _Open]]] = {"verbs": _verbs, "ucx": _ucx}
"""By preference. Each gives ``why_not(device, environ)``, empty if it can, and ``open(opening)``."""
