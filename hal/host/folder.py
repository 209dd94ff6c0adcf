"""One device's folder, held open while its files are read by their bare names: quicker than by their paths."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hal.host.missing import ABSENT_LINK, EMPTY, NOT_TEXT, NOT_THERE, Missing
from hal.model.attributes import Absence

if TYPE_CHECKING:
    from hal.host.tree import Tree

FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
FOLDER = os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW
PAGE_BYTES = 4096
_FEW_BYTES = 400  # longer than most attributes, and short enough for Python to take it from its own pool
BLANK = " \n\t\r\0"
_CONTROL = Missing(Absence.MALFORMED, "control characters")


class Folder:
    """A folder as text, by the names in it. Where it could not be opened every question goes by way of the tree."""

    __slots__ = ("_fd", "_tree", "path")

    def __init__(self, tree: Tree, path: str, descriptor: int = -1) -> None:
        self._tree = tree
        self._fd = descriptor
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give it back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """Note that it has been closed: from now on every question goes by way of the tree."""
        self._fd = -1

    def read(self, name: str) -> str | Missing:
        """Return the text of an attribute without the white space around it, or why there is none."""
        return self.read_many((name,))[0]

    def read_many(self, names: tuple[str, ...]) -> list[str | Missing]:
        """Return several attributes, each like :meth:`read`; the quick way."""
        if self._fd < 0:
            return self._tree.read_many(self.path, names)
        return read_texts(self._tree, self._fd, "", names, self.path)

    def line(self, name: str) -> str | Missing:
        """Return an attribute that is one printable line."""
        return one_line_of(self.read_many((name,))[0])

    def below(self, name: str) -> Folder:
        """Return a folder in this one, open if it is there and no link; the caller closes it."""
        path = f"{self.path}/{name}"
        if self._fd >= 0:
            try:
                return Folder(self._tree, path, os.open(name, FOLDER, dir_fd=self._fd))
            except OSError:
                pass
        return Folder(self._tree, path)

    def holds(self, name: str) -> bool:
        """True if there is something of that name, whatever it is, and if it is a link, where it leads."""
        if self.lacks(name):
            return False
        if self._fd >= 0:
            try:
                os.close(os.open(name, FOLDER, dir_fd=self._fd))  # a folder, the usual thing to be asked for
            except OSError:
                pass
            else:
                return True
        return self._tree.exists(f"{self.path}/{name}")

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


def read_texts(
    tree: Tree, top: int, start: str, names: tuple[str, ...], folder: str, limit: int = PAGE_BYTES
) -> list[str | Missing]:
    """Return the texts of files whose paths, from the open folder ``top``, are ``start`` and a name.

    ``folder`` is where they are in the tree. A file is read once, and a second time only if it is a long one.
    """
    open_, read, close, flags, blank = os.open, os.read, os.close, FLAGS, BLANK
    few = _FEW_BYTES if limit > _FEW_BYTES else limit
    found: list[str | Missing] = []
    for name in names:
        try:
            descriptor = open_(start + name, flags, dir_fd=top)
        except OSError as error:
            found.append(tree.why(error, f"{folder}/{name}" if folder else name))
            continue
        except ValueError:  # a NUL within the name
            found.append(NOT_THERE)
            continue
        try:
            data = read(descriptor, few)
            if len(data) == few < limit:
                data += read(descriptor, limit - few)
            found.append((data.decode().strip(blank) or EMPTY) if data else why_empty(descriptor))
        except UnicodeDecodeError:
            found.append(NOT_TEXT)
        except OSError as error:
            found.append(tree.why(error, f"{folder}/{name}" if folder else name))
        finally:
            close(descriptor)
    return found


def one_line_of(found: str | Missing) -> str | Missing:
    """Return a text if it is one printable line."""
    if isinstance(found, str) and not found.isprintable():
        return _CONTROL
    return found


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
