"""The error tree: every error names the device, the step, and what to try next.

::

    HalError
    ├── UsageError                  the caller asked for something that makes no sense
    │   ├── SelectorError           an expression that does not parse or names no attribute
    │   ├── ClaimError              a claim that is malformed, or an id used for something else
    │   └── ProfileError            a machine description with a mistake (file and line)
    ├── PluginError                 a plugin that cannot be imported, or breaks a hook
    ├── DriverError                 a driver that cannot work here
    │   └── NotReady                no binding, library, kernel driver, permission or hardware
    ├── DeviceError                 one device, one step
    │   ├── DeviceNotFound          nothing here has that name
    │   ├── DeviceGone              it was there; it is lost or off the bus
    │   ├── DeadlineExceeded        it did not answer in time; its state is unknown
    │   ├── AccessDenied            the operating system, the mode or the lock forbids it
    │   ├── Unsupported             this device, driver or firmware cannot do it
    │   ├── InvalidArgument         alignment, bounds, unknown symbol: refused before it ran
    │   ├── DeviceBusy              somebody or something still uses it
    │   ├── OutOfMemory             the device's memory, or the share of it, is used up
    │   └── HardwareFault           the device reports an error of its own
    │       ├── UncorrectableError  data was lost (ECC, poison, bad block)
    │       ├── TransferError       a completion with an error; the connection is in error
    │       │   ├── RemoteAccessError   the target refused the key, range or right
    │       │   └── FlushedError        the connection was already in error
    │       ├── AuthenticationFailed    a tag does not fit its data: nothing was given out
    │       └── ProgramFault        code on the device faulted
    ├── LeaseError
    │   ├── LeaseEnded              released, expired or revoked: the handle is dead
    │   ├── LeaseNotFound           no lease of that id (or not yours)
    │   └── StaleFence              a holder older than the one the device knows
    └── BrokerError
        ├── ClaimRefused            no, with the proof in words
        └── JournalError            the journal cannot be read or written; nothing was changed
"""

from __future__ import annotations


class HalError(Exception):
    """Base of everything hal raises on purpose.

    ``device`` is an id or a name, ``during`` the verb, ``hint`` the next thing to try.
    """

    def __init__(
        self, message: str, *, device: str | None = None, during: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.device = device
        self.during = during
        self.hint = hint

    def __str__(self) -> str:
        device = None if self.device is None else str(self.device)  # an error must be readable, whatever was passed
        where = " ".join(part for part in (device, f"during {self.during}" if self.during else None) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} (try: {self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(kind: type[HalError], fields: dict[str, object]) -> HalError:
    error = kind.__new__(kind)
    Exception.__init__(error, fields.get("message", ""))
    error.__dict__.update(fields)
    return error


class UsageError(HalError):
    """The caller asked for something that makes no sense."""


class SelectorError(UsageError):
    """An expression that does not parse, or names an attribute nothing can have."""


class ClaimError(UsageError):
    """A claim that is malformed, or an id that was used for a different claim."""


class ProfileError(UsageError):
    """A machine description with a mistake; the message starts with file and line."""


class PluginError(HalError):
    """A plugin that cannot be imported, or breaks a hook."""


class DriverError(HalError):
    """A driver that cannot work here."""


class NotReady(DriverError):
    """A binding, library, kernel driver, permission or the hardware is missing."""


class DeviceError(HalError):
    """One device failed in one step."""


class DeviceNotFound(DeviceError):
    """Nothing here has that id, name or alias."""


class DeviceGone(DeviceError):
    """The device was there; it is lost or has fallen off the bus."""


class DeadlineExceeded(DeviceError):
    """The device did not answer in time; the outcome of the step is unknown."""


class AccessDenied(DeviceError):
    """The operating system, the device's mode or its lock forbids the step."""


class Unsupported(DeviceError):
    """Not possible with this device, driver or firmware; asking again will not help."""


class InvalidArgument(DeviceError):
    """Alignment, bounds, a name nobody knows: refused before anything ran."""


class DeviceBusy(DeviceError):
    """Somebody or something still uses the device."""


class OutOfMemory(DeviceError):
    """The device's memory, or the holder's share of it, is used up; nothing was allocated."""


class HardwareFault(DeviceError):
    """The device reports an error of its own; ``code`` is the vendor's, if it has one."""

    def __init__(
        self,
        message: str,
        *,
        device: str | None = None,
        during: str | None = None,
        hint: str | None = None,
        code: int | None = None,
    ) -> None:
        super().__init__(message, device=device, during=during, hint=hint)
        self.code = code


class UncorrectableError(HardwareFault):
    """Data was lost: uncorrectable ECC, poison, a bad block."""


class TransferError(HardwareFault):
    """A work request completed with an error; its connection is now in the error state."""


class RemoteAccessError(TransferError):
    """The target refused the remote key, the range or the access right."""


class FlushedError(TransferError):
    """The work request was flushed: its connection was already in the error state."""


class AuthenticationFailed(HardwareFault):
    """An authentication tag does not fit its data: altered, truncated, or another key; nothing was given out."""


class ProgramFault(HardwareFault):
    """Code running on the device faulted."""


class LeaseError(HalError):
    """Something about a lease."""


class LeaseEnded(LeaseError):
    """The lease was released, expired or was revoked: the handle is dead, open a new one."""


class LeaseNotFound(LeaseError):
    """No lease of that id exists, or it is not the caller's."""


class StaleFence(LeaseError):
    """The holder is older than the one that the device knows."""


class BrokerError(HalError):
    """The broker could not do what was asked."""


class ClaimRefused(BrokerError):
    """No, with the proof in words."""


class JournalError(BrokerError):
    """The journal cannot be read or written; nothing acknowledged was lost, nothing new was granted."""
