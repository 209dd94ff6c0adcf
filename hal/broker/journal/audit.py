"""The audit trail: who did what to whom and why, each line sealed to the one before it. Pure functions.

A line's hash is SHA-256 over the hash of the line before it (32 bytes; zeros before the first) and the line's content:

========  ====================================================================================================
bytes     content
========  ====================================================================================================
8         sequence, unsigned, big-endian; the first line has 1 and there are no holes
8         at, seconds since the Unix epoch, IEEE 754 double, big-endian
8         revision, unsigned, big-endian
5 x 4     lengths in bytes of the five strings that follow, unsigned, big-endian
the rest  actor, tenant, verb, subject, detail, UTF-8
========  ====================================================================================================

The chain shows that lines were changed, dropped or put in between. That the newest lines were cut off, or all of it
was made anew, it shows only to somebody who kept the hash of an earlier line elsewhere (an :class:`Anchor`).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

GENESIS = bytes(32)
"""What stands for the hash before the first line."""
_HEADER = struct.Struct(">QdQ5I")
_ENCODER = msgspec.json.Encoder()


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is to be put on the trail: ``actor`` did ``verb`` to ``subject`` on account of ``tenant``.

    ``detail`` is the reason, or what came of it. ``revision`` is the last record it speaks of; 0 stands for the head
    of the journal once it is written.
    """

    at: float
    actor: str
    tenant: str
    verb: str
    subject: str
    detail: str = ""
    revision: int = 0


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of the trail as it stands there; ``hash`` in hexadecimal."""

    sequence: int
    at: float
    revision: int
    actor: str
    tenant: str
    verb: str
    subject: str
    detail: str
    hash: str


class Anchor(NamedTuple):
    """A line that somebody remembers: they will know if it is not there any more, or another."""

    sequence: int
    hash: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the whole trail found: ``head`` to remember, or the first ``broken`` sequence and why."""

    ok: bool
    lines: int
    head: Anchor
    broken: int | None = None
    why: str = ""


Row = tuple[int, float, int, str, str, str, str, str, bytearray]
"""A line as the table holds it, in the order of its columns: sequence, at, revision, the five strings, hash.

Bound to a statement, a plain tuple and a bytearray cost sqlite3 half of what a subclass of tuple and bytes do: those it
first asks whether they adapt to something else.
"""


def seal(entries: Iterable[AuditEntry], tail: tuple[int, bytes], head: int) -> list[Row]:
    """Return the lines that continue a trail after ``tail`` (its last sequence and hash; ``(0, GENESIS)`` at first).

    ``head`` is the revision of entries that name none. Raises ``TypeError`` or ``ValueError`` for an entry that is
    none.
    """
    try:
        return _seal(entries, tail, head)
    except (AttributeError, struct.error) as error:
        raise TypeError(f"an entry of the audit trail that is none: {error}") from error


def tail_of(rows: Sequence[Row]) -> tuple[int, bytes]:
    """Return the sequence and the hash of the last of some lines, one at least, for what continues them."""
    last = rows[-1]
    return last[0], bytes(last[-1])


def _seal(entries: Iterable[AuditEntry], tail: tuple[int, bytes], head: int) -> list[Row]:
    sequence, digest = tail
    rows: list[Row] = []
    for entry in entries:
        sequence += 1
        at, revision = entry.at + 0.0, entry.revision or head  # SQLite keeps no negative zero
        if not math.isfinite(at):
            raise ValueError(f"an entry of the audit trail at no time: {at}")
        actor, tenant, verb, subject, detail = texts = (
            entry.actor,
            entry.tenant,
            entry.verb,
            entry.subject,
            entry.detail,
        )
        said = "".join(texts)
        if said.isascii():  # nearly always, and then characters are bytes
            lengths = len(actor), len(tenant), len(verb), len(subject), len(detail)
            content = said.encode()
        else:
            # A name from the file system may hold what UTF-8 cannot; it must not keep anybody from being written down.
            parts = [text.encode("utf-8", "backslashreplace") for text in texts]
            actor, tenant, verb, subject, detail = (part.decode() for part in parts)
            lengths = len(parts[0]), len(parts[1]), len(parts[2]), len(parts[3]), len(parts[4])
            content = b"".join(parts)
        digest = hashlib.sha256(digest + _HEADER.pack(sequence, at, revision, *lengths) + content).digest()
        rows.append((sequence, at, revision, actor, tenant, verb, subject, detail, bytearray(digest)))
    return rows


def line_of(row: tuple[object, ...]) -> AuditLine:
    """Return a row of the table as a line; raises ``msgspec.ValidationError`` for what is none."""
    *facts, digest = row
    if not isinstance(digest, bytes | bytearray):
        raise msgspec.ValidationError(f"the hash of line {row[0]} is no bytes")
    named = dict(zip(AuditLine.__struct_fields__, (*facts, digest.hex()), strict=True))
    return msgspec.convert(named, AuditLine)


class Verifier:
    """Checks a trail line by line, from the first on."""

    def __init__(self, anchor: Anchor | None = None, tail: tuple[int, bytes] = (0, GENESIS)) -> None:
        self.anchor = anchor
        self.why = ""
        self._tail = tail
        self._lines = 0
        self._revision = 0
        self._met = anchor is None or anchor.sequence <= tail[0]

    def take(self, line: AuditLine) -> bool:
        """Check the next line; False, and ``why``, if it does not follow."""
        expected = self._tail[0] + 1
        if line.sequence != expected:
            self.why = f"line {line.sequence} follows {self._tail[0]}"
            return False
        entry = AuditEntry(
            at=line.at,
            actor=line.actor,
            tenant=line.tenant,
            verb=line.verb,
            subject=line.subject,
            detail=line.detail,
        )
        try:
            sealed = seal((entry,), self._tail, line.revision)[0]
        except (TypeError, ValueError) as error:
            self.why = f"line {line.sequence} cannot have been written: {error}"
            return False
        if sealed[-1].hex() != line.hash:
            self.why = f"line {line.sequence} is not what was written"
            return False
        if self.anchor is not None and line.sequence == self.anchor.sequence:
            if line.hash != self.anchor.hash:
                self.why = f"line {line.sequence} is not the one that is remembered"
                return False
            self._met = True
        self._tail = sealed[0], bytes(sealed[-1])
        self._lines += 1
        self._revision = max(self._revision, line.revision)
        return True

    def report(self, head: int | None = None) -> AuditReport:
        """Return what was found; ``head`` is the journal's, above which no line can speak."""
        broken = None
        if self.why:
            broken = self._tail[0] + 1
        elif not self._met and self.anchor is not None:
            broken = self._tail[0] + 1
            self.why = f"the trail ends at line {self._tail[0]}; {self.anchor.sequence} is remembered"
        elif head is not None and self._revision > head:
            broken = self._tail[0]
            self.why = f"the trail speaks of revision {self._revision}, and the journal ends at {head}"
        anchor = Anchor(self._tail[0], self._tail[1].hex())
        return AuditReport(ok=broken is None, lines=self._lines, head=anchor, broken=broken, why=self.why)


def export_lines(lines: Iterable[AuditLine]) -> Iterator[bytes]:
    """Yield the trail as JSON lines, each with its newline."""
    for line in lines:
        yield _ENCODER.encode(line) + b"\n"


def verify_lines(lines: Iterable[bytes], anchor: Anchor | None = None) -> AuditReport:
    """Check an exported trail, complete from its first line."""
    verifier = Verifier(anchor)
    for text in lines:
        try:
            line = msgspec.json.decode(text, type=AuditLine)
        except msgspec.MsgspecError as error:
            verifier.why = f"a line that cannot be read: {error}"
            break
        if not verifier.take(line):
            break
    return verifier.report()
