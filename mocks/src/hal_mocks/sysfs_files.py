"""A tree of files as a value, and how it comes onto a disk: whole at first, then only what differs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class Link(str):
    """A symbolic link, by its target."""

    __slots__ = ()


class Fifo:
    """A FIFO without a writer: whoever reads it waits."""


class Folder:
    """An empty folder."""


class Hidden(bytes):
    """A file that may not be read."""

    __slots__ = ()


FIFO = Fifo()
FOLDER = Folder()
Entry = bytes | Link | Fifo | Folder
UNREADABLE_LINK = Link("hal-absent:permission")
"""What host discovery takes for a file without permission; for root, who may read everything."""


class Files:
    """Entries by path (``sys/devices/...``), in the kernel's form: real folders, and links from buses and classes."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def file(self, path: str, text: str | bytes | int) -> None:
        """Add an attribute; text gets the newline that the kernel ends it with."""
        self.entries[path] = text if isinstance(text, bytes) else f"{text}\n".encode()

    def files(self, folder: str, attributes: Mapping[str, str | bytes | int]) -> None:
        """Add the attributes of a folder."""
        entries = self.entries
        for name, text in attributes.items():
            entries[f"{folder}/{name}"] = text if isinstance(text, bytes) else f"{text}\n".encode()

    def folder(self, path: str) -> None:
        """Add a folder that may stay empty."""
        self.entries.setdefault(path, FOLDER)

    def link(self, path: str, target: str) -> None:
        """Add a relative link to a path of the tree."""
        self.entries[path] = Link(relative(path, target))

    def device(
        self,
        path: str,
        subsystem: str,
        attributes: Mapping[str, str | bytes | int],
        uevent: Mapping[str, str | int],
        driver: str = "",
    ) -> None:
        """Add a device with its links: ``subsystem`` is ``bus/pci`` or ``class/net``.

        A device with numbers (``MAJOR``, ``MINOR``) has a ``dev`` and a link from them; one with a name in ``/dev``
        (``DEVNAME``) an empty file there, in place of its node.
        """
        self.files(path, attributes)
        if "MAJOR" in uevent:
            numbers = f"{uevent['MAJOR']}:{uevent['MINOR']}"
            self.file(f"{path}/dev", numbers)
            self.link(f"sys/dev/{'block' if subsystem == 'class/block' else 'char'}/{numbers}", path)
        if "DEVNAME" in uevent:
            self.entries[f"dev/{uevent['DEVNAME']}"] = b""
        lines = [f"{key}={value}\n" for key, value in uevent.items()]
        name = path.rpartition("/")[2]
        place = f"sys/{subsystem}"
        self.link(f"{path}/subsystem", place)
        if subsystem.startswith("bus/"):
            self.link(f"{place}/devices/{name}", path)
            if driver:
                lines.insert(0, f"DRIVER={driver}\n")
                self.link(f"{path}/driver", f"{place}/drivers/{driver}")
                self.link(f"{place}/drivers/{driver}/{name}", path)
        else:
            self.link(f"{place}/{name}", path)
        self.entries[f"{path}/uevent"] = "".join(lines).encode()

    def below(self, folder: str) -> list[str]:
        """Return the entries in a folder and in all folders of it."""
        start = folder + "/"
        return [path for path in self.entries if path.startswith(start)]


def relative(path: str, target: str) -> str:
    """Return ``target`` as seen from the folder that ``path`` is in."""
    here, there = path.split("/")[:-1], target.split("/")
    common = 0
    for one, other in zip(here, there, strict=False):
        if one != other:
            break
        common += 1
    return "../" * (len(here) - common) + "/".join(there[common:])


def write_all(root: str, entries: Mapping[str, Entry]) -> None:
    """Write a tree into a folder that does not exist yet; it appears all at once."""
    fresh = f"{root}.new-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh)
    made = {""}
    for path, entry in entries.items():
        _make_folders(fresh, path if isinstance(entry, Folder) else path.rpartition("/")[0], made)
        _create(f"{fresh}/{path}", entry)
    if Path(root).exists():
        old = f"{root}.old-{os.getpid()}"
        os.rename(root, old)
        os.rename(fresh, root)
        _remove_tree(old)
    else:
        os.rename(fresh, root)


def write_changes(root: str, before: Mapping[str, Entry], after: Mapping[str, Entry]) -> int:
    """Make the tree of ``before`` that of ``after``, each file in one step; returns how many entries changed."""
    changes = 0
    kept = _folders(after)
    for path, entry in before.items():
        if path not in after or path in kept:
            changes += 1
            if not isinstance(entry, Folder):
                Path(root, path).unlink(missing_ok=True)
    for folder in sorted(_folders(before) - kept, key=len, reverse=True):
        try:
            os.rmdir(f"{root}/{folder}")
        except OSError:
            pass  # somebody put a file of his own there
    for path, entry in after.items():
        old = before.get(path)
        if old is not None and type(old) is type(entry) and (old == entry or isinstance(entry, Fifo | Folder)):
            continue
        changes += 1
        where = f"{root}/{path}"
        os.makedirs(where if isinstance(entry, Folder) else where.rpartition("/")[0], exist_ok=True)
        if not isinstance(entry, Folder):
            fresh = f"{where}.new-{os.getpid()}"
            _create(fresh, entry)
            os.replace(fresh, where)
    return changes


def _folders(entries: Mapping[str, Entry]) -> set[str]:
    found: set[str] = set()
    for path, entry in entries.items():
        folder = path if isinstance(entry, Folder) else path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _make_folders(root: str, folder: str, made: set[str]) -> None:
    if folder in made:
        return
    _make_folders(root, folder.rpartition("/")[0], made)
    os.mkdir(f"{root}/{folder}")
    made.add(folder)


def _create(where: str, entry: Entry) -> None:
    if isinstance(entry, Link):
        os.symlink(entry, where)
    elif isinstance(entry, Fifo):
        os.mkfifo(where, 0o644)
    elif isinstance(entry, bytes):
        if isinstance(entry, Hidden) and os.geteuid() == 0:
            os.symlink(UNREADABLE_LINK, where)
            return
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0 if isinstance(entry, Hidden) else 0o644)
        os.write(descriptor, entry)
        os.close(descriptor)


def _remove_tree(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
