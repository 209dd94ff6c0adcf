/* Launching, and what can be asked about it. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static atomic_uint_fast64_t common_seed;

PUBLIC void
dpu_sim_set_seed(uint64_t seed)
{
    common_seed = seed;
}

uint64_t
schedule_seed(const struct dpu_rank_t *rank)
{
    return common_seed != 0 ? common_seed : rank->seed;
}

struct run {
    struct dpu_t *dpus[MOST_DPUS];
    uint32_t count;
};

static dpu_error_t
add_dpu(struct dpu_t *dpu, uint32_t index, void *context)
{
    struct run *run = context;
    (void)index;
    if (dpu->program == NULL) {
        return fail(DPU_ERR_NO_PROGRAM_LOADED, "dpu %u of %s", dpu->index, dpu->rank->name);
    }
    if (dpu->state == FAULTED) {
        return fail(DPU_ERR_DPU_FAULT, "dpu %u of %s is in fault since its last run (%s): load the program again",
            dpu->index, dpu->rank->name, dpu->fault);
    }
    run->dpus[run->count++] = dpu;
    return DPU_OK;
}

static void
pause_seconds(double seconds)
{
    struct timespec span = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
    nanosleep(&span, NULL);
}

/* Lets what is wrong with the rank have its effect; false when the rank is gone or was given up. */
static bool
suffer(struct dpu_rank_t *rank)
{
    config_refresh(rank);
    if (rank->slow_seconds > 0) {
        pause_seconds(rank->slow_seconds);
    }
    while (rank->hangs && !rank->lost && !rank->stopping) {
        pause_seconds(0.01);
        config_refresh(rank);
    }
    return !rank->lost && !rank->stopping;
}

static dpu_error_t
report(struct dpu_t *const *dpus, uint32_t count)
{
    struct dpu_t *first = NULL;
    uint32_t others = 0;
    for (uint32_t each = 0; each < count; each++) {
        if (dpus[each]->state == FAULTED) {
            others += first != NULL;
            first = first == NULL ? dpus[each] : first;
        }
    }
    if (first == NULL) {
        return DPU_OK;
    }
    char more[64] = "";
    if (others > 0) {
        snprintf(more, sizeof more, " (and %u more DPUs)", others);
    }
    return fail(DPU_ERR_DPU_FAULT, "dpu %u of %s: %s%s", first->index, first->rank->name, first->fault, more);
}

static dpu_error_t
run_set(struct dpu_t **dpus, uint32_t count)
{
    for (uint32_t each = 0; each < count; each++) {
        if ((each == 0 || dpus[each]->rank != dpus[each - 1]->rank) && !suffer(dpus[each]->rank)) {
            return fail(DPU_ERR_DRIVER, "%s does not answer", dpus[each]->rank->name);
        }
        dpus[each]->state = RUNNING;
    }
    dpu_error_t status = pool_run(dpus, count);
    return status == DPU_OK ? report(dpus, count) : status;
}

static dpu_error_t
work_launch(struct job *job)
{
    struct run *run = job->context;
    return run_set(run->dpus, run->count);
}

static void
release_launch(struct job *job)
{
    free(job->context);
}

static dpu_error_t
launch_later(const struct dpu_set_t *set)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(set, &single, &count);
    dpu_error_t status = DPU_OK;
    for (uint32_t each = 0; each < count && status == DPU_OK; each++) {
        struct dpu_set_t part = set->kind == DPU_SET_DPU ? *set : dpu_set_from_rank(&ranks[each]);
        struct run *run = calloc(1, sizeof *run);
        if (run == NULL) {
            return fail(DPU_ERR_SYSTEM, "no memory for a launch");
        }
        status = set_each(&part, add_dpu, run);
        if (status == DPU_OK) {
            struct job job = { .work = work_launch, .release = release_launch, .launch = true, .context = run };
            status = queue_push(ranks[each], job);
        } else {
            free(run);
        }
    }
    return status;
}

struct whole_run {
    struct dpu_t **dpus;
    uint32_t count;
    struct run part;
};

static dpu_error_t
add_to_whole(struct dpu_t *dpu, uint32_t index, void *context)
{
    struct whole_run *whole = context;
    whole->part.count = 0;
    dpu_error_t status = add_dpu(dpu, index, &whole->part);
    whole->dpus[whole->count++] = dpu;
    return status;
}

static dpu_error_t
launch_now(const struct dpu_set_t *set)
{
    struct whole_run whole = { .dpus = calloc(set_count(set) + 1, sizeof(struct dpu_t *)) };
    if (whole.dpus == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for a launch");
    }
    dpu_error_t status = set_each(set, add_to_whole, &whole);
    if (status == DPU_OK) {
        status = run_set(whole.dpus, whole.count);
    }
    free(whole.dpus);
    return status;
}

static bool
runs(const struct dpu_set_t *set)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(set, &single, &count);
    bool running = false;
    for (uint32_t each = 0; each < count; each++) {
        pthread_mutex_lock(&ranks[each]->mutex);
        running = running || ranks[each]->launches_pending > 0;
        pthread_mutex_unlock(&ranks[each]->mutex);
    }
    return running;
}

PUBLIC dpu_error_t
dpu_launch(struct dpu_set_t dpu_set, dpu_launch_policy_t policy)
{
    if (policy == DPU_ASYNCHRONOUS) {
        return launch_later(&dpu_set);
    }
    if (policy != DPU_SYNCHRONOUS) {
        return fail(DPU_ERR_INVALID_LAUNCH_POLICY, "a launch is synchronous or asynchronous");
    }
    if (runs(&dpu_set)) {
        return fail(DPU_ERR_DPU_ALREADY_RUNNING, "a launch of before has not ended: dpu_sync first");
    }
    dpu_error_t status = queue_settle(&dpu_set, false);
    return status == DPU_OK ? launch_now(&dpu_set) : status;
}

static dpu_error_t
add_fault(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    *(bool *)context = *(bool *)context || dpu->state == FAULTED;
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_status(struct dpu_set_t dpu_set, bool *done, bool *fault)
{
    bool faulted = false;
    dpu_error_t status = set_each(&dpu_set, add_fault, &faulted);
    if (done != NULL) {
        *done = !runs(&dpu_set);
    }
    if (fault != NULL) {
        *fault = faulted;
    }
    return status;
}

PUBLIC dpu_error_t
dpu_boot_dpu(struct dpu_t *dpu)
{
    return dpu_launch(dpu_set_from_dpu(dpu), DPU_ASYNCHRONOUS);
}

PUBLIC dpu_error_t
dpu_boot_rank(struct dpu_rank_t *rank)
{
    return dpu_launch(dpu_set_from_rank(&rank), DPU_ASYNCHRONOUS);
}

PUBLIC dpu_error_t
dpu_status_dpu(struct dpu_t *dpu, bool *done, bool *fault)
{
    return dpu_status(dpu_set_from_dpu(dpu), done, fault);
}

PUBLIC dpu_error_t
dpu_status_rank(struct dpu_rank_t *rank, bool *done, bool *fault)
{
    return dpu_status(dpu_set_from_rank(&rank), done, fault);
}
