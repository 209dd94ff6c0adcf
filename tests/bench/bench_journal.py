"""The journal: durable claims by the size of the commit, beside bare SQLite with the same bytes; snapshots, replay."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hal.broker import command as c
from hal.broker.core import decide
from hal.broker.journal import schema
from hal.broker.journal.audit import AuditEntry
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import Store, load_state
from hal.broker.record import AnyRecord
from hal.broker.state import Snapshot, State
from tests.bench.rows import Row
from tests.unit.broker.world import claim, request, server

NODES = 250
GROUPS = {1: 400, 8: 1600, 64: 1920, 256: 1792}
"""How many claims are made for each size of a commit, of 2,000 that there is room for."""
ROUNDS = 5
GOAL = 20_000
MANY_NODES = 5_883
"""Of 17 devices each: 100,000 and some."""


def run() -> Iterator[Row]:
    state = State()
    devices = tuple(device for n in range(NODES) for device in server(f"node{n:04d}", rack=f"rack{n // 16}"))
    for command in (c.Begin(boot_id="bench"), c.Observe(devices=devices, complete=True)):
        _decided(state, command)
    start = state.snapshot()
    for group, many in GROUPS.items():
        yield _group(start, group, many)
    yield from _whole()


def _decided(state: State, command: c.AnyCommand) -> list[AnyRecord]:
    records, _ = decide(state, command, 1000.0)
    for record in records:
        state.apply(record)
    return list(records)


def _claims(start: Snapshot, store: Store, group: int, many: int) -> float:
    """Return seconds for so many claims: decided, applied and put on the trail one by one, written in groups."""
    state = State.restore(start)
    state.revision = head = store.head()
    state.settle()
    pair = claim("x", requests=(request("gpu"), request("rnic")), same="pci-switch", tenant="physics/lattice/ada")
    decide(state, c.ClaimDevices(claim=pair), 1000.0)  # the shape is known from here on
    claims = [msgspec.structs.replace(pair, id=f"{number:032x}") for number in range(many)]
    began = time.perf_counter()
    for first in range(0, many, group):
        records: list[AnyRecord] = []
        trail = []
        for wanted in claims[first : first + group]:
            made = _decided(state, c.ClaimDevices(claim=wanted))
            records += made
            devices = ", ".join([device.id for device in made[0].lease.devices])
            detail = f"fence {state.fence}: {devices}"
            entry = AuditEntry(
                at=1000.0,
                actor="uid 1000",
                tenant=wanted.tenant,
                verb="grant",
                subject=wanted.id,
                detail=detail,
                revision=head + len(records),
            )
            trail.append(entry)
        head = store.append(records, head, trail)
    return time.perf_counter() - began


def _bare(rows: list[tuple[object, ...]], lines: list[tuple[object, ...]], group: int) -> float:
    """Return seconds for the same rows put in by nothing but sqlite3, with the same pragmas."""
    with tempfile.TemporaryDirectory() as folder:
        connection = schema.prepare(Path(folder, FILE))
        began = time.perf_counter()
        for first in range(0, len(rows), group):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(schema.ADD_RECORD, rows[first : first + group])
            connection.executemany(schema.ADD_LINE, lines[first : first + group])
            connection.execute("COMMIT")
        took = time.perf_counter() - began
        connection.close()
    return took


def _rows(path: Path, table: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    connection.close()
    return rows


def _group(start: Snapshot, group: int, many: int) -> Row:
    durable, bare, decided = [], [], []
    size = 0.0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            store = SqliteStore(Path(folder))
            durable.append(_claims(start, store, group, many))
            store.close()
            path = Path(folder, FILE)
            rows, lines = _rows(path, "records"), _rows(path, "audit")
            size = path.stat().st_size / many
        bare.append(_bare(rows, lines, group))
        decided.append(_claims(start, MemoryStore(), group, many))
    rate, peer, pure = many / min(durable), many / min(bare), many / min(decided)
    goal = f"at least {GOAL:,} a second" if group == 256 else "none"
    return Row(
        name=f"durable claims, {group} a commit",
        measured=f"{rate:,.0f} a second",
        peer=f"bare sqlite3, the same rows: {peer:,.0f} a second",
        ratio=peer / rate,
        goal=goal,
        met=goal == "none" or rate >= GOAL,
        includes=f"GPU and NIC on one switch, {NODES} nodes: decided, applied, encoded, read back, put on the audit "
        f"trail with its hash, SQLite FULL; decided and applied with a journal in memory {pure:,.0f} a second; "
        f"{size:,.0f} bytes a claim in the file",
    )


def _whole() -> Iterator[Row]:
    state = State()
    devices = [device for n in range(MANY_NODES) for device in server(f"node{n:05d}", pairs=8, rack=f"rack{n // 16}")]
    devices = [device for device in devices if device.allocatable or device.name.endswith("00:00.0")]
    records = [*_decided(state, c.Begin(boot_id="bench")), *_decided(state, c.Observe(devices=tuple(devices)))]
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder))
        for first in range(0, len(records), 1000):
            store.append(records[first : first + 1000], first)
        began = time.perf_counter()
        replayed = load_state(store)
        replay = time.perf_counter() - began
        assert replayed.revision == state.revision
        began = time.perf_counter()
        snapshot = state.snapshot()
        taken = time.perf_counter() - began
        steps = []
        began = before = time.perf_counter()
        for _ in store.saving(snapshot):
            now = time.perf_counter()
            steps.append(now - before)
            before = now
        saved = time.perf_counter() - began
        began = time.perf_counter()
        text = msgspec.json.encode(snapshot)
        at_once = time.perf_counter() - began
        began = time.perf_counter()
        load_state(store)
        loaded = time.perf_counter() - began
        began = time.perf_counter()
        State.restore(msgspec.json.decode(text, type=Snapshot))
        decoded = time.perf_counter() - began
        head, began = store.head(), time.perf_counter()
        compacting = []
        before = began
        for _ in store.compacting(head):
            now = time.perf_counter()
            compacting.append(now - before)
            before = now
        compacted = time.perf_counter() - began
        store.append(records[:1], head)
        began = time.perf_counter()
        for _ in range(1000):
            assert sum(1 for _ in store.replay(head)) == 1
        follow = (time.perf_counter() - began) / 1000
        store.close()
    many = f"{len(devices):,} devices"
    steps.sort()
    yield Row(
        name=f"a snapshot of {many}, saved",
        measured=f"{saved:.2f} s in {len(steps)} steps; the longest {steps[-1] * 1e3:.1f} ms, "
        f"half of them under {steps[len(steps) // 2] * 1e3:.1f} ms",
        peer=f"encoded at once, and not written: {at_once * 1e3:.0f} ms",
        ratio=saved / at_once,
        goal="none",
        met=True,
        includes=f"{len(text) / 1e6:.0f} MB, each step on the disk; others append between the steps; to take it from "
        f"the state, which does keep them waiting: {taken * 1e3:.1f} ms",
    )
    yield Row(
        name=f"a journal of {many}, opened from the snapshot",
        measured=f"{loaded:.2f} s",
        peer=f"decoded at once and restored: {decoded:.2f} s",
        ratio=loaded / decoded,
        goal="none",
        met=True,
        includes=f"read, decoded, indexes built; from {len(records):,} records instead: {replay:.2f} s",
    )
    yield Row(
        name=f"{head:,} records compacted",
        measured=f"{compacted:.2f} s in {len(compacting)} steps; the longest {max(compacting) * 1e3:.1f} ms",
        peer="none",
        ratio=None,
        goal="none",
        met=True,
        includes="hashed, deleted, a line on the trail for each step, each on the disk",
    )
    yield Row(
        name="one record read by a follower at the head",
        measured=f"{follow * 1e6:.1f} us",
        peer="none",
        ratio=None,
        goal="none",
        met=True,
        includes="replay of what follows the last revision but one",
    )


if __name__ == "__main__":
    for row in run():
        print(f"{row.name}: {row.measured} | {row.peer} | {row.ratio} | {row.includes}")
