"""What every opened device has, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from hal.interfaces.deadline import Deadline
from hal.model.attributes import Attribute
from hal.model.device import Device


@runtime_checkable
class Handle(Protocol):
    """A device opened under a lease, in the user's own process.

    Every verb checks the lease first (one look at a shared page, no call) and raises
    :class:`~hal.errors.LeaseEnded` once it has been released, has expired or was revoked. Then it raises
    ``DeadlineExceeded``, before anything is done, for a deadline that has passed, and ``InvalidArgument`` for a handle
    that is closed or was opened by the process that forked this one. A fast verb returns within its deadline; a slow
    one returns an :class:`~hal.interfaces.operation.Operation` that ends within it. What is known at once may be
    raised at once, instead of failing the operation.
    """

    @property
    def device(self) -> Device:
        """The device as it was discovered when the handle was opened."""
        ...

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return what can be measured now, by name with the unit in it; a field that cannot be read says why."""
        ...

    def close(self) -> None:
        """Give back what this handle holds on the device. Idempotent; does not release the lease."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
