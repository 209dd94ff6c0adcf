/* A worker's arena: 192 MiB of addresses below 2 GiB in which a program with 32-bit pointers lives.
 *
 * Apart from the arenas and the executable itself there is nothing that such a pointer can reach, so a program that
 * runs wild meets no memory of the host's. */
#include "worker.h"

#include <string.h>
#include <sys/mman.h>

#define HIGHEST 0x74000000ull
#define LOWEST 0x10000000ull

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static bool
open_part(uint8_t *base, uint64_t offset, uint64_t size, int protection)
{
    return mprotect(base + offset, size, protection) == 0;
}

bool
arena_open(struct worker *worker)
{
    for (uint64_t at = HIGHEST; at >= LOWEST; at -= ARENA_BYTES / 2) {
        void *base = mmap((void *)(uintptr_t)at, ARENA_BYTES, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (base == (void *)(uintptr_t)at) {
            worker->base = base;
            break;
        }
        if (base != MAP_FAILED) {
            munmap(base, ARENA_BYTES);
        }
    }
    if (worker->base == NULL || !open_part(worker->base, 0, 65536, PROT_READ | PROT_WRITE)
        || !open_part(worker->base, TABLE_ADDRESS, 4096, PROT_READ | PROT_WRITE)) {
        return false;
    }
    return true;
}

static void
relocate_text(uint8_t *base, const struct dpu_program_t *program)
{
    const struct part *text = &program->text;
    for (uint32_t each = 0; each < program->nr_relocations; each++) {
        const struct relocation *place = &program->relocations[each];
        if (place->address >= text->address && place->address + place->bytes <= text->address + text->size) {
            uint64_t value = (uint64_t)(uintptr_t)base + place->value;
            memcpy(base + place->address, &value, place->bytes);
        }
    }
}

/* Stacks end where the unit's would, at the top of a span with a guard below. */
static void
open_stacks(struct worker *worker, const struct dpu_program_t *program)
{
    uint64_t first = STACKS_ADDRESS;
    mprotect(worker->base + first, (uint64_t)STACK_SPAN * MOST_TASKLETS, PROT_NONE);
    for (uint32_t each = 0; each < program->nr_tasklets; each++) {
        uint64_t room = (program->stacks[each] + STACK_SLACK + 4095ull) & ~4095ull;
        uint64_t top = first + (uint64_t)STACK_SPAN * (each + 1);
        open_part(worker->base, top - room, room, PROT_READ | PROT_WRITE);
        worker->tasklets[each].stack_top = (uint64_t)(uintptr_t)worker->base + top;
        worker->tasklets[each].stack_size = program->stacks[each];
    }
}

void
arena_load(struct worker *worker, const struct dpu_program_t *program)
{
    if (worker->program == program->serial) {
        return;
    }
    uint64_t room = (program->text.size + 4095ull) & ~4095ull;
    open_part(worker->base, TEXT_ADDRESS, room, PROT_READ | PROT_WRITE);
    memcpy(worker->base + TEXT_ADDRESS, program->text.bytes, program->text.size);
    relocate_text(worker->base, program);
    open_part(worker->base, TEXT_ADDRESS, room, PROT_READ | PROT_EXEC);
    fill_table((uint64_t *)(void *)(worker->base + program->runtime));
    open_stacks(worker, program);
    worker->program = program->serial;
}

/* A tasklet dereferences MRAM, which no unit can do in one instruction: its bytes move into the window. They need not
 * be copied, and home keeps its place. */
void
arena_mram_in(struct worker *worker)
{
    uint8_t *window = worker->base + MRAM_ADDRESS;
    void *moved = mremap(worker->dpu->mram, MRAM_SPAN, MRAM_SPAN, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, window);
    if (moved == window) {
        worker->mram = window;
    }
}

void
arena_mram_out(struct worker *worker)
{
    uint8_t *window = worker->base + MRAM_ADDRESS;
    if (worker->mram == window) {
        (void)mremap(window, MRAM_SPAN, MRAM_SPAN, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, worker->dpu->mram);
        mprotect(window, MRAM_SPAN, PROT_NONE);
    }
    worker->mram = worker->dpu->mram;
}
