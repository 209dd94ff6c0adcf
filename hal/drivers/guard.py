"""How a handle learns, without asking anybody, that its lease has ended.

Each prepared device has one page of two 64-bit words in the runtime folder: the fence that holds it (an unsigned
integer), and the time at which the lease expires (seconds on CLOCK_BOOTTIME, an IEEE double, which Python compares in
half the time of an integer of that size). The agent writes it, every handle maps it. Ending a lease is one store;
noticing it costs a holder two loads and a clock read. The page says nothing about who may claim: that is the
journal's, and expiry here is only the holder's own promise to stop.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Protocol

from hal.errors import AccessDenied, LeaseEnded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE_BYTES = 16
FOREVER_NS = (1 << 63) - 1
_WORD = struct.Struct("<Q")
_TIME = struct.Struct("<d")
LONGEST_NAME = 200


class Guard(Protocol):
    """Says whether the holder may still use the device."""

    @property
    def lease(self) -> str:
        """The lease's id."""
        ...

    @property
    def fence(self) -> int:
        """The fence under which the device was opened."""
        ...

    def check(self) -> None:
        """Return if the lease still stands, else raise :class:`~hal.errors.LeaseEnded`."""
        ...


class OpenGuard:
    """A guard that never ends: for tests of a driver alone, and for tools that own the machine."""

    __slots__ = ("fence", "lease")

    def __init__(self, lease: str = "unguarded", fence: int = 0) -> None:
        self.lease = lease
        self.fence = fence

    def check(self) -> None:
        """Always stands."""


class PageGuard:
    """A guard over one device's page.

    It reads CLOCK_MONOTONIC, which Python reads three times as fast, and adds what CLOCK_BOOTTIME was ahead when the
    device was opened. After the machine has slept the lease seems younger here until the agent, which does not sleep
    through it, has cleared the page.
    """

    __slots__ = ("_map", "check", "device", "fence", "lease")

    check: Callable[[], None]
    """Return if the lease still stands, else raise :class:`~hal.errors.LeaseEnded`."""

    def __init__(self, path: Path, device: str, lease: str, fence: int) -> None:
        self.device = device
        self.lease = lease
        self.fence = fence
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise _ended(device, lease, "the device is not prepared for anybody") from None
        except OSError as error:
            raise AccessDenied(
                f"the guard page of lease {lease} cannot be read: {error.strerror}",
                device=device,
                during="open",
                hint="open the device as the user whose broker granted the lease",
            ) from error
        try:
            self._map = mmap.mmap(descriptor, PAGE_BYTES, prot=mmap.PROT_READ)
        except (ValueError, OSError):  # shorter than a page: cut off, or not yet written
            raise _ended(device, lease, "its guard page is empty") from None
        finally:
            os.close(descriptor)
        self.check = self._compile()
        self.check()

    def _compile(self) -> Callable[[], None]:
        # A closure: it runs before every verb of every handle, and finds its names twice as fast as a method does.
        page = memoryview(self._map)
        fences, times, fence, now = page.cast("Q"), page.cast("d"), self.fence, time.monotonic
        ahead = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        device, lease = self.device, self.lease  # not self: a cycle would keep the page mapped until a collection

        def check() -> None:
            if fences[0] != fence:
                raise _ended(device, lease, "it was released, or taken back and given to a later holder")
            if times[1] < now() + ahead:
                raise _ended(device, lease, "it expired without being renewed")

        return check


def _ended(device: str, lease: str, why: str) -> LeaseEnded:
    return LeaseEnded(
        f"lease {lease} has ended: {why}",
        device=device,
        during="use",
        hint="claim again, and renew before the lease expires",
    )


def page_path(folder: Path, device_id: str) -> Path:
    """Return a device's page; two ids never share one. What is no plain character is escaped, what is long hashed."""
    plain = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else _escaped(letter)
        for letter in device_id
    )
    if len(plain) > LONGEST_NAME:
        import hashlib

        digest = hashlib.sha256(device_id.encode("utf-8", "surrogatepass")).hexdigest()
        plain = f"{plain[: LONGEST_NAME - 80]}%~{digest}"
    return folder / (plain + ".page")


def _escaped(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


class GuardPages:
    """The writer's side: one file a device, replaced never, written in place so that maps stay valid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)  # whoever has a lease reads its pages, whatever the writer's umask

    def path(self, device_id: str) -> Path:
        """Return the device's page."""
        return page_path(self.folder, device_id)

    def grant(self, device_id: str, fence: int, expires_boottime_ns: int = FOREVER_NS) -> None:
        """Let holders with this fence use the device until then."""
        self._write(device_id, fence, expires_boottime_ns)

    def revoke(self, device_id: str, fence: int) -> None:
        """End every handle opened under ``fence``; a page that already belongs to a later fence is left alone."""
        if self.fence(device_id) == fence:
            self._write(device_id, 0, 0)

    def fence(self, device_id: str) -> int:
        """Return the fence that holds the device, 0 for none."""
        try:
            with open(self.path(device_id), "rb") as page:
                return int.from_bytes(page.read(8), "little")
        except FileNotFoundError:
            return 0

    def guard(self, device_id: str, lease: str, fence: int) -> PageGuard:
        """Return the guard with which a holder opens the device."""
        return PageGuard(self.path(device_id), device_id, lease, fence)

    def _write(self, device_id: str, fence: int, expires_ns: int) -> None:
        # Expiry first, fence last: who sees the new fence sees its expiry, too. Aligned words of 8 bytes are stored
        # whole on x86 and Arm.
        expires = float("inf") if expires_ns >= FOREVER_NS else expires_ns * 1e-9
        path = self.path(device_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.fchmod(descriptor, 0o644)
        try:
            os.pwrite(descriptor, _TIME.pack(expires), 8)
            os.pwrite(descriptor, _WORD.pack(fence), 0)
        finally:
            os.close(descriptor)
