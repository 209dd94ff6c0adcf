"""The trail's chain: whatever is changed, dropped, doubled or put in between is found, and at the right line."""

from __future__ import annotations

import hashlib
import sqlite3
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker.journal.audit import (
    GENESIS,
    Anchor,
    AuditEntry,
    Verifier,
    export_lines,
    line_of,
    seal,
    tail_of,
    verify_lines,
)
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.record import BootSeen
from hal.errors import JournalError
from tests.budget import examples

TEXT = st.text(st.characters(codec=None), max_size=12)
ENTRIES = st.builds(
    AuditEntry,
    at=st.floats(allow_nan=False, allow_infinity=False),
    actor=TEXT,
    tenant=TEXT,
    verb=TEXT,
    subject=TEXT,
    detail=TEXT,
    revision=st.integers(0, 2**63 - 1),
)


def trail(entries):
    return [line_of(row) for row in seal(entries, (0, GENESIS), 17)]


def broken(lines, anchor=None):
    verifier = Verifier(anchor)
    for line in lines:
        if not verifier.take(line):
            break
    return verifier.report().broken


@settings(max_examples=examples(40))
@given(st.lists(ENTRIES, max_size=8), st.integers(0, 8))
def test_a_trail_sealed_in_two_goes_is_the_same_as_in_one(entries, cut):
    first = seal(entries[:cut], (0, GENESIS), 17)
    tail = tail_of(first) if first else (0, GENESIS)
    assert [line_of(row) for row in first + seal(entries[cut:], tail, 17)] == trail(entries)
    assert broken(trail(entries)) is None
    assert verify_lines(export_lines(trail(entries))).ok


@settings(max_examples=examples(60))
@given(st.lists(ENTRIES, min_size=1, max_size=6), st.data())
def test_every_tampering_is_found_at_its_line(entries, data):
    lines = trail(entries)
    at = data.draw(st.integers(0, len(lines) - 1))
    line = lines[at]
    how = data.draw(st.sampled_from(["change", "drop", "double", "swap", "insert"]))
    if how == "change":
        field = data.draw(st.sampled_from(["at", "revision", "actor", "tenant", "verb", "subject", "detail", "hash"]))
        value = getattr(line, field)
        other = value + "x" if isinstance(value, str) else -1 - value if abs(value) < 1e9 else 0
        lines[at] = msgspec.structs.replace(line, **{field: other})
        expected = at + 1
    elif how == "drop":
        del lines[at]
        expected = None if at == len(lines) else at + 1  # the end is missed only by who remembers it
        assert at < len(lines) or broken(lines, Anchor(line.sequence, line.hash)) == at + 1
    elif how == "double":
        lines.insert(at, line)
        expected = at + 2
    elif how == "swap":
        lines[at], lines[0] = lines[0], lines[at]
        expected = 1 if at else None
    else:
        lines.insert(at, msgspec.structs.replace(line, detail="never happened" + line.detail))
        expected = at + 1
    assert broken(lines) == expected


def test_text_cannot_be_moved_from_one_field_to_the_next():
    one, other = (AuditEntry(at=1.0, actor=a, tenant=t, verb="v", subject="s") for a, t in (("ab", "c"), ("a", "bc")))
    assert trail([one])[0].hash != trail([other])[0].hash


def test_the_hash_is_the_documented_one():
    line = trail([AuditEntry(at=1.5, actor="ä", tenant="t", verb="v", subject="s", detail="d", revision=3)])[0]
    content = bytes(32) + struct.pack(">QdQ5I", 1, 1.5, 3, 2, 1, 1, 1, 1) + "ätvsd".encode()
    assert line.hash == hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(memory_path):
    store = SqliteStore(memory_path)
    for number in range(4):
        entry = AuditEntry(at=1.0, actor="ada", tenant="t", verb="claim", subject=f"c{number}")
        store.append([BootSeen(at=1.0, boot_id=str(number))], number, [entry])
    store.close()
    return memory_path


def altered(folder, *statements):
    with sqlite3.connect(folder / FILE) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    store = SqliteStore(folder)
    report = store.verify_audit()
    store.close()
    return report


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'eve' WHERE sequence = 2", "DELETE FROM audit"])
def test_the_table_refuses_a_slip_of_the_hand(folder, statement):
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        altered(folder, statement)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("UPDATE audit SET actor = 'eve' WHERE sequence = 2", 2),
        ("UPDATE audit SET hash = 'text' WHERE sequence = 3", 3),
        ("UPDATE audit SET revision = 'text' WHERE sequence = 3", 3),
        ("DELETE FROM audit WHERE sequence = 2", 2),
        ("DELETE FROM records WHERE revision = 4", 4),
    ],
)
def test_a_trail_that_was_altered_in_the_file_is_found(folder, statement, line):
    report = altered(folder, "DROP TRIGGER audit_UPDATE", "DROP TRIGGER audit_DELETE", statement)
    assert not report.ok
    assert report.broken == line
    assert report.why


def test_a_broken_trail_goes_on(folder):
    altered(folder, "DROP TRIGGER audit_UPDATE", "UPDATE audit SET hash = 'text' WHERE sequence = 4")
    store = SqliteStore(folder)
    store.append([BootSeen(at=1.0, boot_id="x")], 4, [AuditEntry(at=1.0, actor="a", tenant="", verb="v", subject="s")])
    assert store.head() == 5
    assert store.verify_audit().broken == 4
    store.close()


def test_an_entry_that_is_none_is_refused_before_anything_is_written(folder):
    store = SqliteStore(folder)
    for at, actor in (("now", "a"), (float("nan"), "a"), (1.0, None)):
        wrong = AuditEntry(at=at, actor=actor, tenant="", verb="v", subject="s")
        with pytest.raises(JournalError):
            store.append([BootSeen(at=1.0, boot_id="x")], 4, [wrong])
    assert store.head() == 4
    assert store.verify_audit().lines == 4
    store.close()
