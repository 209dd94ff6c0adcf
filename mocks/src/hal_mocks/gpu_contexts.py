"""Who has a context on a mock GPU, and how much memory each takes: one page that all processes map.

A context owns a slot and holds a lock on the slot's file; a process that dies leaves the lock to the kernel, which lets
it go, and whoever needs the memory next finds the slot abandoned. A slot is written by its owner alone.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

from hal.errors import DeviceBusy

SLOTS = 32
EPOCH, COUNT, BASE = 0, 1, 2
MEMORY, PID = 16, 16 + SLOTS
BUSY_NS, TO_DEVICE, TO_HOST, TO_PEER = 0, 1, 2, 3
"""Counters: one word a slot each, and in ``BASE`` the sum of slots that are gone."""
COUNTERS = PID + SLOTS
_BYTES = 8 * (COUNTERS + 4 * SLOTS)


class Contexts:
    """The page of one device, or of one partition."""

    def __init__(self, folder: Path, device_id: str) -> None:
        self.folder = folder
        self.device_id = device_id
        descriptor = os.open(folder / "contexts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < _BYTES:
                os.ftruncate(descriptor, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self.words = memoryview(self._map).cast("Q")

    def attach(self) -> tuple[int, int]:
        """Take a slot; returns its number and the descriptor that holds it."""
        with _Locked(self.folder):
            for slot in range(SLOTS):
                descriptor = self._try(slot)
                if descriptor is None:
                    continue
                self._fold(slot)
                self.words[PID + slot] = os.getpid()
                self._recount()
                return slot, descriptor
        raise DeviceBusy(
            f"{SLOTS} contexts are open, as many as the device takes",
            device=self.device_id,
            during="open",
            hint="close a handle",
        )

    def detach(self, slot: int, descriptor: int) -> None:
        """Give a slot back."""
        with _Locked(self.folder):
            self._fold(slot)
            os.close(descriptor)
            self._recount()

    def reap(self) -> None:
        """Take the slots of dead processes back."""
        with _Locked(self.folder):
            for slot in range(SLOTS):
                if self.words[PID + slot] or self.words[MEMORY + slot]:
                    descriptor = self._try(slot)
                    if descriptor is not None:
                        self._fold(slot)
                        os.close(descriptor)
            self._recount()

    def end_all(self) -> None:
        """End every context: what they hold is gone, and their next work on the device fails."""
        with _Locked(self.folder):
            self.words[EPOCH] += 1
            for slot in range(SLOTS):
                self._fold(slot)
            self._recount()

    def holders(self) -> list[tuple[int, int]]:
        """Return (pid, bytes) of each live context."""
        self.reap()
        words = self.words
        return [(words[PID + slot], words[MEMORY + slot]) for slot in range(SLOTS) if words[PID + slot]]

    def used_bytes(self) -> int:
        """Return the memory that all contexts take."""
        return sum(self.words[MEMORY : MEMORY + SLOTS])

    def counter(self, which: int) -> int:
        """Return a counter of the device; it never falls."""
        start = COUNTERS + which * SLOTS
        return self.words[BASE + which] + sum(self.words[start : start + SLOTS])

    @staticmethod
    def counter_index(which: int, slot: int) -> int:
        """Return the word in which a slot counts."""
        return COUNTERS + which * SLOTS + slot

    def _fold(self, slot: int) -> None:
        words = self.words
        words[PID + slot] = words[MEMORY + slot] = 0
        for which in (BUSY_NS, TO_DEVICE, TO_HOST, TO_PEER):
            index = self.counter_index(which, slot)
            words[BASE + which], words[index] = words[BASE + which] + words[index], 0

    def _recount(self) -> None:
        self.words[COUNT] = sum(1 for slot in range(SLOTS) if self.words[PID + slot])

    def _try(self, slot: int) -> int | None:
        descriptor = os.open(self.folder / f"context-{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


class _Locked:
    """The lock of a page's bookkeeping."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "contexts.lock"

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
