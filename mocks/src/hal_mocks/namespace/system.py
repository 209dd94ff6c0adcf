"""The system calls that make and enter namespaces. Python 3.11 has none of them, so the C library is asked."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Iterable

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
"""Flags of unshare(2) and setns(2)."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME, MS_BIND = 32, 1024, 2048, 4096
MS_REC, MS_SLAVE, MS_RELATIME = 1 << 14, 1 << 19, 1 << 21
_ST_RELATIME = 4096
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_SYS_ADMIN = 21

IN_MOVED_TO, IN_DELETE_SELF, IN_IGNORED = 0x80, 0x400, 0x8000
"""Events of inotify(7)."""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def unshare(flags: int) -> None:
    """Give this process namespaces of its own. With ``CLONE_NEWUSER`` it must have one thread."""
    _check(_libc().unshare(flags))


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespaces of another process, by its pidfd."""
    _check(_libc().setns(descriptor, flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount, bind, move or change a mount (mount(2))."""
    texts = [text if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(_libc().mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), target)


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Show ``source``, and all that is mounted below it, at ``target``.

    What cannot be written is a second step, in which the flags that the mount has must be repeated: they are locked in
    a user namespace.
    """
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        flags = os.statvfs(target).f_flag
        kept = flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
        relative = MS_RELATIME if flags & _ST_RELATIME else 0
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | kept | relative)


def unmount(target: str) -> None:
    """Take a mount away as soon as nobody uses it."""
    _check(_libc().umount2(os.fsencode(target), _MNT_DETACH), target)


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent ends."""
    _check(_libc().prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def may_mount() -> bool:
    """True if this process may make mounts and networks where it is, without a user namespace."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def drop_capabilities() -> None:
    """Give up all capabilities, as an exec would: files that may not be read cannot be read again."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc().capset(header, bytes(24)))


def loopback_up() -> None:
    """Bring the loopback interface of a fresh network up, so that servers on it can be reached."""
    import fcntl
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16xh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def watch_folder(folder: str, mask: int) -> int:
    """Return a descriptor that becomes readable when something of ``mask`` happens to a folder (inotify)."""
    descriptor = _check(_libc().inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _check(_libc().inotify_add_watch(descriptor, os.fsencode(folder), mask), folder)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def signal_descriptor(signals: Iterable[int]) -> int:
    """Return a descriptor from which blocked signals are read as ``signalfd_siginfo`` of 128 bytes (signalfd(2))."""
    mask = bytearray(128)
    for number in signals:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return _check(_libc().signalfd(-1, bytes(mask), os.O_CLOEXEC | os.O_NONBLOCK))
