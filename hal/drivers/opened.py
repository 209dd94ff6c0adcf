"""What the handles of all drivers do before every verb, for a plugin's handle to inherit or to copy.

A handle asks its guard, then whether its deadline has passed, then whether it is still open and still in the process
that opened it; see :class:`~hal.interfaces.common.Handle`. Nothing else is shared: what a verb does is the driver's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from hal.errors import DeadlineExceeded, InvalidArgument

if TYPE_CHECKING:
    from types import TracebackType

    from hal.drivers.guard import Guard
    from hal.interfaces.deadline import Deadline
    from hal.model.device import Device

_OPEN: WeakSet[OpenedDevice] = WeakSet()
_hooked = False


def _leave_to_parent() -> None:
    for handle in tuple(_OPEN):
        handle._leave()  # noqa: SLF001 - its own class, below
    _OPEN.clear()


class OpenedDevice:
    """A device opened under a guard. A driver's handle calls :meth:`_enter` first in every verb, and gives
    :meth:`_release` (at the first close) and :meth:`_abandon` (in a forked child) where it holds something.
    """

    def __init__(self, device: Device, guard: Guard) -> None:
        global _hooked
        self._device = device
        self._guard = guard
        self._check = guard.check
        self._usable = True
        self._forked = False
        if not _hooked:
            _hooked = True
            os.register_at_fork(after_in_child=_leave_to_parent)
        _OPEN.add(self)

    @property
    def device(self) -> Device:
        """The device as it was discovered when the handle was opened."""
        return self._device

    def _enter(self, step: str, deadline: Deadline | None = None) -> None:
        """Raise ``LeaseEnded``, ``DeadlineExceeded`` or ``InvalidArgument`` if the verb may not begin."""
        self._check()
        if deadline is not None and deadline.expired:
            raise DeadlineExceeded(
                "the deadline had passed before it began: nothing was done",
                device=self._device.id,
                during=step,
                hint="give a later deadline",
            )
        if not self._usable:
            self._refuse(step)

    def _refuse(self, step: str) -> None:
        if self._forked:
            raise InvalidArgument(
                "the handle belongs to the process that was forked",
                device=self._device.id,
                during=step,
                hint="open the device in this process",
            )
        raise InvalidArgument("the handle is closed", device=self._device.id, during=step, hint="open the device again")

    def _leave(self) -> None:
        self._usable = False
        self._forked = True
        self._abandon()

    def _release(self) -> None:
        """Give back what the handle holds; called once."""

    def _abandon(self) -> None:
        """Let go of descriptors in a forked child without touching what the parent shares."""

    def close(self) -> None:
        """Give back what the handle holds on the device; does not release the lease. Idempotent."""
        if self._usable:
            self._usable = False
            _OPEN.discard(self)
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
