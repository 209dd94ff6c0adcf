"""What makes ``hal-probe watch`` look again: a uevent of the kernel, or the end of an interval."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self


class Bell:
    """Rings when there may be something new. With ``live``, uevents ring it too, if the kernel lets us hear them."""

    def __init__(self, live: bool) -> None:
        self.live = live

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""

    def describe(self) -> str:
        """Say what rings it."""
        return "looking again at intervals"

    def wait(self, seconds: float) -> int:
        """Wait until it rings, at most so long; returns how often events were lost meanwhile."""
        time.sleep(seconds)
        return 0
