"""The kernel's own events about devices, read from its netlink socket; a burst loses events, never the reader."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import msgspec

from hal.errors import DriverError
from hal.interfaces.deadline import Deadline

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 8 << 20
_LARGEST = 65536


class Uevent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event. ``devpath`` is below ``/sys``; ``sequence`` grows by one for every event of the machine."""

    action: str
    devpath: str
    subsystem: str = ""
    sequence: int = 0
    properties: dict[str, str] = {}


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Events were lost because they came faster than they were read: look at everything again.

    ``count`` is how many overruns there were since the beginning, not how many events: the kernel does not say.
    """

    count: int


def parse(data: bytes) -> Uevent | None:
    """Return the event that a datagram of the kernel is, or None if it is none (udev's own have another form)."""
    parts = data.split(b"\0")
    header = parts[0]
    if b"@" not in header or header.startswith(b"libudev"):
        return None
    fields: dict[str, str] = {}
    for part in parts[1:]:
        key, equals, value = part.partition(b"=")
        if equals:
            fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    action, _, devpath = header.decode("utf-8", "replace").partition("@")
    sequence = fields.pop("SEQNUM", "0")
    return Uevent(
        action=fields.pop("ACTION", action),
        devpath=fields.pop("DEVPATH", devpath),
        subsystem=fields.pop("SUBSYSTEM", ""),
        sequence=int(sequence) if sequence.isdecimal() and len(sequence) < 20 else 0,
        properties=fields,
    )


class UeventReader:
    """Reads the events of this machine (of this network name space); needs no rights.

    Use it as a context manager, or :meth:`close` it. Raises :class:`~hal.errors.DriverError` where there is no netlink.
    """

    def __init__(self, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self.losses = 0
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT
            )
        except OSError as error:
            raise self._refusal(error) from None
        try:
            self._enlarge(buffer_bytes)
            self._socket.bind((0, _KERNEL_GROUP))
        except OSError as error:
            self._socket.close()
            raise self._refusal(error) from None

    def _enlarge(self, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:  # beyond the system's limit only root may go
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _refusal(self, error: OSError) -> DriverError:
        return DriverError(
            f"no events from the kernel: {error.strerror}", during="watch", hint="watch by looking again every second"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The socket, to wait for with others."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._socket.close()

    def next(self, deadline: Deadline) -> Uevent | Loss | None:
        """Return the next event, or a loss, or None when the deadline has passed."""
        while True:
            remaining = deadline.timeout
            if remaining is not None and remaining <= 0:
                self._socket.setblocking(False)  # what has arrived already is still given
            else:
                self._socket.settimeout(remaining)
            try:
                data, sender = self._socket.recvfrom(_LARGEST)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.losses += 1
                    return Loss(count=self.losses)
                raise
            # The kernel has port 0; another process that speaks to this group is not believed.
            if sender[0] != 0:
                continue
            event = parse(data)
            if event is not None:
                return event

    def events(self, deadline: Deadline) -> Iterator[Uevent | Loss]:
        """Yield events and losses until the deadline."""
        while True:
            event = self.next(deadline)
            if event is None:
                return
            yield event
