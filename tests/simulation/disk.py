"""A disk that fails as disks do: refuses, is full, is slow, or takes the process with it before or after the write."""

from __future__ import annotations

from collections.abc import Sequence

from hal.broker.journal.audit import AuditEntry
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.store import JournalFull
from hal.broker.record import AnyRecord, decode_record, encode_record
from hal.errors import JournalError
from tests.simulation.timeline import Crash, Timeline


class SimDisk(MemoryStore):
    """A journal that outlives the brokers that write it."""

    def __init__(self, time: Timeline) -> None:
        super().__init__()
        self.time = time
        self.trouble = 0.0
        self.full = False

    def append(self, records: Sequence[AnyRecord], revision: int, audit: Sequence[AuditEntry] = ()) -> int:
        fate = self.time.random.random() if self.time.chance(self.trouble) else 1.0
        if self.full and any(type(record).__name__ in ("LeaseGranted", "ClaimQueued") for record in records):
            self.time.note("disk: full")
            raise JournalFull("the disk is full", during="append")
        if fate < 0.2:
            self.time.note("disk: the process dies before it writes")
            raise Crash
        if fate < 0.4:
            self.time.note("disk: refuses")
            raise JournalError("the disk failed before it wrote", during="append")
        bodies = [encode_record(record) for record in records]
        head = super().append([decode_record(body) for body in bodies], revision, audit)
        self.time.history.extend(bodies)
        for record in records:
            self.time.note(f"disk: {type(record).__name__} {_about(record)}")
        if fate < 0.6:
            self.time.note("disk: the process dies after it wrote")
            raise Crash
        if fate < 0.8:
            self.time.note("disk: wrote, and says it failed")
            raise JournalError("the disk failed after it wrote", during="append")
        if fate < 1.0:
            self.time.pass_time(self.time.random.random() * 3)
        return head

    def close(self) -> None:
        """The next broker opens the same disk."""


def _about(record: AnyRecord) -> str:
    for name in ("lease", "claim", "device", "target", "tenant"):
        value = getattr(record, name, None)
        if value is not None:
            return value if isinstance(value, str) else str(getattr(value, "id", getattr(value, "path", "")))
    return ""
