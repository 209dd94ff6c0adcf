"""What the host must remember of a card between processes: pending mode, pushed image, flow rules.

The card tells none of it back. The file lies in the runtime folder, so that a reboot, which ends leases, forgets it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hal.drivers.guard import page_path
from hal.errors import AccessDenied
from hal.interfaces.dpu import DpuMode, FlowRule, Image


class Filter(msgspec.Struct, frozen=True):
    """One filter of tc: where it is, and the number under which it counts."""

    port: str
    preference: int
    protocol: str
    handle: int


class Rule(msgspec.Struct, frozen=True):
    """A flow rule and the filters that it became, and the fence of the lease that made it."""

    rule: FlowRule
    filters: tuple[Filter, ...]
    fence: int


class Record(msgspec.Struct, frozen=True):
    """What is remembered of one card."""

    pending: DpuMode | None = None
    image: Image | None = None
    rules: tuple[Rule, ...] = ()
    next_rule: int = 1


class RecordFile:
    """One card's record; processes take turns."""

    def __init__(self, folder: Path, device: str) -> None:
        self._path = page_path(folder, device).with_suffix(".card")
        self._device = device

    def read(self) -> Record:
        """Return the record; an unreadable one is forgotten, as after a reboot."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return Record()

    def change(self, edit: Callable[[Record], Record], step: str) -> Record:
        """Change the record in one step."""
        with self.locked(step):
            fresh = edit(self.read())
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(fresh))
            new.replace(self._path)
        return fresh

    @contextmanager
    def locked(self, step: str) -> Iterator[None]:
        """Keep other processes from changing the record (not reentrant)."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AccessDenied(
                f"{self._path.parent} cannot be written: {error.strerror}",
                device=self._device,
                during=step,
                hint="run as the user of the agent, or set XDG_RUNTIME_DIR",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
