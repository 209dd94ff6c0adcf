"""The journal: durable claims by the size of the commit, beside bare SQLite with the same bytes; snapshots, replay."""

from __future__ import annotations

import gc
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from hal.broker import command as c
from hal.broker.core import decide
from hal.broker.journal import schema
from hal.broker.journal.memory import MemoryStore
from hal.broker.journal.sqlite import FILE, SqliteStore
from hal.broker.journal.store import Store, load_state
from hal.broker.ledger import Ledger
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
    start = [*_decided(state, c.Begin(boot_id="bench")), *_decided(state, c.Observe(devices=devices, complete=True))]
    for group, many in GROUPS.items():
        yield _group(start, group, many)
    yield from _whole()


def _decided(state: State, command: c.AnyCommand) -> list[AnyRecord]:
    records, _ = decide(state, command, 1000.0)
    for record in records:
        state.apply(record)
    return list(records)


class _Clock:
    def now(self) -> float:
        return 1000.0


class Taken(NamedTuple):
    """Seconds that something took: by the clock on the wall, and of processor time in this process."""

    wall: float
    cpu: float


@contextmanager
def _taking(times: list[Taken]) -> Iterator[None]:
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times.append(Taken(time.perf_counter() - wall, time.process_time() - cpu))


def _claims(start: list[AnyRecord], store: Store, group: int, many: int, times: list[Taken]) -> None:
    """Let a ledger decide and commit so many claims, ``group`` in each commit."""
    store.append(start, 0)
    ledger = Ledger(store, _Clock())
    ledger.state.settle()
    pair = claim("x", requests=(request("gpu"), request("rnic")), same="pci-switch", tenant="physics/lattice/ada")
    ledger.preview(c.ClaimDevices(claim=pair))  # the shape is known from here on
    claims = [msgspec.structs.replace(pair, id=f"{number:032x}") for number in range(many)]
    actors = ["uid 1000"] * group
    with _taking(times):
        for first in range(0, many, group):
            commands = [c.ClaimDevices(claim=wanted) for wanted in claims[first : first + group]]
            answers = ledger.execute_many(commands, actors[: len(commands)])
            assert isinstance(answers[-1], c.Granted)


def _bare(rows: list[tuple[object, ...]], lines: list[tuple[object, ...]], group: int, times: list[Taken]) -> None:
    """Let nothing but sqlite3 put the same rows in, with the same pragmas."""
    with tempfile.TemporaryDirectory() as folder:
        connection = schema.prepare(Path(folder, FILE))
        with _taking(times):
            for first in range(0, len(rows), group):
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(schema.ADD_RECORD, rows[first : first + group])
                connection.executemany(schema.ADD_LINE, lines[first : first + group])
                connection.execute("COMMIT")
        connection.close()


def _rows(path: Path, table: str, many: int) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute(f"SELECT * FROM {table} ORDER BY 1 DESC LIMIT ?", (many,)).fetchall()
    connection.close()
    return rows[::-1]


def _group(start: list[AnyRecord], group: int, many: int) -> Row:
    durable: list[Taken] = []
    bare: list[Taken] = []
    decided: list[Taken] = []
    size = 0.0
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            store = SqliteStore(Path(folder))
            _claims(start, store, group, many, durable)
            store.close()
            rows, lines = (_rows(Path(folder, FILE), table, many) for table in ("records", "audit"))
            size = sum(len(str(value)) for row in (*rows, *lines) for value in row) / many
        _bare(rows, lines, group, bare)
        _claims(start, MemoryStore(), group, many, decided)
    rate, peer, pure = (many / min(times).wall for times in (durable, bare, decided))
    cpu, peer_cpu, pure_cpu = (many / min(taken.cpu for taken in times) for times in (durable, bare, decided))
    goal = f"at least {GOAL:,} a second" if group == 256 else "none"
    return Row(
        name=f"durable claims, {group} a commit",
        measured=f"{rate:,.0f} a second; {cpu:,.0f} by processor time",
        peer=f"bare sqlite3, the same rows: {peer:,.0f} a second; {peer_cpu:,.0f} by processor time",
        ratio=peer / rate,
        goal=goal,
        met=goal == "none" or rate >= GOAL,
        includes=f"GPU and NIC on one switch, {NODES} nodes, all in one thread: a ledger decides, applies, encodes, "
        "reads back, writes, with the audit trail and its hashes, SQLite FULL; with a journal in memory "
        f"{pure:,.0f} a second ({pure_cpu:,.0f} by processor time); {size:,.0f} bytes a claim in record and trail; "
        f"best of {ROUNDS}; processor time leaves out waiting for the disk",
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
