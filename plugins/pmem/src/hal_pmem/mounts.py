"""What lies under a path: the file system, and the block device with its list of bad blocks.

Facts: proc(5) on mountinfo; Documentation/ABI/stable/sysfs-block and testing/sysfs-block on ``badblocks``; mmap(2) on
``MAP_SYNC``.
"""

from __future__ import annotations

import mmap
import os

import msgspec

_MAP_SHARED_VALIDATE = 0x03
_MAP_SYNC = 0x80000
_VOLATILE = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What a file lies on. ``badblocks`` is the kernel's list for the whole block device, "" where there is none;
    ``start_bytes`` is where the file system's partition begins on it.
    """

    filesystem: str = ""
    mount_point: str = ""
    badblocks: str = ""
    start_bytes: int = 0
    device: str = ""

    @property
    def volatile(self) -> bool:
        """True for file systems whose files do not outlive the machine's power."""
        return self.filesystem in _VOLATILE


def look_below(path: str) -> Ground:
    """Return what a file lies on; unknown fields stay empty. Raises ``OSError`` if there is no such file."""
    number = os.stat(path).st_dev
    major, minor = os.major(number), os.minor(number)
    filesystem, mount_point = _mounted(f"{major}:{minor}", os.path.realpath(path))
    here = os.path.realpath(f"/sys/dev/block/{major}:{minor}")
    start = 0
    if os.path.exists(here + "/partition"):
        start = int(_line(here + "/start") or 0) * 512
        here = os.path.dirname(here)
    listed = here + "/badblocks"
    return Ground(
        filesystem=filesystem,
        mount_point=mount_point,
        badblocks=listed if os.path.exists(listed) else "",
        start_bytes=start,
        device=os.path.basename(here) if os.path.isdir(here) else "",
    )


def mounted_at(device: str) -> str:
    """Return where a block device is mounted, "" if it is not."""
    try:
        number = os.stat(device).st_rdev
    except OSError:
        return ""
    return _mounted(f"{os.major(number)}:{os.minor(number)}", "")[1]


def has_map_sync(descriptor: int, length: int = mmap.PAGESIZE) -> bool:
    """True if the kernel lets a mapping of the file be synchronous: stores then need no system call to be durable."""
    try:
        mapped = mmap.mmap(descriptor, length, flags=_MAP_SHARED_VALIDATE | _MAP_SYNC, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return False
    mapped.close()
    return True


def _mounted(number: str, path: str) -> tuple[str, str]:
    found = ("", "")
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                fields = left.split(" ")
                if len(fields) < 5 or fields[2] != number:
                    continue
                point = _unescaped(fields[4])
                if not path or path == point or path.startswith(point.rstrip("/") + "/"):
                    found = (right.split(" ")[0], point)
    except OSError:
        return found
    return found


def _unescaped(text: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, letter)
    return text


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
