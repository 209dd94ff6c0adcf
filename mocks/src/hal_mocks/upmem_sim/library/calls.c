/* What a program calls: these functions run on the tasklet's stack, check what they are given, and let the schedule do
 * the rest. The instructions that a call takes besides the program's own are estimates. */
#include "worker.h"

#include <stdlib.h>
#include <string.h>

#define CALL(name) call_##name
#define BARRIER_INSTRUCTIONS 20
#define MUTEX_INSTRUCTIONS 1
#define SEMAPHORE_INSTRUCTIONS 16
#define HANDSHAKE_INSTRUCTIONS 14
#define VIRTUAL_MUTEX_INSTRUCTIONS 12
#define DMA_INSTRUCTIONS 1
#define COUNTER_INSTRUCTIONS 2

/* Functions of the program's side, called through its table: no header of the host's declares them. */
void CALL(barrier_wait)(uint32_t barrier);
void CALL(__hal_acquire)(uint32_t bit);
int CALL(__hal_try_acquire)(uint32_t bit);
void CALL(__hal_release)(uint32_t bit);
void CALL(sem_take)(uint32_t sem);
void CALL(sem_give)(uint32_t sem);
void CALL(handshake_notify)(void);
int CALL(handshake_wait_for)(uint32_t notifier);
void CALL(mram_read)(uint32_t from, uint32_t to, uint32_t bytes);
void CALL(mram_write)(uint32_t from, uint32_t to, uint32_t bytes);
uint32_t CALL(mem_alloc)(uint32_t size);
uint32_t CALL(mem_reset)(void);
int CALL(printf)(const char *format, ...);
int CALL(puts)(uint32_t text);
int CALL(putchar)(int character);
uint64_t CALL(perfcounter_get)(void);
uint64_t CALL(perfcounter_config)(int what, bool reset);
struct pair {
    uint64_t cycles, instructions;
};
struct pair CALL(perfcounter_get_both)(bool reset);
_Noreturn void CALL(halt)(void);
_Noreturn void CALL(abort)(void);
void CALL(exit)(int status);
_Noreturn void CALL(__hal_fault)(uint32_t what);
int CALL(check_stack)(void);
void CALL(vmutex_lock)(uint32_t vmutex, uint32_t id);
void CALL(vmutex_unlock)(uint32_t vmutex, uint32_t id);
void CALL(__hal_yield)(void);
void CALL(__hal_finish)(void);

void
fill_table(uint64_t *table)
{
#define HAL_CALL(slot, name) table[slot] = (uint64_t)(uintptr_t)CALL(name);
#include "calls.h"
#undef HAL_CALL
}

static void
check_object(uint32_t address, uint32_t bytes, const char *what)
{
    if (!in_wram(self, address, bytes, true)) {
        fault_here("%s at 0x%08x, which is not in WRAM", what, address - (uint32_t)(uintptr_t)self->base);
    }
}

void
CALL(barrier_wait)(uint32_t barrier)
{
    check_object(barrier, 4, "barrier_wait: a barrier");
    (void)wait_for(BARRIER, barrier, 0, 0, BARRIER_INSTRUCTIONS);
}

void
CALL(__hal_acquire)(uint32_t bit)
{
    (void)wait_for(ACQUIRE, bit, 0, 0, MUTEX_INSTRUCTIONS);
}

int
CALL(__hal_try_acquire)(uint32_t bit)
{
    struct worker *worker = self;
    (void)wait_for(NOTHING, 0, 0, 0, MUTEX_INSTRUCTIONS);
    uint8_t *owner = &worker->owners[bit & 0xff];
    if (*owner != 0) {
        return 0;
    }
    *owner = (uint8_t)(worker->current - worker->tasklets + 1);
    return 1;
}

void
CALL(__hal_release)(uint32_t bit)
{
    (void)wait_for(RELEASE, bit, 0, 0, MUTEX_INSTRUCTIONS);
}

void
CALL(sem_take)(uint32_t sem)
{
    check_object(sem, 4, "sem_take: a semaphore");
    (void)wait_for(TAKE, sem, 0, 0, SEMAPHORE_INSTRUCTIONS);
}

void
CALL(sem_give)(uint32_t sem)
{
    check_object(sem, 4, "sem_give: a semaphore");
    (void)wait_for(GIVE, sem, 0, 0, SEMAPHORE_INSTRUCTIONS);
}

void
CALL(handshake_notify)(void)
{
    (void)wait_for(NOTIFY, 0, 0, 0, HANDSHAKE_INSTRUCTIONS);
}

int
CALL(handshake_wait_for)(uint32_t notifier)
{
    if (notifier >= self->running->nr_tasklets) {
        fault_here("handshake_wait_for(%u): the program has %u tasklets", notifier, self->running->nr_tasklets);
    }
    return (int)wait_for(WAIT_FOR, notifier, 0, 0, HANDSHAKE_INSTRUCTIONS);
}

void
CALL(vmutex_lock)(uint32_t vmutex, uint32_t id)
{
    check_object(vmutex, 12, "vmutex_lock: a virtual mutex");
    uint32_t byte = *(uint32_t *)(uintptr_t)vmutex + ((id & 0xffff) >> 3);
    check_object(byte, 1, "vmutex_lock: its bit");
    (void)wait_for(VLOCK, byte, id & 7, 0, VIRTUAL_MUTEX_INSTRUCTIONS);
}

void
CALL(vmutex_unlock)(uint32_t vmutex, uint32_t id)
{
    check_object(vmutex, 12, "vmutex_unlock: a virtual mutex");
    uint32_t byte = *(uint32_t *)(uintptr_t)vmutex + ((id & 0xffff) >> 3);
    check_object(byte, 1, "vmutex_unlock: its bit");
    (void)wait_for(VUNLOCK, byte, id & 7, 0, VIRTUAL_MUTEX_INSTRUCTIONS);
}

/* Where in MRAM an address is: of a variable, from the unit's 0x08000000, or from 0. The hardware looks at the lower bits
 * only; an address that is plainly WRAM's is a mistake. */
static uint32_t
mram_offset(uint32_t address, uint32_t bytes, const char *call)
{
    uint32_t at = address - (uint32_t)(uintptr_t)self->base;
    if (at >= MRAM_ADDRESS && at < MRAM_ADDRESS + MRAM_SPAN) {
        at -= MRAM_ADDRESS;
    } else if (address >= MRAM_ADDRESS && address < MRAM_ADDRESS + MRAM_SPAN) {
        at = address - MRAM_ADDRESS;
    } else if (address < MRAM_SPAN) {
        at = address;
    } else if (in_wram(self, address, bytes, true)) {
        fault_here("%s: the MRAM address is one of WRAM", call);
    } else {
        fault_here("%s: 0x%08x is not an address of MRAM", call, at);
    }
    uint32_t size = self->dpu->rank->mram_bytes;
    if (bytes > size || at > size - bytes) {
        fault_here("%s: %u bytes at 0x%08x go beyond MRAM's end at 0x%08x", call, bytes, MRAM_ADDRESS + at,
            MRAM_ADDRESS + size);
    }
    return at;
}

/* The hardware drops the lower three bits of both addresses without a word; whoever relies on it says so. */
static bool
as_hardware(void)
{
    const char *text = getenv("HAL_UPMEM_ALIGNMENT");
    return text != NULL && strcmp(text, "hardware") == 0;
}

static void
transfer(enum want want, uint32_t mram, uint32_t wram, uint32_t bytes, const char *call)
{
    if (bytes == 0 || bytes > DMA_MOST_BYTES || bytes % 8 != 0) {
        fault_here("%s of %u bytes: a DMA transfer has 8 to %u bytes, a multiple of 8", call, bytes, DMA_MOST_BYTES);
    }
    if (((mram | wram) & 7) != 0 && as_hardware()) {
        mram &= ~7u;
        wram &= ~7u;
    }
    uint32_t offset = mram_offset(mram, bytes, call);
    if (offset % 8 != 0) {
        fault_here("%s: the MRAM address 0x%08x is not a multiple of 8", call, MRAM_ADDRESS + offset);
    }
    uint32_t at = wram - (uint32_t)(uintptr_t)self->base;
    if (wram % 8 != 0) {
        fault_here("%s: the WRAM address 0x%08x is not a multiple of 8 (__dma_aligned makes it one)", call, at);
    }
    if (!in_wram(self, wram, bytes, true)) {
        fault_here("%s: %u bytes at 0x%08x are not in WRAM", call, bytes, at);
    }
    (void)wait_for(want, offset, wram, bytes, DMA_INSTRUCTIONS);
}

void
CALL(mram_read)(uint32_t from, uint32_t to, uint32_t bytes)
{
    transfer(READ, from, to, bytes, "mram_read");
}

void
CALL(mram_write)(uint32_t from, uint32_t to, uint32_t bytes)
{
    transfer(WRITE, to, from, bytes, "mram_write");
}

uint32_t
CALL(mem_alloc)(uint32_t size)
{
    struct worker *worker = self;
    uint32_t end = worker->dpu->rank->wram_bytes, first = (worker->heap + 7) & ~7u;
    if (size > end || first > end - size) {
        const struct dpu_program_t *program = worker->running;
        fault_here("WRAM overflow: mem_alloc(%u), but %u of %u bytes are in use: %u by data and the stacks of %u "
                   "tasklets, %u by the heap",
            size, first, end, program->heap, program->nr_tasklets, first - program->heap);
    }
    if (size != 0) {
        worker->heap = first + size;
        if (worker->heap > worker->dpu->wram_used) {
            worker->dpu->wram_used = worker->heap;
        }
    }
    return first + (uint32_t)(uintptr_t)worker->base;
}

uint32_t
CALL(mem_reset)(void)
{
    self->heap = self->running->heap;
    return self->heap + (uint32_t)(uintptr_t)self->base;
}

static uint64_t
counted(struct worker *worker)
{
    double value = worker->counter_what == COUNT_INSTRUCTIONS ? (double)worker->dpu->instructions : worker->now;
    return worker->counter_what == COUNT_NOTHING ? 0 : (uint64_t)(value - worker->counter_base);
}

uint64_t
CALL(perfcounter_get)(void)
{
    (void)wait_for(NOTHING, 0, 0, 0, COUNTER_INSTRUCTIONS);
    return counted(self);
}

uint64_t
CALL(perfcounter_config)(int what, bool reset)
{
    struct worker *worker = self;
    (void)wait_for(NOTHING, 0, 0, 0, COUNTER_INSTRUCTIONS);
    uint64_t before = counted(worker);
    if (what != COUNT_SAME) {
        worker->counter_what = what == COUNT_ENABLE_BOTH ? COUNT_CYCLES : what;
    }
    if (reset) {
        worker->counter_base
            = worker->counter_what == COUNT_INSTRUCTIONS ? (double)worker->dpu->instructions : worker->now;
    }
    return before;
}

struct pair
CALL(perfcounter_get_both)(bool reset)
{
    struct worker *worker = self;
    (void)wait_for(NOTHING, 0, 0, 0, COUNTER_INSTRUCTIONS);
    struct pair both = { (uint64_t)(worker->now - worker->counter_base), worker->dpu->instructions };
    if (reset) {
        worker->counter_base = worker->now;
    }
    return both;
}

_Noreturn void
CALL(halt)(void)
{
    fault_here("halt");
}

_Noreturn void
CALL(abort)(void)
{
    fault_here("abort");
}

void
CALL(exit)(int status)
{
    (void)status;
    CALL(__hal_finish)();
}

_Noreturn void
CALL(__hal_fault)(uint32_t what)
{
    fault_here("%.400s", (const char *)(uintptr_t)what);
}

int
CALL(check_stack)(void)
{
    const struct tasklet *tasklet = self->current;
    uint64_t used = tasklet->stack_top - (uint64_t)(uintptr_t)__builtin_frame_address(0);
    return (int)tasklet->stack_size - (int)used;
}

void
CALL(__hal_yield)(void)
{
    struct worker *worker = self;
    uint32_t stride = worker->stride == 0 ? 1u << 30 : worker->stride;
    *table_word(worker, worker->running->budget) = next_random(worker, stride) + 1;
    (void)wait_for(NOTHING, 0, 0, 0, 0);
}

void
CALL(__hal_finish)(void)
{
    (void)wait_for(FINISH, 0, 0, 0, 1);
}
