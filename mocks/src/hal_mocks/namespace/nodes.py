"""``/dev`` in a namespace: what every program needs of the real one, and a node for every device of the machine.

Nobody without rights may make device nodes, so each is ``/dev/null`` by another name: it exists, can be opened, and
holds nothing. A file of the rendered ``dev`` that has contents (``rshim0/misc``) is shown as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from hal_mocks.namespace.system import bind, mount, unmount

_KEPT = (
    "console", "full", "fuse", "hugepages", "kvm", "mqueue", "net", "null", "ptmx", "pts", "random", "shm", "tty",
    "urandom", "zero",
)  # fmt: skip
_DEV = "/dev"


def furnish(root: str, extra: Iterable[str]) -> None:
    """Make ``/dev`` anew: the nodes that belong to no machine, then those of the rendered one, then ``extra``."""
    kept = {*_KEPT, *_terminals()}
    renew(_DEV, lambda entry: entry.name in kept or (entry.is_symlink() and os.readlink(entry.path)[:6] == "/proc/"))
    for name in (*rendered(root), *extra):
        place(root, name)


def renew(folder: str, keep: Callable[[os.DirEntry[str]], bool]) -> None:
    """Put an empty file system over a folder, and in it what was there and is to be kept."""
    old = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount("none", folder, "tmpfs", 0, "mode=755,size=1m")
        with os.scandir(f"/proc/self/fd/{old}") as entries:
            for entry in entries:
                if not keep(entry):
                    continue
                where = f"{folder}/{entry.name}"
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), where)
                else:
                    _show(entry.path, where, entry.is_dir())
    finally:
        os.close(old)


def rendered(root: str) -> list[str]:
    """Return the nodes of the rendered machine (``infiniband/uverbs0``), sorted."""
    found = []
    top = f"{root}/dev"
    for folder, _, names in os.walk(top):
        below = folder[len(top) + 1 :]
        found += [f"{below}/{name}" if below else name for name in names]
    return sorted(found)


def place(root: str, name: str) -> None:
    """Make one node."""
    where, source = f"{_DEV}/{name}", f"{root}/dev/{name}"
    if "/" in name:
        os.makedirs(os.path.dirname(where), exist_ok=True)
    try:
        filled = os.stat(source).st_size > 0
    except OSError:
        filled = False
    _show(source if filled else f"{_DEV}/null", where, False)


def remove(name: str) -> None:
    """Take one node away, and its folder if it was the last one in it."""
    where = f"{_DEV}/{name}"
    with suppress(OSError):
        unmount(where)
    with suppress(OSError):
        os.unlink(where)
        os.removedirs(os.path.dirname(where))  # as far as they are empty


def device_names(root: str) -> tuple[str, ...]:
    """Return the nodes that a recorded machine's devices say they have (``DEVNAME`` in a ``uevent``)."""
    found = set()
    for folder, _, names in os.walk(f"{root}/sys/devices"):
        if "uevent" in names:
            with suppress(OSError), open(f"{folder}/uevent", encoding="utf-8", errors="replace") as file:
                found |= {line[8:].strip() for line in file if line.startswith("DEVNAME=")}
    kept = set(_KEPT)
    return tuple(sorted(name for name in found if name and ".." not in name and name.partition("/")[0] not in kept))


def _terminals() -> set[str]:
    """Return the names of the terminals that this process talks to, if they are not below ``pts``."""
    found = set()
    for descriptor in range(3):
        with suppress(OSError):
            found.add(os.ttyname(descriptor).removeprefix("/dev/"))
    return found


def _show(source: str, where: str, folder: bool) -> None:
    if folder:
        os.makedirs(where, exist_ok=True)
    else:
        with suppress(FileExistsError):
            os.mknod(where, 0o600)
    bind(source, where)
