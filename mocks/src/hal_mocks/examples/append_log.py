"""An append log on persistent memory, made to be copied: what was appended survives a power failure, in order.

The layout: a magic word in a line of its own, then records one after the other, each beginning on a multiple of 8:
length and checksum in one word, then the bytes. A record counts from the moment its first word, which is stored and
made durable last, is not zero: 8 aligned bytes become durable as a whole. The word after the last record is zero: an
append makes the *next* first word zero before its own counts, so that what an earlier use of the memory has left is
never read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from hal.errors import InvalidArgument, OutOfMemory
from hal.interfaces.pmem import Mapping

MAGIC = b"HALLOG01"
HEADER_BYTES = 64
_WORD = 8


class AppendLog:
    """A log in a mapping. One thread writes."""

    def __init__(self, memory: Mapping) -> None:
        self._memory = memory
        self._end = HEADER_BYTES
        if memory.read(0, _WORD) != MAGIC:
            raise InvalidArgument(
                "no append log begins here",
                device=memory.namespace.name,
                during="open the log",
                hint="AppendLog.create(mapping) makes one and forgets what is there",
            )
        self._end = HEADER_BYTES + sum(_WORD + _padded(len(record)) for record in self)

    @classmethod
    def create(cls, memory: Mapping) -> AppendLog:
        """Make an empty log; what was in the memory is lost."""
        cls._store(memory, HEADER_BYTES, bytes(_WORD))
        cls._store(memory, 0, MAGIC)
        return cls(memory)

    def append(self, record: bytes) -> int:
        """Add a record; when this returns it is durable. Returns its offset; ``OutOfMemory`` if it does not fit."""
        if not record:
            raise InvalidArgument(
                "an empty record", device=self._memory.namespace.name, during="append", hint="at least one byte"
            )
        start, after = self._end, self._end + _WORD + _padded(len(record))
        if after + _WORD > self._memory.size_bytes:
            raise OutOfMemory(
                f"{len(record)} bytes do not fit into the {self._memory.size_bytes - start} that are left",
                device=self._memory.namespace.name,
                during="append",
                hint="a larger namespace, or a new log",
            )
        body = record.ljust(_padded(len(record)), b"\0")
        self._write_body(start + _WORD, body + bytes(_WORD))
        self._write_head(start, len(record).to_bytes(4, "little") + zlib.crc32(record).to_bytes(4, "little"))
        self._end = after
        return start

    def _write_body(self, offset: int, data: bytes) -> None:
        """Make the bytes durable, and the zero word after them, before the record counts."""
        self._store(self._memory, offset, data)

    def _write_head(self, offset: int, word: bytes) -> None:
        """Let the record count: one word, stored whole or not at all."""
        self._store(self._memory, offset, word)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the records in the order of their appending; ``InvalidArgument`` for bytes that are not theirs."""
        offset = HEADER_BYTES
        while offset + _WORD <= self._memory.size_bytes:
            word = self._memory.read(offset, _WORD)
            length = int.from_bytes(word[:4], "little")
            if not length:
                return
            if offset + _WORD + length > self._memory.size_bytes:
                raise self._torn(offset, f"its length {length} runs over the end")
            record = self._memory.read(offset + _WORD, length)
            if zlib.crc32(record) != int.from_bytes(word[4:], "little"):
                raise self._torn(offset, "its checksum is wrong")
            yield record
            offset += _WORD + _padded(length)

    def _torn(self, offset: int, why: str) -> InvalidArgument:
        return InvalidArgument(
            f"the record at {offset:#x} is torn: {why}",
            device=self._memory.namespace.name,
            during="read the log",
            hint="the log was written without persisting its records before their heads, or the media lost bytes",
        )

    @staticmethod
    def _store(memory: Mapping, offset: int, data: bytes) -> None:
        memory.buffer[offset : offset + len(data)] = data
        memory.persist(offset, len(data))


def _padded(length: int) -> int:
    return -(-length // _WORD) * _WORD
