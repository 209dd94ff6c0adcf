"""What a program does wrong stops its DPU with words that help, and never the host's process."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from mocks.tests.dpus import FAULT, LOG_SMALL, Dpus, Error, allocated, compiled

HEAD = """
#include <stdint.h>
#include <stdio.h>
#include <alloc.h>
#include <barrier.h>
#include <defs.h>
#include <handshake.h>
#include <mram.h>
#include <mutex.h>
#include <sem.h>
MUTEX_INIT(door);
BARRIER_INIT(gate, NR_TASKLETS);
SEMAPHORE_INIT(tickets, 0);
__mram_noinit uint64_t store[16];
__dma_aligned uint8_t wram[64];
volatile uint32_t zero, sink;
"""
DEEP = """
uint32_t deep(uint32_t n)
{
    volatile uint32_t a[8];
    a[n & 7] = n;
    uint32_t below = n == 0 ? 0 : deep(n - 1);
    return below + a[n & 7];
}
"""

MISTAKES = {
    "misaligned MRAM": ("mram_read((uint8_t *)store + 4, wram, 8);", r"MRAM address 0x08000004 is not a multiple of 8"),
    "misaligned WRAM": ("mram_read(store, wram + 1, 8);", r"WRAM address 0x\w+ is not a multiple of 8"),
    "odd length": ("mram_write(wram, store, 12);", r"mram_write of 12 bytes: a DMA transfer has 8 to 2048 bytes"),
    "too long": ("mram_read(store, wram, 4096);", r"mram_read of 4096 bytes"),
    "WRAM for MRAM": ("mram_read(wram, wram + 8, 8);", r"the MRAM address is one of WRAM"),
    "beyond MRAM": ("mram_read((void *)0x0bffffc8u, wram, 64);", r"64 bytes at 0x0bffffc8 go beyond MRAM's end"),
    "beyond WRAM": ("mram_read(store, (void *)((uintptr_t)wram & ~0xffffu) + 65528, 16);", r"16 bytes at 0x0000fff8"),
    "heap": ("for (;;) mem_alloc(8192);", r"WRAM overflow: mem_alloc\(8192\), but \d+ of 65536 bytes are in use"),
    "null pointer": ("*(volatile int *)0 = 1;", r"null pointer \(address 0x0\) in main"),
    "wild pointer": (
        "sink = *(volatile uint32_t *)0x7ff00000u;",
        r"invalid access at 0x\w+, in no memory of the DPU, in main",
    ),
    "division": ("sink = 7 / zero;", r"division by zero in main"),
    "deep recursion": (
        "sink = deep(1000000 + zero);",
        r"stack overflow of tasklet 1, whose stack has 1024 bytes, in deep",
    ),
    "big frame": ("uint8_t big[3000]; big[zero] = 1; mram_write(wram, store, 8); sink = big[sink];", r"stack overflow"),
    "halt": ("halt();", r"halt"),
    "assertion": ("assert(zero == 1);", r"assertion failed: zero == 1 \(.*\.c:\d+\)"),
}


def one_of(codes: Iterable[str]) -> str:
    """Return a program that does, in each tasklet, the one of these that the host chooses."""
    cases = "".join(f"    case {number}: {{ {code} }} break;\n" for number, code in enumerate(codes))
    head = f"{HEAD}#include <assert.h>\n{DEEP}__host uint32_t which;\n"
    return f"{head}int main(void)\n{{\n    switch (which) {{\n{cases}    }}\n    return 0;\n}}\n"


def chosen(dpus: Dpus, number: int) -> None:
    dpus.broadcast("which", number.to_bytes(4, "little"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_tasklet_and_what_was_wrong(mistake: str) -> None:
    source = one_of(f"if (me() == 1) {{ {code} }}" for code, _ in MISTAKES.values())
    with allocated(2) as dpus:
        dpus.load(compiled(source, "-DNR_TASKLETS=3"))
        chosen(dpus, list(MISTAKES).index(mistake))
        with pytest.raises(Error, match=MISTAKES[mistake][1]) as caught:
            dpus.launch()
        assert caught.value.code == FAULT
        fault, tasklet = dpus.fault(1)
        assert tasklet == 1
        assert fault.startswith("tasklet 1: ")
        assert f"*** fault: {fault}" in dpus.log(1)
        assert dpus.status() == (True, True)


DEADLOCKS = {
    "mutex": (
        "if (me() == 0) { mutex_lock(door); return 0; } barrier_wait(&gate); mutex_lock(door);",
        r"deadlock: tasklet 1 waits for barrier gate \(2 of 3 have come\); tasklet 2 waits for barrier gate",
    ),
    "mutex never released": (
        "mutex_lock(door);",
        r"tasklet 1 waits for mutex door held by tasklet 0, which ended without releasing it; tasklet 2 waits",
    ),
    "semaphore": ("if (me() == 2) sem_take(&tickets);", r"deadlock: tasklet 2 waits for semaphore tickets$"),
    "handshake": (
        "if (me() == 0) handshake_wait_for(2);",
        r"deadlock: tasklet 0 waits for a handshake of tasklet 2, which has ended$",
    ),
    "notify": ("if (me() == 0) handshake_notify();", r"tasklet 0 waits for somebody to wait for its handshake$"),
}


@pytest.mark.parametrize("lock", DEADLOCKS)
def test_a_deadlock_says_who_waits_for_what(lock: str) -> None:
    with allocated() as dpus:
        dpus.load(compiled(one_of(code for code, _ in DEADLOCKS.values()), "-DNR_TASKLETS=3"))
        chosen(dpus, list(DEADLOCKS).index(lock))
        with pytest.raises(Error, match=DEADLOCKS[lock][1]):
            dpus.launch()
        assert dpus.fault()[1] == -1


def test_a_dpu_in_fault_runs_again_only_after_a_load() -> None:
    program = compiled(
        f"{HEAD}__host uint32_t bad = 1; int main(void) {{ if (bad) halt(); return 0; }}", "-DNR_TASKLETS=1"
    )
    with allocated() as dpus:
        dpus.load(program)
        with pytest.raises(Error):
            dpus.launch()
        with pytest.raises(Error, match=r"in fault since its last run.*load the program again"):
            dpus.launch()
        dpus.load(program)
        dpus.broadcast("bad", bytes(4))
        dpus.launch()
        assert dpus.status() == (True, False)


def test_only_the_dpu_that_errs_is_in_fault() -> None:
    program = compiled(f"{HEAD}__host uint32_t bad; int main(void) {{ if (bad) halt(); return 0; }}", "-DNR_TASKLETS=2")
    with allocated(3) as dpus:
        dpus.load(program)
        dpus.push("bad", [bytes(4), b"\1\0\0\0", bytes(4)])
        with pytest.raises(Error, match=r"dpu 1 of dpu_rank0: tasklet 0: halt$"):
            dpus.launch()
        assert [dpus.fault(each)[0] for each in range(3)] == ["", "tasklet 0: halt", ""]


def test_who_waits_busily_for_another_is_interrupted() -> None:
    source = HEAD + "int main(void) { if (me() == 0) while (!zero) {} else zero = 1; return 0; }"
    with allocated(2) as dpus:
        dpus.load(compiled(source, "-DNR_TASKLETS=2"))
        dpus.launch()
        assert dpus.status() == (True, False)


def test_a_log_that_is_too_long_is_cut_and_said_to_be() -> None:
    source = (
        HEAD + 'STDOUT_BUFFER_INIT(64)\nint main(void) { for (int i = 0; i < 9; i++) printf("0123456789"); return 0; }'
    )
    with allocated() as dpus:
        dpus.load(compiled(source, "-DNR_TASKLETS=1"))
        dpus.launch()
        with pytest.raises(Error, match="more than the 64 bytes") as caught:
            dpus.log()
        assert caught.value.code == LOG_SMALL
