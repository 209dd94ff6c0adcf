"""A read-only sysfs below a movable root. Nothing in it can hang, escape or raise: what cannot be read says why."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from stat import S_ISLNK
from types import TracebackType
from typing import Self

from hal.errors import DriverError
from hal.host.folder import FLAGS, FOLDER, PAGE_BYTES, Folder, last_name, one_line_of, read_texts, why_empty
from hal.host.missing import ABSENT_LINK, BY_ERRNO, NOT_THERE, OUTSIDE, recorded_absence
from hal.host.missing import Missing as Missing  # part of what a tree says
from hal.model.attributes import Absence, Attribute

_LARGEST = (1 << 64) - 1
_SMALLEST = -(1 << 63)
_MOST_COMPONENTS = 64
_MOST_LINKS = 40


class Tree:
    """One sysfs (or proc, or dev) as text and names; paths are relative to it and contain no links but the last one.

    ``trusted`` is the running kernel's own, whose links lead where they say. In a recorded tree every folder on the
    way is checked once, and a link that leaves the tree leads nowhere.
    """

    opens_folders = True
    """False where what is read by bare names would escape: every question then goes by its whole path."""

    def __init__(self, folder: str, *, trusted: bool = False) -> None:
        self.folder = folder
        self.trusted = trusted
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._canonical: dict[str, str | None] = {"": ""}
        self._depth = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_bytes(self, path: str, limit: int = PAGE_BYTES) -> bytes | Missing:
        """Return the first bytes of a file, in one read, or why there are none."""
        descriptor = self.open(path)
        if isinstance(descriptor, Missing):
            return descriptor
        try:
            return os.read(descriptor, limit) or why_empty(descriptor)
        except OSError as error:
            return self.why(error, path)
        finally:
            os.close(descriptor)

    def open(self, path: str) -> int | Missing:
        """Open a file for reading here and there (``os.pread``); the caller closes the descriptor."""
        if not self.trusted:
            parent, _, name = path.rpartition("/")
            folder = self.resolve(parent)
            if folder is None:
                return OUTSIDE
            path = f"{folder}/{name}" if folder else name
        try:
            return os.open(path, FLAGS, dir_fd=self._fd)
        except OSError as error:
            return self.why(error, path)
        except ValueError:  # a NUL within the name
            return NOT_THERE

    def read(self, path: str, limit: int = PAGE_BYTES) -> str | Missing:
        """Return the text of an attribute without the white space around it, or why there is none."""
        folder, _, name = path.rpartition("/")
        return self.read_many(folder, (name,), limit)[0]

    def read_many(self, folder: str, names: tuple[str, ...], limit: int = PAGE_BYTES) -> list[str | Missing]:
        """Return several attributes of one device, each like :meth:`read`; the quick way."""
        if not self.trusted:
            resolved = self._canonical.get(folder) or self.resolve(folder)
            if resolved is None:
                return [OUTSIDE] * len(names)
            folder = resolved
        return read_texts(self, self._fd, f"{folder}/" if folder else "", names, folder, limit)

    def line(self, path: str) -> str | Missing:
        """Return an attribute that is one printable line."""
        return one_line_of(self.read(path))

    def number(self, path: str) -> int | Missing:
        """Return an attribute that is a whole number, decimal or 0x hexadecimal, of at most 64 bits."""
        found = self.read(path)
        return parse_number(found) if isinstance(found, str) else found

    def text(self, folder: str, name: str) -> Attribute:
        """Return a one-line attribute of a device with its source."""
        found = self.line(f"{folder}/{name}")
        if isinstance(found, str):
            return Attribute(found, "sysfs:" + name)
        return found.attribute("sysfs:" + name)

    def count(self, folder: str, name: str) -> Attribute:
        """Return a numeric attribute of a device with its source."""
        found = self.number(f"{folder}/{name}")
        if isinstance(found, int):
            return Attribute(found, "sysfs:" + name)
        return found.attribute("sysfs:" + name)

    def names(self, path: str) -> list[str]:
        """Return what a folder holds, sorted; empty if it is not there or may not be listed.

        Names that cannot be printed are left out: no kernel makes them.
        """
        where = path if self.trusted else self.resolve(path)
        if where is None:
            return []
        flags = FOLDER & ~os.O_NOFOLLOW if self.trusted else FOLDER
        try:
            descriptor = os.open(where or ".", flags, dir_fd=self._fd)
        except (OSError, ValueError):
            return []
        try:
            found = sorted(os.listdir(descriptor))
            return found if "".join(found).isprintable() else [name for name in found if name.isprintable()]
        except OSError:
            return []
        finally:
            os.close(descriptor)

    def walk(self, path: str) -> Iterator[tuple[str, Folder | None]]:
        """Yield what a folder of links (``bus/pci/devices``) holds, each with the folder that it leads to.

        The folder is open until the next one is asked for; None for a link that leads out of the tree.
        """
        canonical, trusted, up = self._canonical, self.trusted, "../" * (path.count("/") + 1)
        readlink, open_, close, top, skip = os.readlink, os.open, os.close, self._fd, len(up)
        for name in self.names(path):
            here = f"{path}/{name}"
            where: str | None = None
            descriptor = -1
            if self.opens_folders and here not in canonical:
                try:
                    target = readlink(here, dir_fd=top)
                    if (
                        target.startswith(up)
                        and target.isprintable()
                        and target.find("/.", skip) < 0
                        and "//" not in target
                    ):
                        where = target[skip:]
                        above = where[: where.rfind("/")]
                        if trusted or canonical.get(above) == above or self.resolve(above) == above:
                            descriptor = open_(where or ".", FOLDER, dir_fd=top)  # a link is not: looking is opening
                            canonical[here] = canonical[where] = where
                except (OSError, ValueError):
                    pass
            if descriptor < 0:
                where = self.resolve(here)
                if where is None:
                    yield name, None
                    continue
                descriptor = self._open_folder(where)
            folder = Folder(self, where or "", descriptor)
            try:
                yield name, folder
            finally:
                if descriptor >= 0:
                    close(descriptor)
                    folder.forget()

    def entries(self, path: str) -> list[tuple[str, str | None]]:
        """Return what a folder of links holds, each with where it really is."""
        return [(name, None if folder is None else folder.path) for name, folder in self.walk(path)]

    def _open_folder(self, path: str) -> int:
        """Open a folder whose path contains no links; -1 if it cannot be, or is none."""
        if not self.opens_folders:
            return -1
        try:
            return os.open(path or ".", FOLDER, dir_fd=self._fd)
        except (OSError, ValueError):
            return -1

    def exists(self, path: str) -> bool:
        """True if there is something, whatever it is."""
        if self.trusted:
            return os.access(path or ".", os.F_OK, dir_fd=self._fd)
        parent, _, name = path.rpartition("/")
        folder = self.resolve(parent)
        if folder is None:
            return False
        here = f"{folder}/{name}" if folder else name
        if not os.access(here or ".", os.F_OK, dir_fd=self._fd, follow_symlinks=False):
            return False  # the usual answer, and much the quickest way to it
        where = self.resolve(here)
        if where is None or where == here:
            return where is not None
        try:
            os.lstat(where or ".", dir_fd=self._fd)
        except (OSError, ValueError):
            return False
        return True

    def link(self, path: str) -> str | None:
        """Return the last name of where a link leads (a driver's, a group's), or None if it is no link."""
        target = self._readlink(path)
        return None if target is None else last_name(target)

    def resolve(self, path: str) -> str | None:
        """Return where a path really is, as a path without links from the top of the tree.

        None if it leads out of the tree or in circles. What does not exist resolves to itself.
        """
        known = self._canonical.get(path, "?")
        if known != "?":
            return known
        if path.count("/") > _MOST_COMPONENTS or self._depth > _MOST_LINKS:
            return None
        self._canonical[path] = None  # whoever comes back here while we are looking goes round in circles
        self._depth += 1
        try:
            found = self._look(path)
        finally:
            self._depth -= 1
        self._canonical[path] = found
        return found

    def _look(self, path: str) -> str | None:
        head, _, name = path.rpartition("/")
        parent: str | None = head if self.trusted else self.resolve(head)
        if parent is None:
            return None
        here = f"{parent}/{name}" if parent else name
        # Outside bus and class most are folders, and to read a link that is none costs more than to look first.
        if not self.trusted and parent[:4] not in ("bus/", "clas"):
            try:
                if not S_ISLNK(os.lstat(here, dir_fd=self._fd).st_mode):
                    return here
            except (OSError, ValueError):
                return here
        target = self._readlink(here)
        if target is None or target.startswith(ABSENT_LINK):
            return here
        joined = join(parent, target)
        if joined is None or self.trusted:
            return joined
        above = joined.rpartition("/")[0]
        if self._canonical.get(above) == above and joined not in self._canonical and not self._is_link(joined):
            self._canonical[joined] = joined  # the usual case: a folder beside one that was looked at before
            return joined
        return self.resolve(joined)

    def _is_link(self, path: str) -> bool:
        try:
            return S_ISLNK(os.lstat(path, dir_fd=self._fd).st_mode)
        except (OSError, ValueError):
            return False

    def _readlink(self, path: str) -> str | None:
        try:
            target = os.readlink(path, dir_fd=self._fd)
        except (OSError, ValueError):
            return None
        return target if target.isprintable() else None

    def why(self, error: OSError, path: str) -> Missing:
        """Return what an error while reading amounts to."""
        if error.errno == errno.ELOOP:
            target = self._readlink(path) or ""
            if target.startswith(ABSENT_LINK):
                return recorded_absence(target)
            return Missing(Absence.MALFORMED, "a link in place of the attribute")
        return BY_ERRNO.get(error.errno or 0) or Missing(Absence.ERROR, os.strerror(error.errno or 0))


def join(folder: str, target: str) -> str | None:
    """Return where a link in ``folder`` leads, or None if that is outside. ``/sys/…`` means the top of the tree."""
    if target.startswith("/"):
        if not target.startswith("/sys/"):
            return None
        folder, target = "", target[5:]
    parts = folder.split("/") if folder else []
    while target.startswith("../"):
        if not parts:
            return None
        parts.pop()
        target = target[3:]
    if ".." in target or "//" in target or "/." in target or target[:1] in (".", ""):
        for part in target.split("/"):
            if part == "..":
                if not parts:
                    return None
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts)
    parts.append(target)
    return "/".join(parts)


def parse_number(text: str) -> int | Missing:
    """Return the number that a text is: decimal, or hexadecimal after ``0x``; of at most 64 bits."""
    try:
        number = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    except ValueError:
        return Missing(Absence.MALFORMED, "not a number")
    if not _SMALLEST <= number <= _LARGEST:
        return Missing(Absence.MALFORMED, "more than 64 bits")
    return number


class HostTree:
    """The trees of one machine: ``sys``, and ``proc`` and ``dev`` if they are there."""

    def __init__(self, root: str | None = None, tree: type[Tree] = Tree) -> None:
        """Open a machine; ``tree`` is how its folders are read (a recording reads them its own way).

        ``root`` is None or ``/`` for the running one, a folder that holds ``sys/``, a folder that is a sysfs itself,
        or a snapshot (``.tgz``), which is unpacked into a cache once. Raises :class:`~hal.errors.DriverError`.
        """
        live = root is None or os.path.abspath(root) == "/"
        self.root = "/" if root is None or live else root
        if not live and os.path.isfile(self.root):
            from hal.host.archive import unpack

            self.root = unpack(self.root)
        try:
            if live or os.path.isdir(os.path.join(self.root, "sys")):
                self.sys = tree(os.path.join(self.root, "sys"), trusted=live)
                beside: str | None = self.root
            elif any(os.path.isdir(os.path.join(self.root, name)) for name in ("bus", "class", "devices")):
                self.sys = tree(self.root)
                beside = None
            else:
                raise DriverError(
                    f"{self.root} holds no sys/, bus/ or class/",
                    during="discover",
                    hint="name a folder that stands for a machine's /, or a snapshot made by hal-probe snapshot",
                )
        except OSError as error:
            raise DriverError(
                f"{self.root} cannot be looked into: {error.strerror}",
                during="discover",
                hint="mount sysfs, or name a folder that stands for a machine's /",
            ) from None
        self.live = live
        self.proc = self._beside(beside, "proc", tree)
        self.dev = self._beside(beside, "dev", tree)

    def _beside(self, base: str | None, name: str, tree: type[Tree]) -> Tree | None:
        if base is None:
            return None
        try:
            return tree(os.path.join(base, name), trusted=self.live)
        except OSError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        for tree in (self.sys, self.proc, self.dev):
            if tree is not None:
                tree.close()
