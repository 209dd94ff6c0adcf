/* A worker: a thread that runs DPUs one after the other, each in the same stretch of addresses below 2 GiB. */
#ifndef HAL_UPMEM_WORKER_H
#define HAL_UPMEM_WORKER_H

#include "internal.h"

#include <setjmp.h>
#include <signal.h>
#include <time.h>

/* The arena has the unit's layout: WRAM at 0, code, the table of calls, stacks, MRAM at 0x08000000. */
#define ARENA_BYTES 0x0c000000ull
#define TABLE_ADDRESS 0x03000000u
#define STACKS_ADDRESS 0x04000000u
#define STACK_SPAN (256u << 10)
#define STACK_SLACK (40u << 10) /* for the library's own calls, and for signals' frames */
#define STACK_GRACE 512u        /* the host's frames are wider than the unit's */

/* What a program's performance counter counts: numbered as in its perfcounter.h. */
enum { COUNT_SAME, COUNT_CYCLES, COUNT_INSTRUCTIONS, COUNT_NOTHING, COUNT_ENABLE_BOTH = 7 };

enum state { ISSUING, IN_DMA, BLOCKED, ENDED };

enum want {
    NOTHING,
    READ,
    WRITE,
    BARRIER,
    ACQUIRE,
    RELEASE,
    TAKE,
    GIVE,
    NOTIFY,
    WAIT_FOR,
    VLOCK,
    VUNLOCK,
    FINISH,
};

struct tasklet {
    void *sp;
    enum state state;
    enum want want;
    uint32_t a, b, c;    /* what it wants it of */
    uint64_t result;
    uint64_t seen;       /* instructions counted so far */
    double due;          /* the work clock's time when its instructions are issued */
    double wake;         /* the time when its DMA ends */
    uint32_t order;      /* in which it came to wait */
    uint64_t stack_top;
    uint32_t stack_size;
};

struct worker {
    uint32_t number;
    uint8_t *base;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct task *first, *last;
    timer_t timer;
    uint8_t signal_stack[64 << 10] __attribute__((aligned(16)));
    uint64_t program; /* the serial of the one whose code is in the arena */

    struct dpu_t *dpu;
    const struct dpu_program_t *running;
    uint8_t *mram; /* where its bytes are now: at home, or in the arena's window */
    struct tasklet tasklets[MOST_TASKLETS];
    struct tasklet *current;
    volatile bool in_tasklet;
    volatile uint64_t steps, steps_at_tick;
    void *scheduler_sp;
    sigjmp_buf landing;
    uint32_t live;
    double now, work, dma_free;
    uint32_t heap;
    uint32_t orders;
    uint8_t owners[256];  /* of the atomic bits: a tasklet's number + 1 */
    uint8_t meetings[MOST_TASKLETS]; /* handshakes: 0, or the number + 1 of who came first */
    double counter_base;
    int counter_what;
    uint64_t random;
    uint32_t stride; /* how rarely tasklets change under a seed */
    uint64_t budget_at; /* in the table: accesses until the next change */
    struct timespec started;
    bool failed;
};

/* Found without a call, because signals ask for it. */
extern _Thread_local struct worker *self __attribute__((tls_model("initial-exec")));

/* Saves where the caller is and goes on where another has been. */
void hal_switch(void **save, void *to);
void hal_preempt(void);

void run_dpu(struct worker *worker, struct dpu_t *dpu);
bool arena_open(struct worker *worker);
void arena_load(struct worker *worker, const struct dpu_program_t *program);
void arena_mram_in(struct worker *worker);
void arena_mram_out(struct worker *worker);
void signals_install(void);
void signals_for_thread(struct worker *worker);
void fill_table(uint64_t *table);

static inline uint32_t *
table_word(struct worker *worker, uint32_t address)
{
    return (uint32_t *)(worker->base + address);
}

/* Says what stopped the DPU; the first fault is the one that counts. */
void fault(struct worker *worker, int tasklet, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same from a tasklet, which does not go on. */
_Noreturn void fault_here(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Lets the tasklet wait for what it wants; returns the result. */
uint64_t wait_for(enum want want, uint32_t a, uint32_t b, uint32_t c, uint32_t instructions);
bool schedule(struct worker *worker);
void describe_waiting(struct worker *worker, char *text, size_t room);
uint32_t next_random(struct worker *worker, uint32_t below);
/* The arena's offset of an address of the tasklet's, which must be of WRAM (or of a stack, if stacks). */
bool in_wram(const struct worker *worker, uint32_t address, uint32_t bytes, bool stacks);

#endif
