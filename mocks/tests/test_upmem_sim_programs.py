"""Programs for UPMEM's units, in C, give what their arithmetic says; numpy and Python are the oracles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mocks.tests.dpus import HEAP, allocated, compiled

ADD = """
#include <stdint.h>
#include <alloc.h>
#include <barrier.h>
#include <defs.h>
#include <mram.h>
#define BLOCK 512
__host struct { uint32_t bytes; } SIZE;
BARRIER_INIT(together, NR_TASKLETS);
int main(void)
{
    if (me() == 0) {
        mem_reset();
    }
    barrier_wait(&together);
    uint32_t a = (uint32_t)DPU_MRAM_HEAP_POINTER, b = a + SIZE.bytes;
    int32_t *left = mem_alloc(BLOCK), *right = mem_alloc(BLOCK);
    for (uint32_t at = me() * BLOCK; at < SIZE.bytes; at += NR_TASKLETS * BLOCK) {
        uint32_t bytes = SIZE.bytes - at < BLOCK ? SIZE.bytes - at : BLOCK;
        mram_read((__mram_ptr void const *)(a + at), left, bytes);
        mram_read((__mram_ptr void const *)(b + at), right, bytes);
        for (uint32_t each = 0; each < bytes / 4; each++) {
            right[each] += left[each];
        }
        mram_write(right, (__mram_ptr void *)(b + at), bytes);
    }
    return 0;
}
"""

HISTOGRAM = """
#include <stdint.h>
#include <defs.h>
#include <mram.h>
#include <mutex_pool.h>
__mram_noinit uint8_t data[4096];
__host uint32_t bins[16];
MUTEX_POOL_INIT(locks, 4);
int main(void)
{
    __dma_aligned uint8_t mine[64];
    for (uint32_t at = me() * 64; at < sizeof data; at += NR_TASKLETS * 64) {
        mram_read(&data[at], mine, 64);
        for (int each = 0; each < 64; each++) {
            mutex_pool_lock(&locks, mine[each] & 15);
            bins[mine[each] & 15]++;
            mutex_pool_unlock(&locks, mine[each] & 15);
        }
    }
    return 0;
}
"""

REDUCTION = """
#include <stdint.h>
#include <barrier.h>
#include <defs.h>
#include <handshake.h>
#include <mram.h>
#include <sem.h>
__mram_noinit uint32_t numbers[2048];
__host uint64_t total, turns;
uint64_t parts[NR_TASKLETS];
BARRIER_INIT(all, NR_TASKLETS);
SEMAPHORE_INIT(turn, 1);
int main(void)
{
    __dma_aligned uint32_t mine[2048 / NR_TASKLETS];
    mram_read(&numbers[me() * (2048 / NR_TASKLETS)], mine, sizeof mine);
    for (uint32_t each = 0; each < 2048 / NR_TASKLETS; each++) {
        parts[me()] += mine[each];
    }
    sem_take(&turn);
    turns++;
    sem_give(&turn);
    barrier_wait(&all);
    for (uint32_t step = 1; step < NR_TASKLETS; step *= 2) { /* a tree: each waits for its right neighbour */
        if (me() % (2 * step) == 0) {
            handshake_wait_for(me() + step);
            parts[me()] += parts[me() + step];
        } else if (me() % (2 * step) == step) {
            handshake_notify();
        }
    }
    if (me() == 0) {
        total = parts[0];
    }
    return 0;
}
"""

SEQUENTIAL = """
#include <stdint.h>
#include <defs.h>
#include <seqread.h>
__host uint32_t count, sum;
int main(void)
{
    seqreader_t reader;
    uint32_t *item = seqread_init(seqread_alloc(), DPU_MRAM_HEAP_POINTER, &reader);
    for (uint32_t each = 0; each < count; each++) {
        sum += *item;
        item = seqread_get(item, sizeof *item, &reader);
    }
    return (int)(uintptr_t)seqread_tell(item, &reader);
}
"""

ALLOCATORS = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <alloc.h>
#include <defs.h>
#include <mram_unaligned.h>
#include <vmutex.h>
__host uint32_t again, none, moved, text_length;
__host uint64_t votes;
__mram_noinit uint8_t bytes[64];
__mram uint64_t table[2] = { 5, 7 };
VMUTEX_INIT(virtual, 64, 2);
static void add_one(int *value, void *unused) { (void)unused; ++*value; }
int main(void)
{
    vmutex_lock(&virtual, 33);
    votes++;
    vmutex_unlock(&virtual, 33);
    mram_update_int_atomic(&((int *)table)[1], add_one, NULL);
    if (me() != 0) {
        return 0;
    }
    fsb_allocator_t blocks = fsb_alloc(24, 2);
    void *first = fsb_get(blocks), *second = fsb_get(blocks);
    none = fsb_get(blocks) == NULL && second != first;
    fsb_free(blocks, first);
    again = fsb_get(blocks) == first;
    buddy_init(4096);
    char *text = buddy_alloc(40);
    strcpy(text, "moved");
    text = buddy_realloc(text, 200);
    moved = strcmp(text, "moved") == 0;
    text_length = strlen(strcat(text, " on"));
    __dma_aligned uint8_t window[32];
    mram_write_unaligned("0123456789abcdef", &bytes[3], 13);
    char *read = mram_read_unaligned(&bytes[5], window, 9);
    printf("%.9s %lu %zu\\n", read, (unsigned long)table[1] + (1ul << 40), sizeof(long) * 10 + sizeof(void *));
    table[0] += 1; /* MRAM dereferenced */
    return 0;
}
"""


@pytest.mark.parametrize("tasklets", [1, 11, 24])
def test_vectors_are_added_whatever_the_number_of_tasklets(tasklets: int) -> None:
    program = compiled(ADD, f"-DNR_TASKLETS={tasklets}")
    generator = np.random.default_rng(tasklets)
    a, b = (generator.integers(-(2**31), 2**31, (3, 5002), dtype=np.int32) for _ in range(2))
    with allocated(3) as dpus:
        dpus.load(program)
        dpus.broadcast("SIZE", (5002 * 4).to_bytes(4, "little"))
        dpus.push(HEAP, [row.tobytes() for row in a])
        dpus.push(HEAP, [row.tobytes() for row in b], offset=5002 * 4)
        dpus.launch()
        for row, found in zip(a + b, dpus.pull(HEAP, 5002 * 4, offset=5002 * 4), strict=True):
            np.testing.assert_array_equal(np.frombuffer(found, np.int32), row)


def test_mutexes_keep_a_shared_histogram_right() -> None:
    data = np.random.default_rng(1).integers(0, 16, 4096, dtype=np.uint8)
    with allocated(2) as dpus:
        dpus.load(compiled(HISTOGRAM, "-DNR_TASKLETS=16"))
        dpus.push("data", [data.tobytes()] * 2)
        dpus.launch()
        expected = [Counter(data.tolist())[value] for value in range(16)]
        assert np.frombuffer(dpus.read(1, "bins", 64), np.uint32).tolist() == expected


def test_handshakes_barriers_and_semaphores_carry_a_reduction() -> None:
    numbers = np.random.default_rng(2).integers(0, 2**32, 2048, dtype=np.uint32)
    with allocated() as dpus:
        dpus.load(compiled(REDUCTION, "-DNR_TASKLETS=16"))
        dpus.push("numbers", [numbers.tobytes()])
        dpus.launch()
        assert dpus.number(0, "total", 8) == int(numbers.sum(dtype=np.uint64))
        assert dpus.number(0, "turns", 8) == 16


@pytest.mark.parametrize("page", [32, 256, 1024])
def test_the_sequential_reader_crosses_its_pages(page: int) -> None:
    numbers = np.arange(3001, dtype=np.uint32)
    with allocated() as dpus:
        dpus.load(compiled(SEQUENTIAL, f"-DSEQREAD_CACHE_SIZE={page}"))
        dpus.broadcast("count", (3001).to_bytes(4, "little"))
        dpus.push(HEAP, [numbers.tobytes() + bytes(4)])
        dpus.launch()
        assert dpus.number(0, "sum") == int(numbers.sum())


def test_allocators_strings_unaligned_mram_and_virtual_mutexes_do_their_work() -> None:
    with allocated() as dpus:
        dpus.load(compiled(ALLOCATORS, "-DNR_TASKLETS=8"))
        dpus.launch()
        assert [dpus.number(0, name) for name in ("again", "none", "moved", "text_length")] == [1, 1, 1, 8]
        assert dpus.number(0, "votes", 8) == 8
        assert dpus.read(0, "bytes", 16)[3:16] == b"0123456789abc"
        assert dpus.log() == f"=== DPU#0x0 ===\n23456789a {7 + (1 << 40)} 84\n"
        # Eight tasklets added one to the second half of table[0], and the first one to its first half.
        assert dpus.number(0, "table", 8) == 6 + (8 << 32)


def test_memories_stay_between_launches_and_are_new_after_a_load() -> None:
    program = compiled("#include <mram.h>\n__host uint32_t runs = 3;\nint main(void) { runs++; return 0; }")
    with allocated() as dpus:
        dpus.load(program)
        dpus.launch()
        dpus.launch()
        assert dpus.number(0, "runs") == 5
        dpus.push(HEAP, [b"stays..."])
        dpus.load(program)
        assert dpus.number(0, "runs") == 3
        assert dpus.read(0, HEAP, 8) == b"stays..."
