"""What crosses between a daemon and the process of a driver: frames, verbs with their types, errors as themselves.

A frame is four bytes of length (little endian), one byte that says what it is (:data:`ASK`, :data:`ANSWER`,
:data:`ERROR`, :data:`ITEM`), and MessagePack. Every verb has its types here, so that what a driver gives is checked
where it enters, and nothing that runs code (a pickle) ever crosses.
"""

from __future__ import annotations

import select
import socket
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from hal import errors
from hal.drivers.contract import Discovery, Grant, Readiness
from hal.drivers.guarded import describe
from hal.errors import DeviceError, DriverError, HalError
from hal.interfaces.gpu import Mode, Partition, PartitionProfile
from hal.model.event import Event
from hal.model.health import Condition

if TYPE_CHECKING:
    from hal.interfaces.deadline import Deadline

ASK, ANSWER, ERROR, ITEM = range(4)
MOST_BYTES = 256 << 20
"""No frame is longer: a driver that has lost its mind must not take the daemon's memory with it."""
_HEAD = struct.Struct("<IB")
_AT_ONCE = 1 << 16
_PATIENCE_SECONDS = 0.1
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class Verb:
    """The types of a verb: its arguments in order, its answer, and what it sends in between (``items``).

    ``facet`` is the Protocol that asks for it, empty for what every driver has. With ``items`` it has a socket of its
    own and does not keep others from the driver while it runs.
    """

    arguments: Any
    answer: Any
    facet: str = ""
    items: Any = None


VERBS: dict[str, Verb] = {
    "readiness": Verb(tuple[()], Readiness),
    "discover": Verb(tuple[()], Discovery),
    "sample": Verb(tuple[tuple[str, ...]], tuple[Condition, ...]),
    "prepare": Verb(tuple[str, Grant], None),
    "unprepare": Verb(tuple[str, Grant], None),
    "close": Verb(tuple[()], None),
    "reset": Verb(tuple[str], None, "Resets", float),
    "scrub": Verb(tuple[str], None, "Scrubs", float),
    "events": Verb(tuple[()], None, "Reports", Event),
    "partitioning": Verb(tuple[str], Mode, "PartitionsDevices"),
    "set_partitioning": Verb(tuple[str, bool], Mode, "PartitionsDevices"),
    "partition_profiles": Verb(tuple[str], tuple[PartitionProfile, ...], "PartitionsDevices"),
    "partitions": Verb(tuple[str], tuple[Partition, ...], "PartitionsDevices"),
    "create_partition": Verb(tuple[str, str, int | None], Partition, "PartitionsDevices", float),
    "destroy_partition": Verb(tuple[str, str], None, "PartitionsDevices", float),
}


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A verb, how many seconds it has, and its arguments, still encoded."""

    verb: str
    seconds: float
    arguments: msgspec.Raw


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver's process says first: whose it is, which facets the driver has, what it imported to create it."""

    name: str
    facets: tuple[str, ...]
    modules: tuple[str, ...] = ()


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way. ``kinds`` are its class and that class's ancestors, nearest first."""

    kinds: tuple[str, ...]
    message: str
    device: str | None = None
    during: str | None = None
    hint: str | None = None
    code: int | None = None


class Broken(Exception):
    """The other side has gone, or speaks no frames."""


@cache
def decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of a type."""
    return msgspec.msgpack.Decoder(type_)


def frame(tag: int, value: Any) -> bytes:
    """Return a value as a frame; raises what msgspec raises for one that cannot be sent."""
    body = _ENCODER.encode(value)
    return _HEAD.pack(len(body), tag) + body


def question(verb: str, seconds: float, arguments: tuple[Any, ...]) -> bytes:
    """Return the frame that asks for a verb."""
    return frame(ASK, Ask(verb, seconds, msgspec.Raw(_ENCODER.encode(arguments))))


def receive(channel: socket.socket, deadline: Deadline | None = None) -> tuple[int, memoryview]:
    """Return the next frame's tag and body. Raises :class:`Broken` at the end, ``TimeoutError`` after the deadline.

    With a deadline the socket is a :func:`patient` one: a blocking one, which costs four system calls fewer than one
    with Python's own time-out.
    """
    chunk = channel.recv(_AT_ONCE) if deadline is None else _receive(channel, deadline)
    if len(chunk) >= _HEAD.size:  # the usual case: all of it came at once
        length, tag = _HEAD.unpack_from(chunk)
        if len(chunk) == _HEAD.size + length:
            return tag, memoryview(chunk)[_HEAD.size :]
    if not chunk:
        raise Broken("it ended")
    data = bytearray(chunk)
    while len(data) < _HEAD.size or len(data) < _HEAD.size + length:
        chunk = channel.recv(_AT_ONCE) if deadline is None else _receive(channel, deadline)
        if not chunk:
            raise Broken("it ended in the middle")
        data += chunk
        length, tag = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (0, 0)
        if length > MOST_BYTES:
            raise Broken(f"a frame of {length} bytes")
    if len(data) > _HEAD.size + length:
        raise Broken("more than one frame was sent at once")
    return tag, memoryview(data)[_HEAD.size :]


def patient(channel: socket.socket) -> socket.socket:
    """Return the socket with a short patience of its own, after which :func:`receive` looks at its deadline."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(_PATIENCE_SECONDS * 1e6)))
    return channel


def _receive(channel: socket.socket, deadline: Deadline) -> bytes:
    left = deadline.remaining_seconds
    if left > 2 * _PATIENCE_SECONDS:
        try:
            return channel.recv(_AT_ONCE)
        except BlockingIOError:
            left = deadline.remaining_seconds
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(left * 1000):
        raise TimeoutError
    return channel.recv(_AT_ONCE)


def failure(error: BaseException, device: str | None, during: str) -> Failure:
    """Return an error as what crosses; what is none of ours becomes one of the driver's, or of its device's."""
    if not isinstance(error, HalError):
        kind = DriverError if device is None else DeviceError
        error = kind(describe(error), device=device, during=during, hint="report it to the plugin")
    kinds = tuple(kind.__name__ for kind in type(error).__mro__ if issubclass(kind, HalError))
    code = getattr(error, "code", None)
    texts = {name: None if (text := getattr(error, name, None)) is None else str(text) for name in _TEXTS}
    return Failure(kinds=kinds, message=str(error.message), code=code if isinstance(code, int) else None, **texts)


_TEXTS = ("device", "during", "hint")


def raised(found: Failure) -> HalError:
    """Return the error that was sent: of its own class, or of the nearest ancestor that is known here."""
    kind = next((kind for name in found.kinds if (kind := _kind(name)) is not None), DriverError)
    words: dict[str, Any] = {"device": found.device, "during": found.during, "hint": found.hint}
    error = kind(found.message, **words)
    if isinstance(error, errors.HardwareFault):
        error.code = found.code
    return error


def _kind(name: str) -> type[HalError] | None:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, HalError) else None
