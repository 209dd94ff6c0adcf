"""What lies between two holders of a GPU: processes that must have ended. The kernel ends none for us."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from hal.errors import DeviceBusy
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import GpuProcess

LEAVE_SECONDS = 2.0
"""How long processes of a holder may take to end after its lease has."""
_LOOK_SECONDS = 0.05


def refuse_leftovers(
    device_id: str, step: str, users: Callable[[], Sequence[GpuProcess]], deadline: Deadline, patient: bool = True
) -> None:
    """Raise ``DeviceBusy`` while another process than this one uses a GPU or partition."""
    own = os.getpid()
    patience = Deadline.after(min(LEAVE_SECONDS, deadline.remaining_seconds / 2) if patient else 0.0)
    while True:
        left = [process for process in users() if process.pid != own]
        if not left:
            return
        if patience.expired:
            first = left[0]
            raise DeviceBusy(
                f"process {first.pid} ({first.name or 'unknown'}) still uses it",
                device=device_id,
                during=step,
                hint=f"end it: kill {first.pid}",
            )
        time.sleep(_LOOK_SECONDS)
