"""Room that is kept for bad days: a file of some megabytes that is given up, bit by bit, when the disk is full.

Without it nobody could end a lease on a full disk, since that, too, must be written down first. The journal's log is
written over again and again, so that the few megabytes last for tens of thousands of releases.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE = "reserve"
BYTES = 4 << 20
STEP = 512 << 10


class Reserve:
    """A file without content that takes up :data:`BYTES` of the disk, or what is left of it.

    It is made with the first claim.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.left = self._size()

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def restore(self) -> bool:
        """Make it whole again; False if there is no room for that."""
        if self.left >= BYTES:
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, BYTES)
                self.left = os.fstat(file).st_size
            finally:
                os.close(file)
        except OSError:
            self.left = self._size()
            return False
        return True

    def give(self, floor: int = 0) -> bool:
        """Give up some of it, down to ``floor`` bytes; False if there is nothing to give."""
        if self.left <= floor:
            return False
        rest = max(floor, self.left - STEP)
        try:
            os.truncate(self._path, rest)
        except OSError:
            return False
        self.left = rest
        return True
