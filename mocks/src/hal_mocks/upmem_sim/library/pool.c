/* The workers: one for each processor. A DPU has its worker for life, so that addresses it keeps stay true. */
#include "worker.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_WORKERS 8

struct batch {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t left;
};

/* Work for one worker: every item whose turn is its. */
struct task {
    struct task *next;
    struct batch *batch;
    struct dpu_t **dpus; /* NULL: call work */
    uint32_t count;
    void (*work)(void *context, uint32_t n);
    void *context;
    atomic_uint *cursor;
};

_Thread_local struct worker *self;
static struct worker workers[MOST_WORKERS];
static uint32_t nr_workers;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
do_task(struct worker *worker, const struct task *task)
{
    if (task->dpus == NULL) {
        for (uint32_t n; (n = atomic_fetch_add(task->cursor, 1)) < task->count;) {
            task->work(task->context, n);
        }
        return;
    }
    for (uint32_t each = 0; each < task->count; each++) {
        if (dpu_worker(task->dpus[each]) == worker->number) {
            run_dpu(worker, task->dpus[each]);
        }
    }
}

static void
tick(struct worker *worker, bool on)
{
    struct itimerspec span = { 0 };
    if (on) {
        span.it_interval.tv_nsec = span.it_value.tv_nsec = 20000000;
    }
    timer_settime(worker->timer, 0, &span, NULL);
}

static void *
serve(void *context)
{
    struct worker *worker = context;
    self = worker;
    signals_for_thread(worker);
    pthread_mutex_lock(&worker->mutex);
    for (;;) {
        while (worker->first == NULL) {
            pthread_cond_wait(&worker->changed, &worker->mutex);
        }
        struct task *task = worker->first;
        worker->first = task->next;
        pthread_mutex_unlock(&worker->mutex);
        if (task->dpus != NULL) {
            tick(worker, true);
        }
        do_task(worker, task);
        if (task->dpus != NULL) {
            tick(worker, false);
        }
        struct batch *batch = task->batch;
        pthread_mutex_lock(&batch->mutex);
        batch->left--;
        pthread_cond_signal(&batch->changed);
        pthread_mutex_unlock(&batch->mutex);
        pthread_mutex_lock(&worker->mutex);
    }
    return NULL;
}

static void
start(void)
{
    long wanted = environment_number("HAL_UPMEM_WORKERS", sysconf(_SC_NPROCESSORS_ONLN));
    wanted = wanted < 1 ? 1 : wanted > MOST_WORKERS ? MOST_WORKERS : wanted;
    for (uint32_t number = 0; number < (uint32_t)wanted; number++) {
        struct worker *worker = &workers[number];
        worker->number = number;
        pthread_mutex_init(&worker->mutex, NULL);
        pthread_cond_init(&worker->changed, NULL);
        if (!arena_open(worker) || pthread_create(&worker->thread, NULL, serve, worker) != 0) {
            break;
        }
        pthread_detach(worker->thread);
        nr_workers++;
    }
}

uint32_t
pool_workers(void)
{
    pthread_once(&once, start);
    return nr_workers;
}

uint32_t
dpu_worker(const struct dpu_t *dpu)
{
    uint32_t count = pool_workers();
    return count == 0 ? 0 : (dpu->rank->number + dpu->index) % count;
}

uint64_t
pool_base(uint32_t worker)
{
    return worker < pool_workers() ? (uint64_t)(uintptr_t)workers[worker].base : 0;
}

static void
hand_out(struct task *tasks, uint32_t count, struct task model)
{
    struct batch batch = { .left = count };
    pthread_mutex_init(&batch.mutex, NULL);
    pthread_cond_init(&batch.changed, NULL);
    for (uint32_t number = 0; number < count; number++) {
        struct worker *worker = &workers[number];
        tasks[number] = model;
        tasks[number].batch = &batch;
        pthread_mutex_lock(&worker->mutex);
        if (worker->first == NULL) {
            worker->first = &tasks[number];
        } else {
            worker->last->next = &tasks[number];
        }
        worker->last = &tasks[number];
        pthread_cond_signal(&worker->changed);
        pthread_mutex_unlock(&worker->mutex);
    }
    pthread_mutex_lock(&batch.mutex);
    while (batch.left > 0) {
        pthread_cond_wait(&batch.changed, &batch.mutex);
    }
    pthread_mutex_unlock(&batch.mutex);
    pthread_mutex_destroy(&batch.mutex);
    pthread_cond_destroy(&batch.changed);
}

dpu_error_t
pool_run(struct dpu_t **dpus, uint32_t count)
{
    struct task tasks[MOST_WORKERS];
    uint32_t ready = pool_workers();
    if (ready == 0) {
        return fail(DPU_ERR_SYSTEM, "no room for a DPU's memories below 2 GiB of this process");
    }
    signals_install();
    hand_out(tasks, ready, (struct task) { .dpus = dpus, .count = count });
    return DPU_OK;
}

void
pool_each(uint32_t count, void (*work)(void *context, uint32_t n), void *context)
{
    struct task tasks[MOST_WORKERS];
    atomic_uint cursor = 0;
    uint32_t ready = pool_workers();
    if (ready < 2 || self != NULL) {
        for (uint32_t n = 0; n < count; n++) {
            work(context, n);
        }
        return;
    }
    hand_out(tasks, ready, (struct task) { .count = count, .work = work, .context = context, .cursor = &cursor });
}
