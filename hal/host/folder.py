"""One device's folder, held open while its files are read by their bare names: quicker than by their paths."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from hal.host.missing import ABSENT_LINK, EMPTY, NOT_TEXT, Missing
from hal.model.attributes import Absence

if TYPE_CHECKING:
    from hal.host.tree import Tree

FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
FOLDER = os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW
PAGE_BYTES = 4096
BLANK = " \n\t\r\0"


class Folder:
    """A folder as text, by the names in it. Where it could not be opened every question goes by way of the tree."""

    __slots__ = ("_fd", "_tree", "path")

    def __init__(self, tree: Tree, path: str, descriptor: int = -1) -> None:
        self._tree = tree
        self._fd = descriptor
        self.path = path

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, name: str) -> str | Missing:
        """Return the text of an attribute without the white space around it, or why there is none."""
        if self._fd < 0:
            return self._tree.read(f"{self.path}/{name}")
        try:
            descriptor = os.open(name, FLAGS, dir_fd=self._fd)
        except OSError as error:
            return self._tree.why(error, f"{self.path}/{name}")
        try:
            data = os.read(descriptor, PAGE_BYTES)
            return (data.decode().strip(BLANK) or EMPTY) if data else why_empty(descriptor)
        except UnicodeDecodeError:
            return NOT_TEXT
        except OSError as error:
            return self._tree.why(error, f"{self.path}/{name}")
        finally:
            os.close(descriptor)

    def open(self, name: str) -> int | Missing:
        """Open a file for reading here and there (``os.pread``); the caller closes the descriptor."""
        if self._fd < 0:
            return self._tree.open(f"{self.path}/{name}")
        try:
            return os.open(name, FLAGS, dir_fd=self._fd)
        except OSError as error:
            return self._tree.why(error, f"{self.path}/{name}")

    def link(self, name: str) -> str | None:
        """Return the last name of where a link leads (a driver's, a group's), or None if it is no link."""
        if self._fd < 0:
            return self._tree.link(f"{self.path}/{name}")
        try:
            return last_name(os.readlink(name, dir_fd=self._fd))
        except OSError:
            return None

    def lacks(self, name: str) -> bool:
        """True if there is certainly no entry of that name: much quicker than to fail to read it."""
        return self._fd >= 0 and not os.access(name, os.F_OK, dir_fd=self._fd, follow_symlinks=False)


def decode(data: bytes) -> str | Missing:
    """Return the text of an attribute, or why it is none."""
    try:
        return data.decode().strip(BLANK) or EMPTY
    except UnicodeDecodeError:
        return NOT_TEXT


def why_empty(descriptor: int) -> Missing:
    """Say why nothing could be read from an open file."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        return Missing(Absence.TIMEOUT, "a pipe in place of the attribute: a reader would wait for ever")
    # Root can open what nobody may read; a recording marks it by its mode, and says the same to everybody.
    return Missing(Absence.PERMISSION) if not stat.S_IMODE(mode) else EMPTY


def last_name(target: str) -> str | None:
    """Return the last name on a link's target, if it is one."""
    if target.startswith(ABSENT_LINK):
        return None
    name = target.rstrip("/").rpartition("/")[2]
    return name if name not in ("", ".", "..") and target.isprintable() else None
