"""What makes ``hal-probe watch`` look again: a uevent of the kernel, or the end of an interval."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hal.errors import DriverError
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal.host.uevents import UeventReader

_QUIET_SECONDS, _BURST_SECONDS = 0.05, 1.0


class Bell:
    """Rings when there may be something new.

    With ``live`` the kernel's uevents ring it too, if we may hear them; one ring covers a whole burst, which is over
    when it has been quiet for a moment.
    """

    def __init__(self, live: bool) -> None:
        self.live = live
        self._reader: UeventReader | None = None
        self._why_not = "not this machine"

    def __enter__(self) -> Self:
        if self.live:
            from hal.host.uevents import UeventReader

            try:
                self._reader = UeventReader()
            except DriverError as error:
                self._why_not = error.message
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

    def describe(self) -> str:
        """Say what rings it."""
        if self._reader is not None:
            return "the kernel's events and an interval make it look again"
        return f"an interval makes it look again (no kernel events: {self._why_not})"

    def wait(self, seconds: float) -> int:
        """Wait until it rings, at most so long; returns how often events were lost meanwhile."""
        if self._reader is None:
            time.sleep(seconds)
            return 0
        before = self._reader.losses
        if self._reader.next(Deadline.after(seconds)) is not None:
            burst = Deadline.after(_BURST_SECONDS)
            while not burst.expired and self._reader.next(Deadline.after(_QUIET_SECONDS)) is not None:
                pass
        return self._reader.losses - before
