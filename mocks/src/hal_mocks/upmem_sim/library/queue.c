/* What is asked of a rank asynchronously happens in the order in which it was asked, in a thread of the rank's own. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

static void *
serve(void *context)
{
    struct dpu_rank_t *rank = context;
    pthread_mutex_lock(&rank->mutex);
    for (;;) {
        while (rank->first == NULL && !rank->closing) {
            pthread_cond_wait(&rank->changed, &rank->mutex);
        }
        struct job *job = rank->first;
        if (job == NULL) {
            break;
        }
        rank->first = job->next;
        pthread_mutex_unlock(&rank->mutex);
        dpu_error_t status = job->work(job);
        pthread_mutex_lock(&rank->mutex);
        if (status != DPU_OK && rank->async_status == DPU_OK) {
            rank->async_status = status;
            snprintf(rank->async_detail, sizeof rank->async_detail, "%s", dpu_sim_last_error());
        }
        rank->pending--;
        rank->launches_pending -= job->launch;
        pthread_cond_broadcast(&rank->changed);
        if (job->release != NULL) {
            job->release(job);
        }
        free(job);
    }
    pthread_mutex_unlock(&rank->mutex);
    return NULL;
}

dpu_error_t
queue_push(struct dpu_rank_t *rank, struct job given)
{
    struct job *job = malloc(sizeof *job);
    if (job == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for a job");
    }
    *job = given;
    job->next = NULL;
    job->rank = rank;
    pthread_mutex_lock(&rank->mutex);
    if (!rank->started) {
        if (pthread_create(&rank->thread, NULL, serve, rank) != 0) {
            pthread_mutex_unlock(&rank->mutex);
            free(job);
            return fail(DPU_ERR_SYSTEM, "no thread for %s", rank->name);
        }
        rank->started = true;
    }
    if (rank->first == NULL) {
        rank->first = job;
    } else {
        rank->last->next = job;
    }
    rank->last = job;
    rank->pending++;
    rank->launches_pending += job->launch;
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->mutex);
    return DPU_OK;
}

void
queue_wait(struct dpu_rank_t *rank)
{
    pthread_mutex_lock(&rank->mutex);
    while (rank->pending > 0) {
        pthread_cond_wait(&rank->changed, &rank->mutex);
    }
    pthread_mutex_unlock(&rank->mutex);
}

dpu_error_t
queue_status(struct dpu_rank_t *rank)
{
    pthread_mutex_lock(&rank->mutex);
    dpu_error_t status = rank->async_status;
    rank->async_status = DPU_OK;
    pthread_mutex_unlock(&rank->mutex);
    if (status != DPU_OK) {
        error_note(status, rank->async_detail);
    }
    return status;
}

void
queue_close(struct dpu_rank_t *rank)
{
    rank->stopping = true;
    pthread_mutex_lock(&rank->mutex);
    bool started = rank->started;
    rank->closing = true;
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->mutex);
    if (started) {
        pthread_join(rank->thread, NULL);
    }
}

dpu_error_t
queue_settle(const struct dpu_set_t *set, bool mram)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(set, &single, &count);
    for (uint32_t each = 0; each < count; each++) {
        if (mram) {
            pthread_mutex_lock(&ranks[each]->mutex);
            bool busy = ranks[each]->launches_pending > 0;
            pthread_mutex_unlock(&ranks[each]->mutex);
            if (busy) {
                return fail(DPU_ERR_MRAM_BUSY,
                    "%s runs, and its MRAM is the DPUs' meanwhile: dpu_sync first, or transfer with DPU_XFER_ASYNC",
                    ranks[each]->name);
            }
        }
        queue_wait(ranks[each]);
    }
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_sync(struct dpu_set_t dpu_set)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(&dpu_set, &single, &count);
    dpu_error_t status = DPU_OK;
    for (uint32_t each = 0; each < count; each++) {
        queue_wait(ranks[each]);
        dpu_error_t one = queue_status(ranks[each]);
        status = status == DPU_OK ? one : status;
    }
    return status;
}

struct callback {
    dpu_error_t (*function)(struct dpu_set_t, uint32_t, void *);
    void *arguments;
    struct dpu_rank_t *rank;
    struct dpu_set_t set;
    uint32_t index;
};

static dpu_error_t
work_callback(struct job *job)
{
    struct callback *callback = job->context;
    dpu_error_t status = callback->function(callback->set, callback->index, callback->arguments);
    return status == DPU_OK ? DPU_OK : fail(status, "a callback of %s said so", callback->rank->name);
}

static void
release_callback(struct job *job)
{
    free(job->context);
}

static dpu_error_t
push_callback(struct dpu_rank_t *rank, const struct callback *given)
{
    struct callback *callback = malloc(sizeof *callback);
    if (callback == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for a callback");
    }
    *callback = *given;
    return queue_push(rank, (struct job) { .work = work_callback, .release = release_callback, .context = callback });
}

PUBLIC dpu_error_t
dpu_callback(struct dpu_set_t dpu_set, dpu_error_t (*function)(struct dpu_set_t, uint32_t, void *), void *args,
    dpu_callback_flags_t flags)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(&dpu_set, &single, &count);
    bool later = flags & DPU_CALLBACK_ASYNC, once = flags & DPU_CALLBACK_SINGLE_CALL;
    if ((flags & DPU_CALLBACK_NONBLOCKING) && !later) {
        return fail(DPU_ERR_NONBLOCKING_SYNC_CALLBACK, "DPU_CALLBACK_NONBLOCKING needs DPU_CALLBACK_ASYNC");
    }
    if (once) {
        /* It comes when all ranks of the set have come so far. */
        for (uint32_t each = 1; each < count; each++) {
            queue_wait(ranks[each]);
        }
    }
    dpu_error_t status = DPU_OK;
    for (uint32_t each = 0; each < (once ? 1 : count) && status == DPU_OK; each++) {
        struct dpu_set_t part = once || dpu_set.kind == DPU_SET_DPU ? dpu_set : dpu_set_from_rank(&ranks[each]);
        status = push_callback(ranks[each], &(struct callback) { function, args, ranks[each], part, each });
    }
    return later || status != DPU_OK ? status : dpu_sync(dpu_set);
}
