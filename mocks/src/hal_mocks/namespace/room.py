"""What a process sees in a namespace: which folders stand for ``/sys``, ``/proc`` and ``/dev``; and how it goes in."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import msgspec

from hal_mocks.namespace.nodes import furnish, renew
from hal_mocks.namespace.refusal import refusal
from hal_mocks.namespace.system import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_REC,
    MS_SLAVE,
    bind,
    loopback_up,
    may_mount,
    mount,
    unshare,
)

_PROC_FILES = ("cpuinfo", "meminfo")
_RUN, _UDEV = "/run", "/run/udev"


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """A place to go into. ``root`` is the folder that stands for ``/``; ``nodes`` are further files of ``/dev``.

    ``hostname`` is what the machine calls itself; empty: as outside.

    ``own_network`` is false where the network of outside is kept; there are no hot-plug events then. ``as_root`` shows
    the user to itself as root.
    """

    root: str
    hostname: str = ""
    nodes: tuple[str, ...] = ()
    own_network: bool = True
    as_root: bool = False


def enter(room: Room) -> int:
    """Give this process, which must have one thread, namespaces in which the machine is that of ``room``.

    Returns the flags of the kinds of namespaces that it made.

    Who may make mounts (root) needs no user namespace and stays what it is; anybody else keeps user and group numbers,
    and has all capabilities inside until the next exec. Raises ``NotReady`` where namespaces are forbidden.
    """
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | (CLONE_NEWNET if room.own_network else 0)
    try:
        if may_mount() and not (room.as_root and user):
            unshare(flags)
        else:
            flags |= CLONE_NEWUSER
            unshare(flags)
            _map_ids(*((0, 0) if room.as_root else (user, group)), user, group)
        mount("none", "/", None, MS_REC | MS_SLAVE)
        show(room)
        if room.hostname:
            socket.sethostname(room.hostname)
    except OSError as error:
        raise refusal(error) from error
    if room.own_network:
        with suppress(OSError):  # no IPv4 in this kernel: then there is nothing to bring up
            loopback_up()
    return flags


def show(room: Room) -> None:
    """Mount a room's folders over those of the running machine."""
    show_sys(room)
    for name in _PROC_FILES:
        if os.path.exists(f"{room.root}/proc/{name}"):
            bind(f"{room.root}/proc/{name}", f"/proc/{name}", read_only=True)
    if os.path.isdir("/proc/driver") and os.path.isdir(f"{room.root}/proc/driver"):
        bind(f"{room.root}/proc/driver", "/proc/driver", read_only=True)
    _show_udev()
    furnish(room.root, room.nodes)


def show_sys(room: Room) -> None:
    """Mount a room's sysfs; again, if the folder is another one than before."""
    bind(f"{room.root}/sys", "/sys", read_only=True)


def _show_udev() -> None:
    """Hide what udev wrote down about the real machine; be there, or libudev would listen to no events of udev's.

    It asks for ``/run/udev/control`` (``device-monitor.c``). Where nobody runs udev there is no folder to mount over.
    """
    if not os.path.isdir(_RUN):
        return
    if not os.path.isdir(_UDEV):
        renew(_RUN, lambda entry: True)
        os.mkdir(_UDEV)
    else:
        mount("none", _UDEV, "tmpfs", 0, "mode=755,size=64k")
    os.close(os.open(f"{_UDEV}/control", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _map_ids(inside_user: int, inside_group: int, user: int, group: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{inside_user} {user} 1")
    _write("/proc/self/gid_map", f"{inside_group} {group} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
