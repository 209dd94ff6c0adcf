/* One run of one DPU: its WRAM into the arena, its tasklets from boot to end, and everything back. */
#include "worker.h"

#include <stdarg.h>
#include <string.h>

void
fault(struct worker *worker, int tasklet, const char *format, ...)
{
    struct dpu_t *dpu = worker->dpu;
    if (worker->failed) {
        return;
    }
    va_list arguments;
    int used = tasklet < 0 ? 0 : snprintf(dpu->fault, sizeof dpu->fault, "tasklet %d: ", tasklet);
    va_start(arguments, format);
    vsnprintf(dpu->fault + used, sizeof dpu->fault - (size_t)used, format, arguments);
    va_end(arguments);
    dpu->fault_tasklet = tasklet;
    worker->failed = true;
}

_Noreturn void
fault_here(const char *format, ...)
{
    struct worker *worker = self;
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fault(worker, (int)(worker->current - worker->tasklets), "%s", text);
    siglongjmp(worker->landing, 1);
}

bool
in_wram(const struct worker *worker, uint32_t address, uint32_t bytes, bool stacks)
{
    uint32_t at = address - (uint32_t)(uintptr_t)worker->base;
    uint32_t end = worker->dpu->rank->wram_bytes;
    if (at <= end && bytes <= end - at) {
        return true;
    }
    uint32_t span = STACK_SPAN * worker->running->nr_tasklets;
    at -= STACKS_ADDRESS;
    return stacks && at <= span && bytes <= span - at;
}

uint32_t
next_random(struct worker *worker, uint32_t below)
{
    worker->random = worker->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((worker->random >> 33) % below);
}

static void
seed(struct worker *worker, const struct dpu_t *dpu)
{
    static const uint32_t strides[] = { 3, 12, 60, 400 };
    uint64_t given = schedule_seed(dpu->rank);
    worker->random = given * 0x9e3779b97f4a7c15ull + dpu->index * 7919u + dpu->launches;
    worker->stride = 0;
    if (given != 0) {
        (void)next_random(worker, 2);
        worker->stride = strides[next_random(worker, 4)];
    }
}

static void
boot(struct worker *worker, struct dpu_t *dpu)
{
    const struct dpu_program_t *program = dpu->program;
    arena_load(worker, program);
    worker->dpu = dpu;
    worker->running = program;
    worker->mram = dpu->mram;
    worker->live = program->nr_tasklets;
    worker->now = worker->work = worker->dma_free = worker->counter_base = 0;
    worker->counter_what = COUNT_NOTHING;
    worker->heap = program->heap;
    worker->orders = 0;
    worker->failed = false;
    memset(worker->owners, 0, sizeof worker->owners);
    memset(worker->meetings, 0, sizeof worker->meetings);
    seed(worker, dpu);
    *table_word(worker, program->clock) = (uint32_t)dpu->rank->clock_hz;
    *table_word(worker, program->budget) = worker->stride == 0 ? INT32_MAX : next_random(worker, worker->stride);
    dpu->log_used = 0;
    dpu->log_full = false;
    dpu->fault[0] = '\0';
    dpu->fault_tasklet = -1;
    dpu->instructions = dpu->dma_operations = dpu->dma_bytes = 0;
    uint64_t entry = (uint64_t)(uintptr_t)worker->base + program->start;
    for (uint32_t each = 0; each < program->nr_tasklets; each++) {
        struct tasklet *tasklet = &worker->tasklets[each];
        uint64_t *top = (uint64_t *)(uintptr_t)(tasklet->stack_top - 64);
        memset(top, 0, 64);
        *--top = 0; /* where the entry would return to; and the stack is as a call leaves it */
        *--top = entry;
        for (int registers = 0; registers < 6; registers++) {
            *--top = 0;
        }
        tasklet->sp = top;
        tasklet->state = ISSUING;
        tasklet->want = NOTHING;
        tasklet->seen = 0;
        tasklet->due = 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &worker->started);
}

static void
wram_in(struct worker *worker, struct dpu_t *dpu)
{
    pthread_mutex_lock(&dpu->wram_lock);
    memcpy(worker->base, dpu->wram, dpu->wram_used);
    dpu->live = worker;
    pthread_mutex_unlock(&dpu->wram_lock);
}

static void
wram_out(struct worker *worker, struct dpu_t *dpu)
{
    pthread_mutex_lock(&dpu->wram_lock);
    if (worker->heap > dpu->wram_used) {
        dpu->wram_used = worker->heap;
    }
    memcpy(dpu->wram, worker->base, dpu->wram_used);
    memset(worker->base, 0, dpu->wram_used);
    dpu->live = NULL;
    pthread_mutex_unlock(&dpu->wram_lock);
}

void
run_dpu(struct worker *worker, struct dpu_t *dpu)
{
    boot(worker, dpu);
    dpu->launches++;
    if (dpu->rank->fault_dpu == dpu->index) {
        fault(worker, dpu->rank->fault_tasklet < 0 ? 0 : dpu->rank->fault_tasklet, "the DPU faults (injected)");
    } else if (dpu->rank->stopping) {
        fault(worker, -1, "the DPUs were freed");
    } else {
        wram_in(worker, dpu);
        if (sigsetjmp(worker->landing, 1) == 0) {
            schedule(worker);
        }
        worker->in_tasklet = false;
        arena_mram_out(worker);
        wram_out(worker, dpu);
    }
    dpu->cycles = (uint64_t)(worker->now + 0.5);
    dpu->state = worker->failed ? FAULTED : DONE;
}
