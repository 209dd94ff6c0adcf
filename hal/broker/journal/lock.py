"""One process has the journal open, and whoever comes second waits, or is told who that is."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from hal.errors import JournalError
from hal.interfaces.deadline import Deadline


class JournalBusy(JournalError):
    """Another process has the journal open; trying again later will help."""


def wait_for(lock: int, folder: Path, deadline: Deadline) -> None:
    """Take the lock, an open file, or raise :class:`JournalBusy` saying who has it; it goes when the file is closed."""
    pause = 0.002
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.expired:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise JournalBusy(
                    f"process {holder} has the journal open",
                    device=str(folder),
                    during="open",
                    hint="wait for it to end, or use another --state FOLDER",
                ) from None
            time.sleep(min(pause, deadline.remaining_seconds))
            pause = min(pause * 2, 0.05)
        else:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            return
