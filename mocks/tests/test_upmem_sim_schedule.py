"""Tasklets in simulated time, and in the orders that seeds choose."""

from __future__ import annotations

import pytest

from mocks.tests.dpus import allocated, compiled, library

RACE = """
#include <stdint.h>
#include <defs.h>
#include <mutex.h>
MUTEX_INIT(guard);
__host uint32_t locked, bare, careful;
int main(void)
{
    for (int each = 0; each < 20; each++) {
        bare++; /* the race: a load, an addition and a store */
        if (careful) {
            mutex_lock(guard);
            locked++;
            mutex_unlock(guard);
        }
    }
    return 0;
}
"""

WORK = """
#include <stdint.h>
#include <stdio.h>
#include <barrier.h>
#include <defs.h>
#include <mram.h>
#include <perfcounter.h>
BARRIER_INIT(start, NR_TASKLETS);
__host uint64_t spent;
__host uint32_t additions, reads;
__dma_aligned uint8_t window[NR_TASKLETS][1024];
volatile uint32_t cells[NR_TASKLETS];
int main(void)
{
    if (me() == 0) {
        perfcounter_config(COUNT_CYCLES, true);
    }
    barrier_wait(&start);
    volatile uint32_t *cell = &cells[me()];
    const uint32_t count = additions;
    for (uint32_t each = 0; each < count; each++) {
        *cell += each;
    }
    for (uint32_t each = 0; each < reads; each++) {
        mram_read(DPU_MRAM_HEAP_POINTER, window[me()], 1024);
    }
    barrier_wait(&start);
    if (me() == 0) {
        spent = perfcounter_get();
    }
    return 0;
}
"""


def outcome(seed: int, careful: int = 0) -> tuple[int, int]:
    with allocated(1, f"schedule={seed}") as dpus:
        dpus.load(compiled(RACE, "-DNR_TASKLETS=8"))
        dpus.broadcast("careful", careful.to_bytes(4, "little"))
        dpus.launch()
        return dpus.number(0, "bare"), dpus.number(0, "locked")


def test_seeds_expose_a_race_that_the_plain_schedule_hides() -> None:
    assert outcome(0)[0] == 160
    assert min(outcome(seed)[0] for seed in range(1, 9)) < 160


def test_no_seed_breaks_what_a_mutex_guards() -> None:
    assert {outcome(seed, careful=1)[1] for seed in range(1, 9)} == {160}


def test_a_seed_gives_the_same_order_again_and_another_seed_another_one() -> None:
    runs = [outcome(seed)[0] for seed in (3, 4, 5, 6, 7, 8)]
    assert [outcome(seed)[0] for seed in (3, 4, 5, 6, 7, 8)] == runs
    assert len(set(runs)) > 1


def test_the_environment_gives_a_seed_where_no_profile_does(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(5)
    monkeypatch.setenv("HAL_UPMEM_SEED", "5")
    with allocated() as dpus:
        dpus.load(compiled(RACE, "-DNR_TASKLETS=8"))
        dpus.launch()
        assert (dpus.number(0, "bare"), dpus.number(0, "locked")) == expected


def spent(tasklets: int, additions: int = 0, reads: int = 0) -> int:
    with allocated() as dpus:
        dpus.load(compiled(WORK, f"-DNR_TASKLETS={tasklets}"))
        dpus.broadcast("additions", additions.to_bytes(4, "little"))
        dpus.broadcast("reads", reads.to_bytes(4, "little"))
        dpus.launch()
        cycles = dpus.number(0, "spent", 8)
        assert 0 < cycles <= dpus.counters().cycles
        assert dpus.counters().dma_bytes == tasklets * reads * 1024
        return cycles


def test_the_pipeline_is_full_with_eleven_tasklets_and_not_before() -> None:
    # Each tasklet does the same work: up to 11 they do not hinder each other, with 22 each has half of the pipeline.
    one, eleven, twentytwo = (spent(tasklets, additions=2000) for tasklets in (1, 11, 22))
    assert eleven == pytest.approx(one, rel=0.02)
    assert twentytwo == pytest.approx(2 * eleven, rel=0.02)


def test_one_tasklet_alone_issues_every_eleven_cycles() -> None:
    with allocated() as dpus:
        dpus.load(compiled(WORK, "-DNR_TASKLETS=1"))
        dpus.broadcast("additions", (500).to_bytes(4, "little"))
        dpus.launch()
        counters = dpus.counters()
        assert counters.cycles == 11 * counters.instructions
        assert counters.instructions >= 500 * 6  # load, add, store, count, compare, jump


def test_dma_costs_its_latency_alone_and_its_bytes_together() -> None:
    # 77 cycles and half a cycle a byte (PrIM); around each, the loop and the call have about 11 instructions.
    alone, together = spent(1, reads=100), spent(8, reads=100)
    assert alone == pytest.approx(100 * (77 + 512 + 11 * 11), rel=0.05)
    assert together == pytest.approx(8 * 100 * 512, rel=0.05)


def test_a_schedule_without_a_seed_counts_the_same_cycles_every_time() -> None:
    assert len({spent(16, additions=50, reads=3) for _ in range(3)}) == 1


def test_a_seed_can_be_set_between_launches() -> None:
    with allocated(1, "schedule=1") as dpus:
        dpus.load(compiled(RACE, "-DNR_TASKLETS=8"))
        try:
            found = set()
            for seed in range(1, 9):
                library().dpu_sim_set_seed(seed)
                dpus.broadcast("bare", bytes(4))
                dpus.launch()
                found.add(dpus.number(0, "bare"))
        finally:
            library().dpu_sim_set_seed(0)
        assert len(found) > 1
