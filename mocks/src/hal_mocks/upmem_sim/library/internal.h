/* What the parts of the library know of each other. */
#ifndef HAL_UPMEM_INTERNAL_H
#define HAL_UPMEM_INTERNAL_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <dpu.h>
#include <dpu_log.h>
#include <dpu_management.h>
#include <dpu_memory.h>
#include <dpu_program.h>
#include <dpu_runner.h>
#include <dpu_sim.h>

#define PUBLIC __attribute__((visibility("default")))

#define MOST_TASKLETS 24
#define MOST_DPUS 64
#define MRAM_ADDRESS 0x08000000u /* of MRAM as the unit sees it, and as symbols say it */
#define MRAM_SPAN (64u << 20)
#define TEXT_ADDRESS 0x02000000u
#define DMA_MOST_BYTES 2048u

/* ---- programs (elf.c, program.c) */

struct part {
    uint32_t address;
    uint32_t size;
    const uint8_t *bytes; /* NULL: all zero */
};

struct symbol {
    const char *name;
    uint32_t address;
    uint32_t size;
    uint8_t type;
};

struct relocation {
    uint32_t address; /* of the place that holds an address */
    uint32_t value;   /* the address before the arena's base is added */
    uint8_t bytes;    /* 4 or 8 */
};

struct dpu_program_t {
    atomic_int references;
    char *path;
    uint8_t *file;
    struct part text, table, wram, mram;
    struct symbol *symbols;
    uint32_t nr_symbols;
    struct relocation *relocations;
    uint32_t nr_relocations;
    uint32_t start, runtime, count, tasklet, clock, budget; /* addresses in the table */
    uint32_t nr_tasklets;
    uint32_t stacks[MOST_TASKLETS];
    uint32_t heap;     /* where the heap begins: behind data and stacks */
    uint32_t mram_end; /* of the program's own variables */
    uint32_t log_bytes;
    uint64_t serial; /* tells programs apart after their memory was used again */
};

dpu_error_t program_read(
    const uint8_t *file, size_t size, const char *path, bool with_points, struct dpu_program_t **program);
const struct symbol *program_symbol(const struct dpu_program_t *program, const char *name);
/* The name of what lies at an address, with its offset if it has one; in a buffer of the caller's. */
const char *program_place(const struct dpu_program_t *program, uint32_t address, char *text, size_t room);

/* ---- DPUs and ranks (ranks.c, config.c, sets.c, memory.c) */

enum run_state { NEVER_RUN, RUNNING, DONE, FAULTED };

struct worker;

struct dpu_t {
    struct dpu_rank_t *rank;
    uint8_t index, slice, member;
    bool enabled;
    struct dpu_program_t *program;
    uint8_t *mram;
    uint8_t *wram;      /* its bytes while it does not run; while it does they are in the worker's arena */
    uint32_t wram_used; /* how much of it was ever used */
    void *transfer;     /* what dpu_prepare_xfer said */
    atomic_int state;
    _Atomic(struct worker *) live;
    pthread_mutex_t wram_lock; /* held while WRAM moves between its two places */
    char *log;
    size_t log_used, log_room;
    bool log_full;
    char fault[640];
    int fault_tasklet;
    uint64_t launches, cycles, instructions, dma_operations, dma_bytes;
};

struct job;

struct dpu_rank_t {
    char name[32];
    uint32_t number, cis, dpus_per_ci, mram_bytes, wram_bytes, tasklets, iram_instructions;
    uint64_t disabled; /* a bit for each DPU that is off for good */
    uint64_t clock_hz;
    int numa_node;
    bool lost, hangs; /* what went wrong with it: from the file of ranks */
    double slow_seconds;
    int fault_dpu, fault_tasklet, corrupt_dpu; /* -1: none */
    int lock;                                  /* the file that says whose it is */
    uint64_t seed;
    bool scatter;
    uint32_t scatter_blocks;
    uint8_t *mram;
    double to_dpu_seconds, from_dpu_seconds;
    struct dpu_t dpus[MOST_DPUS];
    pthread_mutex_t mutex; /* of the queue of asynchronous jobs */
    pthread_cond_t changed;
    pthread_t thread;
    bool started, closing;
    atomic_bool stopping;
    struct job *first, *last;
    uint32_t pending, launches_pending;
    dpu_error_t async_status;
    char async_detail[640];
};

struct request {
    uint32_t nr_dpus, nr_ranks; /* one of them is 0 */
    char rank_path[64];
    uint64_t seed;
    bool scatter;
    uint32_t scatter_blocks;
};

/* Reads a profile into a request. */
dpu_error_t profile_read(const char *profile, struct request *request);
/* Reads which ranks the machine has: returns their number, at most room, or -1 after an error. */
int config_read(struct dpu_rank_t *ranks, int room);
/* Reads again what went wrong with a rank, if the file has changed. */
void config_refresh(struct dpu_rank_t *rank);
int config_lock(const struct dpu_rank_t *rank);
long environment_number(const char *name, long otherwise);

/* The seed of the rank's next launch; 0: the order of simulated time. */
uint64_t schedule_seed(const struct dpu_rank_t *rank);
/* Calls work on each enabled DPU of a set until one fails. index counts them. */
typedef dpu_error_t (*dpu_work)(struct dpu_t *dpu, uint32_t index, void *context);
dpu_error_t set_each(const struct dpu_set_t *set, dpu_work work, void *context);
uint32_t set_count(const struct dpu_set_t *set);
uint32_t rank_count(const struct dpu_rank_t *rank);
/* The ranks of a set: an array of the set's, or the one in *single. */
struct dpu_rank_t **set_ranks(const struct dpu_set_t *set, struct dpu_rank_t **single, uint32_t *count);
/* Gives every DPU of the set the program, and its memories the program's bytes. */
dpu_error_t program_load(struct dpu_set_t *set, struct dpu_program_t *program);
void dpu_forget_program(struct dpu_t *dpu);

struct copy {
    dpu_xfer_t direction;
    struct dpu_symbol_t symbol;
    uint32_t offset;
    size_t length;
    bool running; /* the DPU may run meanwhile */
    bool large;   /* together with the other DPUs' bytes it is more than caches hold */
};

/* Checks what can be checked for the whole set before a byte moves. */
dpu_error_t copy_check(const struct copy *copy, const struct dpu_t *dpu);
dpu_error_t copy_bytes(const struct copy *copy, struct dpu_t *dpu, void *host);
void transfer_account(struct dpu_rank_t *rank, dpu_xfer_t direction, uint32_t dpus, size_t bytes, bool broadcast);

/* ---- asynchronous jobs (queue.c) */

struct job {
    struct job *next;
    dpu_error_t (*work)(struct job *job);
    void (*release)(struct job *job);
    struct dpu_rank_t *rank;
    bool launch;
    void *context;
    struct dpu_set_t set;
};

dpu_error_t queue_push(struct dpu_rank_t *rank, struct job job);
void queue_wait(struct dpu_rank_t *rank);
dpu_error_t queue_status(struct dpu_rank_t *rank);
void queue_close(struct dpu_rank_t *rank);
/* Waits for what was asked of the set before. A launch under way makes MRAM busy instead, if mram. */
dpu_error_t queue_settle(const struct dpu_set_t *set, bool mram);

/* ---- workers (pool.c, run.c) */

uint32_t pool_workers(void);
/* Runs the DPUs, each on its own worker, and returns when the last has ended. */
dpu_error_t pool_run(struct dpu_t **dpus, uint32_t count);
/* Calls work(context, n) for n below count on all workers. */
void pool_each(uint32_t count, void (*work)(void *context, uint32_t n), void *context);
uint32_t dpu_worker(const struct dpu_t *dpu);
/* Where the arenas of the workers begin; 0 if there is no room for one. */
uint64_t pool_base(uint32_t worker);

/* ---- errors (error.c) */

dpu_error_t fail(dpu_error_t code, const char *format, ...) __attribute__((format(printf, 2, 3)));
void error_note(dpu_error_t code, const char *detail);

#endif
