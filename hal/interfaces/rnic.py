"""What an opened RDMA NIC can do: ports and counters, registered memory, connections with one- and two-sided verbs.

The words are those of the InfiniBand specification and of verbs (``ibv_*``). Three rules hold for every driver:

* a completion is *local*: after ``put`` completes, its buffer may be used again; nothing says that the target has it;
* nothing is ordered without :meth:`Connection.fence`, nothing is remotely visible without :meth:`Connection.flush`;
* an error breaks the connection: what was posted and whatever is posted later completes with ``FlushedError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import msgspec

from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.model.attributes import Attribute

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer
    from numpy.typing import NDArray

    Readable = ReadableBuffer | NDArray[Any]
    """A contiguous buffer of any element type: bytes, memoryview, array."""
    Writable = WriteableBuffer | NDArray[Any]
    """The same, if it can be written."""

ATOMIC_BYTES = 8


class Access(IntFlag):
    """What may be done to registered memory; the bits of ``ibv_access_flags``.

    Remote writes and remote atomics need ``LOCAL_WRITE`` as well (``ibv_reg_mr(3)``); owners always read.
    """

    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    REMOTE_ATOMIC = 8


ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC


class PortState(StrEnum):
    """Logical state of a port (``ports/N/state``)."""

    DOWN = "down"
    INIT = "init"
    ARMED = "armed"
    ACTIVE = "active"


class PhysicalState(StrEnum):
    """State of the link's training (``ports/N/phys_state``)."""

    SLEEP = "sleep"
    POLLING = "polling"
    DISABLED = "disabled"
    TRAINING = "training"
    LINK_UP = "link-up"
    RECOVERY = "link-error-recovery"


class LinkLayer(StrEnum):
    """What runs on the cable (``ports/N/link_layer``)."""

    INFINIBAND = "InfiniBand"
    ETHERNET = "Ethernet"


class ConnectionState(StrEnum):
    """State of a queue pair: only ``rts`` sends, ``error`` flushes everything."""

    RESET = "reset"
    INIT = "init"
    RTR = "rtr"
    RTS = "rts"
    ERROR = "error"


class Gid(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a port's GID table.

    ``gid`` is eight groups of hexadecimal digits; ``type`` is ``IB/RoCE v1`` or ``RoCE v2`` as
    ``gid_attrs/types`` says; ``netdev`` the network interface it belongs to, empty if there is none.
    """

    index: int
    gid: str
    type: str
    netdev: str = ""


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """A port as it is now. Rates are of the link, in gigabits a second; ``lid`` is 0 on Ethernet."""

    number: int
    state: PortState
    physical_state: PhysicalState
    link_layer: LinkLayer
    rate_gbps: float
    max_rate_gbps: float
    lid: int
    gids: tuple[Gid, ...] = ()

    @property
    def up(self) -> bool:
        """True if it carries data."""
        return self.state is PortState.ACTIVE


class CompletionCode:
    """``code`` of a :class:`~hal.errors.TransferError`: the numbers of ``ibv_wc_status``."""

    LOCAL_LENGTH = 1
    LOCAL_PROTECTION = 4
    FLUSHED = 5
    REMOTE_INVALID_REQUEST = 9
    REMOTE_ACCESS = 10
    RETRY_EXCEEDED = 12
    RNR_RETRY_EXCEEDED = 13


@runtime_checkable
class Ports(Protocol):
    """A NIC's way to its network."""

    def ports(self, *, deadline: Deadline | None = None) -> Sequence[Port]:
        """Return all ports as they are now, by number (source: ``class/infiniband/<dev>/ports``)."""
        ...

    def counters(self, port: int = 1, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return a port's counters by their kernel name.

        The kernel's ``port_xmit_data`` and ``port_rcv_data`` count words of four bytes; here they are
        ``port_xmit_data_bytes`` and ``port_rcv_data_bytes``. A counter that the driver or the link layer does not have
        is an absence with a reason, never zero. Counters grow until the device is reset.
        Raises ``InvalidArgument`` for a port that does not exist.
        """
        ...


@runtime_checkable
class Region(Protocol):
    """Registered memory. The NIC may use it until :meth:`close`; a peer names it by address and ``rkey``."""

    @property
    def address(self) -> int:
        """First address, as a peer says it."""
        ...

    @property
    def length_bytes(self) -> int:
        """Size."""
        ...

    @property
    def rkey(self) -> bytes:
        """Opaque key with which peers of this handle's connections, and nobody else, may reach the memory."""
        ...

    @property
    def access(self) -> Access:
        """What was allowed at registration."""
        ...

    @property
    def view(self) -> memoryview:
        """The memory itself, format ``B``, writable by its owner; never a copy."""
        ...

    def close(self) -> None:
        """Deregister: a peer that still uses the key gets ``RemoteAccessError``. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Memory(Protocol):
    """Memory that the NIC may touch."""

    def register(
        self, memory: Writable | int, access: Access = Access.LOCAL_WRITE, *, deadline: Deadline | None = None
    ) -> Region:
        """Register a contiguous buffer in place, or that many bytes of new memory, zeroed.

        Drivers may reach memory of their own faster than the user's. Raises ``InvalidArgument`` for an empty or not
        contiguous buffer, a read-only one with a right to write, or remote writing without ``LOCAL_WRITE``.
        """
        ...


@runtime_checkable
class Connection(Protocol):
    """A reliable connection between two endpoints (verbs: an RC queue pair in RTS). One thread at a time uses it.

    Local buffers are contiguous; they belong to the NIC from the call until the operation is done, and are used in
    place. What makes no sense (alignment, bounds of the local buffer) raises ``InvalidArgument`` at once and nothing
    runs. What the fabric or the target refuses fails the returned operation with a ``TransferError`` whose ``code`` is
    one of :class:`CompletionCode`, and moves the connection into its error state.
    """

    @property
    def state(self) -> ConnectionState:
        """``rts``, or ``error`` for good, or ``reset`` once closed."""
        ...

    @property
    def error(self) -> BaseException | None:
        """What broke the connection, or None."""
        ...

    def put(
        self, local: Readable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Write all of ``local`` into the target's memory. Done means: ``local`` may be used again.

        Fails with ``RemoteAccessError`` if key, range or right is wrong.
        """
        ...

    def get(
        self, local: Writable, remote_address: int, rkey: bytes, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """Fill all of ``local`` from the target's memory; done means it is there."""
        ...

    def fetch_add(
        self, remote_address: int, rkey: bytes, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Add to the target's unsigned 64-bit word, modulo 2**64; the result is what was there before.

        Atomic towards every other NIC operation of this kind on the same word, from any process.
        Raises ``InvalidArgument`` unless the address is a multiple of 8 and the value fits 64 bits.
        """
        ...

    def compare_and_swap(
        self, remote_address: int, rkey: bytes, expected: int, value: int, *, deadline: Deadline | None = None
    ) -> Operation[int]:
        """Store ``value`` if the word equals ``expected``; the result is what was there before. As ``fetch_add``."""
        ...

    def send(self, local: Readable, *, deadline: Deadline | None = None) -> Operation[None]:
        """Send a message into the oldest receive that the peer has posted; done when it has arrived.

        With none posted the NIC tries again until the endpoint's patience ends, then fails with a ``TransferError``
        of code ``RNR_RETRY_EXCEEDED``. A message longer than the posted buffer breaks both sides.
        """
        ...

    def recv(self, local: Writable, *, deadline: Deadline | None = None) -> Operation[int]:
        """Post a buffer for one message; done when one has come: its length in bytes. In order of posting.

        Raises ``DeviceBusy`` if the receive queue is full.
        """
        ...

    def fence(self, *, deadline: Deadline | None = None) -> None:
        """Order what was posted before in front of what is posted after. Does not wait for the target."""
        ...

    def flush(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Done when everything posted before is visible in the target's memory."""
        ...

    def close(self) -> None:
        """End the connection; posted receives flush, and the peer's next operation fails. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Endpoint(Protocol):
    """One side of a connection to be (verbs: an RC queue pair in INIT)."""

    @property
    def address(self) -> bytes:
        """Opaque bytes that the other side connects to; carry them by any means."""
        ...

    @property
    def state(self) -> ConnectionState:
        """``init`` until connected."""
        ...

    def connect(self, address: bytes, *, deadline: Deadline | None = None) -> Connection:
        """Connect to the other side's address; both sides do so, in any order, and neither waits for the other.

        Raises ``InvalidArgument`` for bytes that are no address or another link layer, ``TransferError`` if the other
        side cannot be reached, ``DeviceBusy`` if this endpoint is connected already.
        """
        ...

    def close(self) -> None:
        """Give the endpoint back, and its connection with it. Idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Endpoints(Protocol):
    """A NIC that talks to others."""

    def endpoint(
        self, port: int = 1, *, rnr_timeout_seconds: float = 0.5, deadline: Deadline | None = None
    ) -> Endpoint:
        """Create an endpoint on a port; ``rnr_timeout_seconds`` is its patience with a peer that posted no receive.

        Raises ``InvalidArgument`` for a port that does not exist, ``TransferError`` for one that is down.
        """
        ...


@runtime_checkable
class Rnic(Ports, Memory, Endpoints, Handle, Protocol):
    """An opened RDMA NIC.

    Telemetry names, for each port ``N``: ``portN_state`` (:class:`PortState`) and ``portN_rate_gbps``; for the NIC
    ``link_downed`` (how often a link was lost, never falling until a reset) and ``temperature_celsius``.
    """
