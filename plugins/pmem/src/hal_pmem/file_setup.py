"""Which region files there are: ``HAL_PMEM_FILES``, and making those that it asks for.

The variable holds a list with colons between: a region file, ``PATH=SIZE`` for one that is made when it is first looked
for (``=256M``; K, M, G, T are powers of 1024), or a folder, whose ``*.pmem`` are all region files. A new region has one
namespace, in mode fsdax, over all of it.
"""

from __future__ import annotations

import os
import re
import secrets
import uuid
from collections.abc import Iterator

from hal.drivers.contract import Problem
from hal.interfaces.pmem import NAMESPACE_ALIGNMENT_BYTES, Namespace, NamespaceMode
from hal_pmem.file_label import DATA_OFFSET_BYTES, Label, read_label, write_label
from hal_pmem.files import FileRegion

VARIABLE = "HAL_PMEM_FILES"
SUFFIX = ".pmem"
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_HINT = f"{VARIABLE}=/path/of/region{SUFFIX}=256M, or a folder with *{SUFFIX}"


def find_files(text: str) -> tuple[list[FileRegion], list[Problem]]:
    """Return the regions that a value of the variable names, in its order, making those that are to be made.

    One that cannot be had is a problem and hides no other.
    """
    regions: dict[str, FileRegion] = {}
    problems: list[Problem] = []
    for path, size in _named(text, problems):
        try:
            region = open_region(path) if size is None or os.path.exists(path) else create_region(path, size)
        except (OSError, ValueError) as error:
            problems.append(_problem(f"{path}: {getattr(error, 'strerror', None) or error}"))
            continue
        first = regions.setdefault(region.id, region)
        if first is not region and not os.path.samefile(first.path, path):
            problems.append(_problem(f"{path} is a copy of {first.path}, with its identity", "remove one of them"))
    return list(regions.values()), problems


def open_region(path: str) -> FileRegion:
    """Return a region file's region. Raises ``OSError``, ``ValueError`` for a file that is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        label = read_label(descriptor)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if label is None:
        raise ValueError("holds no label of a region; it is left alone")
    if size < DATA_OFFSET_BYTES + label.size_bytes:
        raise ValueError(f"is cut off: {size} bytes of {DATA_OFFSET_BYTES + label.size_bytes}")
    return FileRegion(os.path.abspath(path), label)


def create_region(path: str, size_bytes: int, *, namespace: bool = True) -> FileRegion:
    """Make a region of whole 2 MiB with a new identity; one that another process makes at the same time stands.

    All of its space is taken at once: a store into a mapping must not find the disk full. Raises ``OSError``,
    ``ValueError`` for an impossible size.
    """
    if size_bytes <= 0 or size_bytes % NAMESPACE_ALIGNMENT_BYTES:
        raise ValueError(f"a region of {size_bytes} bytes: the size must be whole multiples of 2 MiB")
    folder, name = os.path.split(os.path.abspath(path))
    fresh = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, DATA_OFFSET_BYTES + size_bytes)
        whole = Namespace(
            name="namespace0.0",
            uuid=str(uuid.uuid4()),
            mode=NamespaceMode.FSDAX,
            size_bytes=size_bytes,
            offset_bytes=0,
        )
        cookie = f"{secrets.randbits(64) | 1 << 60:016x}"
        write_label(descriptor, Label(cookie=cookie, size_bytes=size_bytes, namespaces=(whole,) if namespace else ()))
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process was quicker: its region stands
        _sync_folder(folder)
    finally:
        os.close(descriptor)
        os.unlink(fresh)
    return open_region(path)


def parse_size(text: str) -> int:
    """Return a size in bytes (``256M``). Raises ``ValueError``."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(found[1]) * _UNITS[found[2].upper()]


def _named(text: str, problems: list[Problem]) -> Iterator[tuple[str, int | None]]:
    for part in text.split(os.pathsep):
        path, equals, size = part.rpartition("=") if "=" in part else (part, "", "")
        if not path:
            continue
        if not os.path.isabs(path):
            problems.append(_problem(f"{path} is a relative path, which means another file in every process"))
        elif equals:
            try:
                yield path, parse_size(size)
            except ValueError as error:
                problems.append(_problem(f"{path}: {error}"))
        elif os.path.isdir(path):
            yield from _in_folder(path, problems)
        else:
            yield path, None


def _in_folder(path: str, problems: list[Problem]) -> Iterator[tuple[str, int | None]]:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        problems.append(_problem(f"{path}: {error.strerror}"))
        return
    yield from ((os.path.join(path, name), None) for name in names if name.endswith(SUFFIX) and name[0] != ".")


def _problem(detail: str, hint: str = _HINT) -> Problem:
    return Problem(source=VARIABLE, step="discover", detail=detail, hint=hint, fatal=False)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
