"""Hot-plug events as the kernel and udev send them, into the network namespace that this process is in.

The kernel takes a uevent from whoever rules a network namespace, numbers it and hands it to everybody who listens there
(``lib/kobject_uevent.c``, since Linux 4.18). udev's own message goes to its multicast group, with the header that
libudev checks (``src/libsystemd/sd-device/device-monitor.c``).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_NETLINK_KOBJECT_UEVENT = 15
_UDEV_GROUP = 2
_NLM_F_REQUEST = 1
_NLMSG_MIN_TYPE = 16
_NLMSGHDR = struct.Struct("=LHHLL")
_UDEV_HEADER = struct.Struct("=8sIIIIIIII")
_UDEV_MAGIC = 0xFEED_CAFE
_MASK = 0xFFFF_FFFF


class UeventSender:
    """Sends events to both kinds of listeners: those of the kernel's group and those of udev's."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back. Idempotent."""
        self._socket.close()

    def send(self, action: str, devpath: str, subsystem: str, properties: Mapping[str, str]) -> None:
        """Send one event; ``devpath`` begins with ``/devices``. Raises ``OSError`` if the namespace is not ours.

        That nobody listens to udev's group is no error: the kernel says so by ``ECONNREFUSED``.
        """
        self._sequence += 1
        fields = {"ACTION": action, "DEVPATH": devpath, "SUBSYSTEM": subsystem, **properties}
        self._socket.sendto(kernel_message(action, devpath, fields), (0, 0))
        try:
            self._socket.sendto(udev_message(fields, self._sequence), (0, _UDEV_GROUP))
        except ConnectionRefusedError:
            pass


def kernel_message(action: str, devpath: str, fields: Mapping[str, str]) -> bytes:
    """Return a request that makes the kernel send the event; it adds ``SEQNUM`` itself."""
    body = f"{action}@{devpath}\0".encode() + _listed(fields)
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _NLMSG_MIN_TYPE, _NLM_F_REQUEST, 1, 0) + body


def udev_message(fields: Mapping[str, str], sequence: int) -> bytes:
    """Return the event as udev passes it on, once it has looked at the device."""
    body = _listed({**fields, "SEQNUM": str(sequence)})
    size = _UDEV_HEADER.size
    hashes = (name_hash(fields["SUBSYSTEM"]), name_hash(fields["DEVTYPE"]) if fields.get("DEVTYPE") else 0)
    header = _UDEV_HEADER.pack(
        b"libudev\0", socket.htonl(_UDEV_MAGIC), size, size, len(body), *map(socket.htonl, hashes), 0, 0
    )
    return header + body


def name_hash(text: str) -> int:
    """Return MurmurHash2 (32 bits, seed 0) of a name, by which libudev's socket filters choose."""
    data = text.encode()
    factor = 0x5BD1_E995
    state = len(data) & _MASK
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * factor & _MASK
        word = (word ^ word >> 24) * factor & _MASK
        state = (state * factor & _MASK) ^ word
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * factor & _MASK
    state = (state ^ state >> 13) * factor & _MASK
    return state ^ state >> 15


def _listed(fields: Mapping[str, str]) -> bytes:
    return "".join(f"{key}={value}\0" for key, value in fields.items()).encode()
