"""Programs on mock UPMEM ranks: right answers, seeded interleavings, deadlocks, and the rules of the hardware."""

from __future__ import annotations

import re
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import InvalidArgument, ProgramFault
from hal.interfaces.deadline import Deadline
from hal.interfaces.upmem import MRAM_HEAP, Direction, RunState
from hal_mocks.clock import VirtualClock
from hal_mocks.machine import Machine
from hal_mocks.upmem_context import Context
from hal_mocks.upmem_program import Mram, Program, Wram
from hal_mocks.upmem_programs import ADD, DOUBLE, HISTOGRAM, HISTOGRAM_BINS, SEARCH, TOTAL
from mocks.tests.ranks import count_bytes, graph, opened


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(graph(), tmp_path / "machine", VirtualClock())


@pytest.fixture
def rank(machine: Machine):
    with opened(machine) as rank:
        yield rank


def crash(ctx: Context) -> None:
    if ctx.me() == 0:
        raise ZeroDivisionError("one by zero")
    ctx.barrier()


# -- programs ---------------------------------------------------------------------------------------------------------


def test_vectors_are_added(rank):
    random = np.random.default_rng(1)
    count = 5000
    vectors = {dpu: random.integers(0, 1 << 32, size=(2, count), dtype="u4") for dpu in rank.rank().dpus}
    rank.load(ADD)
    rank.broadcast("count", 0, count_bytes(count))
    for name, row in (("a", 0), ("b", 1)):
        rank.push(Direction.TO_DPU, name, 0, {dpu: both[row].copy() for dpu, both in vectors.items()})
    rank.launch().wait()
    found = {dpu: np.zeros(count, "u4") for dpu in vectors}
    rank.push(Direction.FROM_DPU, "c", 0, found)
    for dpu, both in vectors.items():
        assert np.array_equal(found[dpu], both[0] + both[1])


@pytest.mark.parametrize("count", [1, 255, 256, 257, 9999])
def test_a_reduction_meets_at_its_barrier(rank, count):
    values = np.random.default_rng(count).integers(0, 1 << 32, size=count + count % 2, dtype="u4")
    rank.load(TOTAL)
    rank.broadcast("input", 0, values)
    rank.broadcast("count", 0, count_bytes(count))
    rank.launch().wait()
    for dpu in rank.rank().dpus:
        assert int.from_bytes(rank.copy_from(dpu, "sum", 0, 8), "little") == int(values[:count].sum(dtype="u8"))


def test_a_histogram_counts_every_byte_whatever_the_seed(rank):
    text = np.random.default_rng(5).integers(0, 256, size=4000, dtype="u1")
    expected = np.bincount(text % HISTOGRAM_BINS, minlength=HISTOGRAM_BINS)
    for seed in range(3):
        rank.schedule_seed = seed
        rank.load(HISTOGRAM)
        rank.broadcast("input", 0, text)
        rank.broadcast("count", 0, count_bytes(len(text)))
        rank.launch().wait()
        bins = np.frombuffer(rank.copy_from(0, "bins", 0, 4 * HISTOGRAM_BINS), "<u4")
        assert np.array_equal(bins, expected)


@settings(max_examples=15, deadline=None)
@given(
    phrase=st.text("ab ", min_size=1, max_size=5),
    pieces=st.lists(st.text("ab ", max_size=40), min_size=1, max_size=40),
    repeat=st.integers(1, 6),
)
def test_phrase_search_agrees_with_an_independent_search(tmp_path_factory, phrase, pieces, repeat):
    text = " ".join(pieces * repeat)
    machine = Machine(graph(disabled=tuple(range(2, 8))), tmp_path_factory.mktemp("m"), VirtualClock())
    with opened(machine) as rank:
        rank.load(SEARCH)
        rank.broadcast("text", 0, text.encode().ljust(-(-len(text) // 8) * 8, b"\0"))
        rank.broadcast("count", 0, count_bytes(len(text)))
        rank.broadcast("phrase", 0, phrase.encode().ljust(64, b"\0"))
        rank.broadcast("phrase_length", 0, count_bytes(len(phrase)))
        rank.launch().wait()
        found = int(np.frombuffer(rank.copy_from(0, "found", 0, 4 * 24), "<u4").sum())
    assert found == len(re.findall(f"(?={re.escape(phrase)})", text))


# -- tasklets ---------------------------------------------------------------------------------------------------------


def racy(ctx: Context) -> None:
    counter = ctx.wram("counter")
    for _ in range(10):
        counter[0] = counter[0] + 1


def careful(ctx: Context) -> None:
    counter = ctx.wram("counter")
    for _ in range(10):
        with ctx.mutex("counter"):
            counter[0] = counter[0] + 1


def embrace(ctx: Context) -> None:
    first, second = ("left", "right") if ctx.me() == 0 else ("right", "left")
    ctx.mutex_lock(first)
    ctx.handshake_notify() if ctx.me() == 0 else ctx.handshake_wait_for(0)
    ctx.mutex_lock(second)


def missing(ctx: Context) -> None:
    if ctx.me() != 2:
        ctx.barrier()


def relay(ctx: Context) -> None:
    """A chain of handshakes: each tasklet adds its digit after the one before."""
    if ctx.me() > 0:
        ctx.handshake_wait_for(ctx.me() - 1)
    ctx.printf("%x", ctx.me())
    if ctx.me() + 1 < ctx.tasklets:
        ctx.handshake_notify()


def bounded(ctx: Context) -> None:
    """At most two tasklets at once in the middle."""
    inside = ctx.wram("counter")
    ctx.sem_take("two")
    with ctx.mutex("m"):
        inside[0] = inside[0] + 1
        assert inside[0] <= 2
    ctx.reschedule()
    with ctx.mutex("m"):
        inside[0] = inside[0] - 1
    ctx.sem_give("two")


COUNTER = {"counter": Wram(8, "<u4")}


def counts_over_seeds(rank, kernel, seeds: int = 12) -> set[int]:
    found = set()
    for seed in range(seeds):
        rank.schedule_seed = seed
        rank.load(Program(name="count", kernel=kernel, tasklets=8, symbols=COUNTER))
        rank.launch().wait()
        found |= {int.from_bytes(rank.copy_from(dpu, "counter", 0, 4), "little") for dpu in rank.rank().dpus}
    return found


def test_a_racy_program_gives_different_results_over_seeds(rank):
    assert len(counts_over_seeds(rank, racy)) > 1


def test_a_right_program_gives_one_result_over_seeds(rank):
    assert counts_over_seeds(rank, careful) == {80}


def test_a_seed_gives_the_same_interleaving_again(machine):
    outcomes = []
    for _ in range(2):
        with opened(machine) as rank:
            rank.schedule_seed = 77
            rank.load(Program(name="count", kernel=racy, tasklets=8, symbols=COUNTER))
            rank.launch().wait()
            outcomes.append([rank.copy_from(dpu, "counter", 0, 4) for dpu in rank.rank().dpus])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (embrace, "tasklet 0 waits for mutex .*tasklet 1 waits for mutex"),
        (missing, "waits for barrier"),
        (relay, None),
        (bounded, None),
    ],
)
def test_a_deadlock_is_a_fault_and_not_a_hang(rank, kernel, words):
    for seed in range(5):
        rank.schedule_seed = seed
        tasklets = 2 if kernel is embrace else 4
        rank.load(Program(name="meet", kernel=kernel, tasklets=tasklets, symbols=COUNTER, semaphores={"two": 2}))
        run = rank.launch()
        if words is None:
            run.wait(Deadline.after(60))
            continue
        with pytest.raises(ProgramFault, match=f"deadlock.*{words}"):
            run.wait(Deadline.after(60))
        assert rank.status().faults[0].tasklet is None


def test_handshakes_keep_their_order(rank):
    for seed in range(6):
        rank.schedule_seed = seed
        rank.load(Program(name="relay", kernel=relay, tasklets=16))
        rank.launch().wait(Deadline.after(60))
        assert rank.log(0) == "0123456789abcdef"


def test_no_tasklet_thread_is_left_behind(rank):
    for kernel in (crash, missing, racy):
        rank.load(Program(name="threads", kernel=kernel, tasklets=8, symbols=COUNTER))
        rank.launch().error()
        run = rank
        while run.status().state is RunState.RUNNING:
            threading.Event().wait(0.001)
    for thread in threading.enumerate():
        if thread.name.startswith("tasklet-"):
            thread.join(10)
            assert not thread.is_alive()


# -- rules of the hardware --------------------------------------------------------------------------------------------


def broken(what: str):
    def kernel(ctx: Context) -> None:
        buffer = ctx.mem_alloc(4096)
        {
            "offset": lambda: ctx.mram_read("data", 4, buffer[:8]),
            "length": lambda: ctx.mram_read("data", 0, buffer[:12]),
            "too long": lambda: ctx.mram_read("data", 0, buffer[:2056]),
            "nothing": lambda: ctx.mram_write(buffer[:0], "data", 0),
            "end": lambda: ctx.mram_write(buffer[:16], "data", 4088),
            "misplaced": lambda: ctx.mram_read("data", 0, buffer[4:12]),
            "not wram": lambda: ctx.mram_read("data", 0, np.zeros(8, "u1")),
            "symbol": lambda: ctx.mram_read("date", 0, buffer[:8]),
            "wram": lambda: ctx.mem_alloc(60 << 10),
            "unlock": lambda: ctx.mutex_unlock("m"),
            "barrier": lambda: ctx.barrier("none"),
            "semaphore": lambda: ctx.sem_take("none"),
        }[what]()

    return kernel


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("offset", "not aligned to 8"),
        ("length", "multiple of 8"),
        ("too long", "8 to 2048"),
        ("nothing", "multiple of 8|not in WRAM"),
        ("end", "outside of data"),
        ("misplaced", "not aligned to 8"),
        ("not wram", "not in WRAM"),
        ("symbol", "no variable 'date'"),
        ("wram", "bytes of WRAM are left"),
        ("unlock", "does not have it"),
        ("barrier", "no barrier"),
        ("semaphore", "no semaphore"),
    ],
)
def test_a_kernel_that_breaks_a_rule_faults(rank, what, words):
    rank.load(Program(name="broken", kernel=broken(what), symbols={"data": Mram(4096)}))
    with pytest.raises(ProgramFault, match=rf"dpu 0 tasklet 0: .*({words})"):
        rank.launch().wait(Deadline.after(60))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (Program(name="p", kernel=crash, tasklets=25), "25 tasklets"),
        (Program(name="p", kernel=crash, tasklets=0), "0 tasklets"),
        (Program(name="p", kernel=crash, symbols={"a": Wram(64 << 10)}), "bytes of WRAM"),
        (Program(name="p", kernel=crash, tasklets=24, stack_bytes=4096), "bytes of WRAM"),
        (Program(name="p", kernel=crash, symbols={"a": Mram(65 << 20)}), "bytes of MRAM"),
        (Program(name="p", kernel=crash, code_bytes=25 << 10), "bytes of IRAM"),
        ("a.elf", "not str"),
    ],
)
def test_a_program_that_does_not_fit_is_not_loaded(rank, program, words):
    rank.load(DOUBLE)
    with pytest.raises(InvalidArgument, match=words):
        rank.load(program)
    assert rank.status().program == "double", "the one before is still there"


def test_variables_have_their_first_values_and_the_heap_what_is_left(rank):
    symbols = {"table": Wram(8, "<u4", b"\1\0\0\0"), "input": Mram(4096, initial=b"fill")}
    rank.load(Program(name="p", kernel=crash, symbols=symbols))
    assert rank.copy_from(0, "table", 0, 8) == b"\1" + bytes(7)
    assert rank.copy_from(0, "input", 0, 8) == b"fill" + bytes(4)
    assert rank.symbols()[MRAM_HEAP].size_bytes == (64 << 20) - 4096
    rank.copy_to(0, MRAM_HEAP, (64 << 20) - 4096 - 8, b"last one")
    with pytest.raises(InvalidArgument):
        rank.copy_to(0, MRAM_HEAP, (64 << 20) - 4096, b"too far!")


def test_a_whole_rank_takes_memory_only_as_it_is_touched(tmp_path):
    machine = Machine(graph(per_ci=8, disabled=()), tmp_path, VirtualClock())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with opened(machine) as rank:
        assert len(rank.rank().dpus) == 64
        rank.load(DOUBLE)
        for dpu in rank.rank().dpus:
            rank.copy_to(dpu, MRAM_HEAP, 32 << 20, b"touched!")
            assert rank.copy_from(dpu, MRAM_HEAP, 48 << 20, 8) == bytes(8)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 512 << 10, "not the 4 GiB that the rank has"


def test_cycles_are_told_as_simulated(rank):
    assert rank.telemetry()["last_run_cycles"].value is None
    rank.load(DOUBLE)
    rank.broadcast("count", 0, count_bytes(1000))
    rank.launch().wait()
    cycles = rank.telemetry()["last_run_cycles"]
    assert cycles.source == "simulated"
    assert cycles.value > 1000
