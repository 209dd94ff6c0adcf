"""What the journal's file looks like, and how one of an earlier version is brought up to date."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import msgspec

from hal.broker.journal.audit import GENESIS, AuditEntry, seal
from hal.errors import JournalError

SCHEMA = 2
PAGE_BYTES = 8192
CHECKPOINT_PAGES = (1 << 20) // PAGE_BYTES
"""A log of 1 MiB is copied into the file in 2 to 3 ms, within one commit; one of 4 MiB in 5 to 10, and is no faster."""
ADD_RECORD = "INSERT INTO records VALUES (?, ?, ?, ?)"
ADD_LINE = "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
SET_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_RECORDS = (
    "CREATE TABLE records (revision INTEGER PRIMARY KEY, at REAL NOT NULL, type TEXT NOT NULL, body TEXT NOT NULL)"
)
_SNAPSHOTS = (
    "CREATE TABLE snapshots (revision INTEGER NOT NULL, part INTEGER NOT NULL, field TEXT NOT NULL, "
    "body TEXT NOT NULL, PRIMARY KEY (revision, part))"
)
_AUDIT = (
    "CREATE TABLE audit (sequence INTEGER PRIMARY KEY, at REAL NOT NULL, revision INTEGER NOT NULL, "
    "actor TEXT NOT NULL, tenant TEXT NOT NULL, verb TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL, "
    "hash BLOB NOT NULL)"
)
# Against a slip of the hand; a wrongdoer takes the triggers away, and is found by the hashes.
_AUDIT_STAYS = tuple(
    f"CREATE TRIGGER audit_{verb} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail only grows'); END"
    for verb in ("UPDATE", "DELETE")
)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file alone: nobody else can, in this process or another, as long as it is open.

    ``locking_mode=EXCLUSIVE`` also keeps the log's index in memory, so that no further file is needed on a full disk.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file; others stay as they are
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(path: Path) -> sqlite3.Connection:
    """Open the file, make its tables if it is new, and upgrade it if it is of an earlier schema.

    Raises :class:`~hal.errors.JournalError` for a later one.
    """
    connection = connect(path)
    try:
        version = _version(connection)
        if version == 1:
            keep_copy(connection, path, version)
            connection = connect(path)
            upgrade_from_1(connection)
        elif version == 0:
            statements = (_META, _RECORDS, _SNAPSHOTS, _AUDIT, *_AUDIT_STAYS, f"PRAGMA user_version={SCHEMA}")
            connection.executescript("".join(f"{s};" for s in ("BEGIN IMMEDIATE", *statements, "COMMIT")))
        elif version != SCHEMA:
            raise JournalError(
                f"the journal has schema {version}, this version of hal reads {SCHEMA}",
                during="open",
                hint="use the version of hal that wrote it, or another --state FOLDER",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def settle(connection: sqlite3.Connection) -> None:
    """Bring all that is in the log into the file, durably; raise ``sqlite3.Error`` if that cannot be done."""
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise sqlite3.OperationalError("the log could not be brought into the file")


def keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> Path:
    """Close the file, and lay a copy of it beside it, ``journal.sqlite.v1``, whole or not at all."""
    settle(connection)
    # Closed first: to close any second descriptor of a file would take away SQLite's locks on it.
    connection.close()
    copy = path.with_name(f"{path.name}.v{version}")
    part = path.with_name(f"{copy.name}.part")
    try:
        shutil.copyfile(path, part)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for name in (part, path.parent):
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            if name is part:
                os.replace(part, copy)
        finally:
            os.close(descriptor)
    return copy


def upgrade_from_1(connection: sqlite3.Connection) -> None:
    """Add the trail, told from the records as far as they tell it, and make room for snapshots in parts."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DROP TABLE snapshots")  # all records are still there
        for statement in (_SNAPSHOTS, _AUDIT, *_AUDIT_STAYS):
            connection.execute(statement)
        connection.executemany(ADD_LINE, seal(_story(connection), (0, GENESIS), 0))
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class _Old(msgspec.Struct, frozen=True):
    """What all records of schema 1 that tell of claims have between them."""

    lease: str | dict[str, object] = ""
    device: str | dict[str, object] = ""
    why: str = ""
    proof: str = ""
    how: str = ""


def _story(connection: sqlite3.Connection) -> Iterator[AuditEntry]:
    """Who acted was not written down then."""
    tenants: dict[str, str] = {}
    digest = hashlib.sha256()
    revision, at = 0, 0.0
    for revision, at, kind, body in connection.execute("SELECT revision, at, type, body FROM records ORDER BY 1"):
        digest.update(body.encode() if isinstance(body, str) else body)
        digest.update(b"\n")
        if kind not in ("lease-granted", "lease-releasing", "lease-suspected", "lease-ended", "device-repaired"):
            continue
        old = msgspec.json.decode(body, type=_Old)
        if isinstance(old.lease, dict):
            subject, tenant = str(old.lease["id"]), str(old.lease["tenant"])
            tenants[subject] = tenant
            detail = f"fence {old.lease['fence']}"
        else:
            subject = old.lease or str(old.device)
            tenant = tenants.get(subject, "")
            detail = old.why or old.proof or old.how
        yield AuditEntry(at=at, actor="", tenant=tenant, verb=kind, subject=subject, detail=detail, revision=revision)
    detail = f"from schema 1 at revision {revision}, SHA-256 of the records' lines {digest.hexdigest()}"
    yield AuditEntry(at=at, actor="hal", tenant="", verb="upgrade", subject="journal", detail=detail, revision=revision)


@cache
def own_version() -> str:
    """Return the version of hal that runs; looked up once, for that reads files, and every append asks."""
    try:
        return importlib.metadata.version("rackhal")
    except importlib.metadata.PackageNotFoundError:
        return "0"


@lru_cache(maxsize=16)
def is_newer(one: str, other: str) -> bool:
    """Return whether a version comes after another, as far as their numbers tell."""
    return _numbers(one) > _numbers(other)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
