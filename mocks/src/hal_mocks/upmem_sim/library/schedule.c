/* Tasklets in simulated time.
 *
 * A unit issues one instruction a cycle, of another tasklet each time, and a tasklet's next one no sooner than 11 cycles
 * after its last: with k tasklets that have something to issue, each has one every max(11, k) cycles. The work clock
 * counts the instructions that such a tasklet has issued since boot. A tasklet really runs from one call of the library
 * to the next all at once; then its instructions are issued in simulated time, and only when they have been, what it
 * called for happens. So whatever tasklets see of each other through the library is in simulated order. */
#include "worker.h"

#include <math.h>
#include <string.h>

#define PIPELINE 11.0

/* DMA as the PrIM study measured it (arXiv 2105.03814, section 3.2): a latency, and half a cycle a byte. */
#define READ_CYCLES 77.0
#define WRITE_CYCLES 61.0
#define BYTE_CYCLES 0.5

static void
resume(struct worker *worker, struct tasklet *tasklet)
{
    worker->current = tasklet;
    worker->steps++;
    *table_word(worker, worker->running->tasklet) = (uint32_t)(tasklet - worker->tasklets);
    worker->in_tasklet = true;
    hal_switch(&worker->scheduler_sp, tasklet->sp);
    worker->in_tasklet = false;
}

uint64_t
wait_for(enum want want, uint32_t a, uint32_t b, uint32_t c, uint32_t instructions)
{
    struct worker *worker = self;
    struct tasklet *tasklet = worker->current;
    uint64_t count = *(uint64_t *)(void *)(worker->base + worker->running->count);
    uint64_t depth = tasklet->stack_top - (uint64_t)(uintptr_t)__builtin_frame_address(0);
    if (depth > tasklet->stack_size + STACK_GRACE + 256 && depth < STACK_SPAN) {
        fault_here("stack overflow: %llu bytes in use of %u (as the host's compiler lays out frames)",
            (unsigned long long)depth, tasklet->stack_size);
    }
    uint64_t issued = count - tasklet->seen + instructions;
    tasklet->seen = count;
    tasklet->want = want;
    tasklet->a = a;
    tasklet->b = b;
    tasklet->c = c;
    tasklet->due = worker->work + (double)issued;
    if (worker->stride != 0) {
        tasklet->due += next_random(worker, worker->stride * 4);
    }
    tasklet->state = ISSUING;
    worker->dpu->instructions += issued;
    hal_switch(&tasklet->sp, worker->scheduler_sp);
    return tasklet->result;
}

/* The tasklet goes on as soon as the unit can: it has nothing left to issue. */
static void
ready(struct worker *worker, struct tasklet *tasklet)
{
    tasklet->state = ISSUING;
    tasklet->want = NOTHING;
    tasklet->due = worker->work;
}

static void
block(struct worker *worker, struct tasklet *tasklet)
{
    tasklet->state = BLOCKED;
    tasklet->order = worker->orders++;
}

/* The one that has waited longest for the same; NULL if nobody waits. */
static struct tasklet *
first_waiting(struct worker *worker, enum want want, uint32_t a, uint32_t b)
{
    struct tasklet *found = NULL;
    for (uint32_t each = 0; each < worker->running->nr_tasklets; each++) {
        struct tasklet *tasklet = &worker->tasklets[each];
        if (tasklet->state == BLOCKED && tasklet->want == want && tasklet->a == a && tasklet->b == b
            && (found == NULL || tasklet->order < found->order)) {
            found = tasklet;
        }
    }
    return found;
}

static void
start_dma(struct worker *worker, struct tasklet *tasklet)
{
    uint8_t *wram = (uint8_t *)(uintptr_t)tasklet->b, *mram = worker->mram + tasklet->a;
    double start = worker->now > worker->dma_free ? worker->now : worker->dma_free;
    if (tasklet->want == READ) {
        memcpy(wram, mram, tasklet->c);
    } else {
        memcpy(mram, wram, tasklet->c);
    }
    worker->dma_free = start + BYTE_CYCLES * tasklet->c;
    tasklet->wake = worker->dma_free + (tasklet->want == READ ? READ_CYCLES : WRITE_CYCLES);
    tasklet->state = IN_DMA;
    worker->dpu->dma_operations++;
    worker->dpu->dma_bytes += tasklet->c;
}

static void
meet_barrier(struct worker *worker, struct tasklet *tasklet)
{
    uint8_t *barrier = (uint8_t *)(uintptr_t)tasklet->a; /* wait_queue, count, initial_count, lock */
    if (--barrier[1] != 0) {
        block(worker, tasklet);
        return;
    }
    barrier[1] = barrier[2];
    for (struct tasklet *other; (other = first_waiting(worker, BARRIER, tasklet->a, 0)) != NULL;) {
        ready(worker, other);
    }
    ready(worker, tasklet);
}

static void
lock_bit(struct worker *worker, struct tasklet *tasklet)
{
    uint8_t *owner = &worker->owners[tasklet->a & 0xff];
    if (*owner != 0) {
        tasklet->b = 0;
        block(worker, tasklet);
        return;
    }
    *owner = (uint8_t)(tasklet - worker->tasklets + 1);
    ready(worker, tasklet);
}

static void
unlock_bit(struct worker *worker, struct tasklet *tasklet)
{
    worker->owners[tasklet->a & 0xff] = 0;
    /* Of those that try, one that comes after the last owner is next; two names may stand for one bit. */
    uint32_t count = worker->running->nr_tasklets, from = (uint32_t)(tasklet - worker->tasklets);
    from = worker->stride == 0 ? from : next_random(worker, count);
    for (uint32_t step = 1; step <= count; step++) {
        struct tasklet *other = &worker->tasklets[(from + step) % count];
        if (other->state == BLOCKED && other->want == ACQUIRE && (other->a & 0xff) == (tasklet->a & 0xff)) {
            lock_bit(worker, other);
            break;
        }
    }
    ready(worker, tasklet);
}

static void
take(struct worker *worker, struct tasklet *tasklet)
{
    int8_t *count = (int8_t *)(uintptr_t)tasklet->a + 1;
    if (--*count < 0) {
        block(worker, tasklet);
    } else {
        ready(worker, tasklet);
    }
}

static void
give(struct worker *worker, struct tasklet *tasklet)
{
    int8_t *count = (int8_t *)(uintptr_t)tasklet->a + 1;
    struct tasklet *first = first_waiting(worker, TAKE, tasklet->a, 0);
    ++*count;
    if (first != NULL) {
        ready(worker, first);
    }
    ready(worker, tasklet);
}

/* Whoever comes first waits: a meeting has the number of the notifier itself, or of the one that waits for it. */
static void
meet(struct worker *worker, struct tasklet *tasklet)
{
    uint32_t number = (uint32_t)(tasklet - worker->tasklets);
    uint32_t notifier = tasklet->want == NOTIFY ? number : tasklet->a;
    uint8_t *came = &worker->meetings[notifier];
    tasklet->result = 0;
    if (*came == 0) {
        *came = (uint8_t)(number + 1);
        block(worker, tasklet);
    } else if (tasklet->want == WAIT_FOR && *came != notifier + 1) {
        tasklet->result = 7; /* EALREADY */
        ready(worker, tasklet);
    } else {
        ready(worker, &worker->tasklets[*came - 1]);
        *came = 0;
        ready(worker, tasklet);
    }
}

static void
lock_virtual(struct worker *worker, struct tasklet *tasklet)
{
    uint8_t *byte = (uint8_t *)(uintptr_t)tasklet->a, bit = (uint8_t)(1u << tasklet->b);
    if (tasklet->want == VUNLOCK) {
        struct tasklet *first = first_waiting(worker, VLOCK, tasklet->a, tasklet->b);
        *byte = first == NULL ? (uint8_t)(*byte & ~bit) : *byte;
        if (first != NULL) {
            ready(worker, first);
        }
        ready(worker, tasklet);
    } else if (*byte & bit) {
        block(worker, tasklet);
    } else {
        *byte |= bit;
        ready(worker, tasklet);
    }
}

/* The tasklet's instructions have been issued: what it called for happens. */
static void
perform(struct worker *worker, struct tasklet *tasklet)
{
    static void (*const actions[])(struct worker *, struct tasklet *) = {
        [NOTHING] = resume,
        [READ] = start_dma,
        [WRITE] = start_dma,
        [BARRIER] = meet_barrier,
        [ACQUIRE] = lock_bit,
        [RELEASE] = unlock_bit,
        [TAKE] = take,
        [GIVE] = give,
        [NOTIFY] = meet,
        [WAIT_FOR] = meet,
        [VLOCK] = lock_virtual,
        [VUNLOCK] = lock_virtual,
    };
    if (tasklet->want == FINISH) {
        tasklet->state = ENDED;
        worker->live--;
    } else {
        actions[tasklet->want](worker, tasklet);
    }
}

/* What happens next: the tasklet whose instructions are issued first, or whose DMA ends first. */
static struct tasklet *
next_event(struct worker *worker)
{
    struct tasklet *first = NULL, *woken = NULL;
    uint32_t busy = 0;
    for (uint32_t each = 0; each < worker->running->nr_tasklets; each++) {
        struct tasklet *tasklet = &worker->tasklets[each];
        if (tasklet->state == ISSUING) {
            busy++;
            first = first == NULL || tasklet->due < first->due ? tasklet : first;
        } else if (tasklet->state == IN_DMA) {
            woken = woken == NULL || tasklet->wake < woken->wake ? tasklet : woken;
        } else if (tasklet->state == BLOCKED && tasklet->want == ACQUIRE) {
            busy++; /* it tries again and again, and each try is an instruction */
        }
    }
    double pace = busy > PIPELINE ? busy : PIPELINE;
    double issued = first == NULL ? INFINITY : worker->now + (first->due - worker->work) * pace;
    double ended = woken == NULL ? INFINITY : woken->wake;
    struct tasklet *next = issued <= ended ? first : woken;
    if (next == NULL) {
        return NULL;
    }
    double when = issued <= ended ? issued : ended;
    if (when > worker->now) {
        worker->work = next == first ? first->due : worker->work + (when - worker->now) / pace;
        worker->now = when;
    }
    return next;
}

bool
schedule(struct worker *worker)
{
    while (worker->live > 0) {
        struct tasklet *next = next_event(worker);
        if (next == NULL) {
            char text[448];
            describe_waiting(worker, text, sizeof text);
            fault(worker, -1, "deadlock: %s", text);
            return false;
        }
        if (worker->dpu->rank->stopping) {
            fault(worker, -1, "the DPUs were freed while they ran");
            return false;
        }
        if (next->state == IN_DMA) {
            ready(worker, next);
            resume(worker, next);
        } else {
            perform(worker, next);
        }
    }
    return true;
}
