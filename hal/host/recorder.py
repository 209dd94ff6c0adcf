"""A tree that remembers everything that was asked of it and what the answer was."""

from __future__ import annotations

import os
import stat

from hal.host.folder import decode
from hal.host.missing import Missing
from hal.host.tree import Tree

_CONFIG_BYTES = 256


class Recorder(Tree):
    """Reads like any tree, and keeps folders, links, files and the reasons why files could not be read.

    Discovery over what was kept gives what discovery over the machine gave: it asks the same questions.
    """

    opens_folders = False

    def __init__(self, folder: str, *, trusted: bool = False) -> None:
        super().__init__(folder, trusted=trusted)
        self._recording = True
        self.folders: set[str] = set()
        self.links: dict[str, str] = {}
        self.files: dict[str, bytes | Missing] = {}

    def read_bytes(self, path: str, limit: int = 4096) -> bytes | Missing:
        """Read, and keep the longest that was read."""
        recording, self._recording = self._recording, False
        try:
            found = super().read_bytes(path, limit)
        finally:
            self._recording = recording
        where = self._place(path)
        if where is not None:
            self._keep(where, found)
        return found

    def open(self, path: str) -> int | Missing:
        """Open, and keep the beginning."""
        descriptor = super().open(path)
        where = self._place(path)
        if self._recording and where is not None:
            if isinstance(descriptor, int):
                try:
                    self._keep(where, os.pread(descriptor, _CONFIG_BYTES, 0))
                except OSError as error:
                    self._keep(where, self.why(error, path))
            else:
                self._keep(where, descriptor)
        return descriptor

    def read_many(self, folder: str, names: tuple[str, ...], limit: int = 4096) -> list[str | Missing]:
        """Read one by one."""
        every = (self.read_bytes(f"{folder}/{name}" if folder else name, limit) for name in names)
        return [found if isinstance(found, Missing) else decode(found) for found in every]

    def names(self, path: str) -> list[str]:
        """List, and keep the folder with the folders and links in it."""
        found = super().names(path)
        where = path if self.trusted else self.resolve(path)
        if where is not None and (found or self.exists(path)):
            self.folders.add(where)
            for name in found:
                self._keep_kind(f"{where}/{name}" if where else name)
        return found

    def exists(self, path: str) -> bool:
        """Look, and keep a folder that is there."""
        found = super().exists(path)
        if found:
            where = self.resolve(path)
            if where is not None:
                self._keep_kind(where)
        return found

    def _keep_kind(self, path: str) -> None:
        try:
            mode = os.lstat(path, dir_fd=self._fd).st_mode
        except (OSError, ValueError):
            return
        if stat.S_ISLNK(mode):
            self._readlink(path)
        elif stat.S_ISDIR(mode):
            self.folders.add(path)

    def _readlink(self, path: str) -> str | None:
        target = super()._readlink(path)
        if target is not None:
            self.links[path] = target
        return target

    def _place(self, path: str) -> str | None:
        parent, _, name = path.rpartition("/")
        folder = self.resolve(parent)
        if folder is None:
            return None
        return f"{folder}/{name}" if folder else name

    def _keep(self, path: str, found: bytes | Missing) -> None:
        before = self.files.get(path)
        if not isinstance(before, bytes) or (isinstance(found, bytes) and len(found) > len(before)):
            self.files[path] = found
