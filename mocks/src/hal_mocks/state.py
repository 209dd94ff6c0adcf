"""What a mock machine remembers, in a folder that every process sees: its control page, its faults, device state."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hal.errors import DriverError
from hal_mocks.faults import Fault

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Fault)


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Say which folder it is that cannot be used, and that another can be named."""
    try:
        yield
    except OSError as error:
        raise DriverError(
            f"the machine cannot be kept in {folder}: {error.filename or folder}: {error.strerror or error}",
            during="open",
            hint="HAL_MACHINE=PROFILE?state=FOLDER names another folder",
        ) from error


class State:
    """The folder of one mock machine.

    ``control`` is a page of 64-bit words that all processes map: word 0 counts changes of the fault list, so that a
    hot path notices a new fault by one load; word 1 is the last fault id given; word 2 the
    shared virtual time in nanoseconds (0: never used).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "control"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < 64:
                os.ftruncate(descriptor, 64)
            self._map = mmap.mmap(descriptor, 64)
        finally:
            os.close(descriptor)
        self.control = memoryview(self._map).cast("Q")

    @property
    def generation(self) -> int:
        """How often the fault list has changed."""
        return self.control[0]

    @contextmanager
    def locked(self, name: str = "lock") -> Iterator[None]:
        """Hold a lock among processes."""
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def faults(self) -> tuple[Fault, ...]:
        """Return all faults ever set and not healed, in order."""
        path = self.folder / "faults.jsonl"
        if not path.exists():
            return ()
        return tuple(_DECODER.decode(line) for line in path.read_bytes().splitlines() if line)

    def set_faults(self, faults: tuple[Fault, ...]) -> None:
        """Replace the fault list in one step; call under :meth:`locked`."""
        path = self.folder / "faults.jsonl"
        fresh = path.with_suffix(".new")
        fresh.write_bytes(b"\n".join(_ENCODER.encode(fault) for fault in faults))
        fresh.replace(path)
        self.control[0] += 1

    def touch(self) -> None:
        """Make every handle look again, for a change that is not a fault."""
        with self.locked():
            self.control[0] += 1

    def device(self, device_id: str) -> Path:
        """Return the folder where one device keeps its own state."""
        folder = self.folder / "devices" / device_id.replace("/", "_").replace(":", "_")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear(self) -> None:
        """Remove what devices remember; the control page stays, as other processes have it mapped."""
        import shutil

        shutil.rmtree(self.folder / "devices", ignore_errors=True)
