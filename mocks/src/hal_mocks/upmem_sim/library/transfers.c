/* Copies for sets: one buffer for all, or one for each DPU; at once, or behind what was asked for before. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#define SHARED_BYTES (1u << 20) /* from here on it pays to let all workers copy */
#define LARGE_BYTES (64u << 20) /* and from here on, to write around the caches */

struct transfer {
    struct copy copy;
    const void *broadcast; /* the buffer of all, or NULL: each DPU has its own */
    void **buffers;        /* for each DPU of the set */
    struct dpu_t **dpus;
    uint32_t count;
    _Atomic dpu_error_t status;
    void *owned; /* bytes that are freed with the transfer */
};

static dpu_error_t
common_program(struct dpu_t *dpu, uint32_t index, void *context)
{
    struct dpu_program_t **program = context;
    if (dpu->program == NULL) {
        return fail(DPU_ERR_NO_PROGRAM_LOADED, "dpu %u of %s", dpu->index, dpu->rank->name);
    }
    if (index > 0 && *program != dpu->program) {
        return fail(DPU_ERR_DIFFERENT_DPU_PROGRAMS, "%s and %s", (*program)->path, dpu->program->path);
    }
    *program = dpu->program;
    return DPU_OK;
}

static dpu_error_t
symbol_of_set(const struct dpu_set_t *set, const char *name, struct dpu_symbol_t *symbol)
{
    struct dpu_program_t *program = NULL;
    dpu_error_t status = set_each(set, common_program, &program);
    if (status == DPU_OK && program == NULL) {
        status = fail(DPU_ERR_INVALID_DPU_SET, "the set has no DPUs");
    }
    return status == DPU_OK ? dpu_get_symbol(program, name, symbol) : status;
}

PUBLIC dpu_error_t
dpu_get_symbol(struct dpu_program_t *program, const char *symbol_name, struct dpu_symbol_t *symbol)
{
    const struct symbol *found = program_symbol(program, symbol_name);
    if (found == NULL) {
        return fail(DPU_ERR_UNKNOWN_SYMBOL, "%s has no %s: a variable for the host is __host or __mram, and not static",
            program->path, symbol_name);
    }
    *symbol = (struct dpu_symbol_t) { found->address, found->size };
    return DPU_OK;
}

static dpu_error_t
gather(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    struct transfer *transfer = context;
    if (transfer->broadcast == NULL && dpu->transfer == NULL) {
        return DPU_OK; /* nothing was prepared for this one */
    }
    transfer->buffers[transfer->count] = dpu->transfer;
    transfer->dpus[transfer->count++] = dpu;
    return copy_check(&transfer->copy, dpu);
}

static dpu_error_t
forget(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    (void)context;
    dpu->transfer = NULL;
    return DPU_OK;
}

static void
copy_nth(void *context, uint32_t n)
{
    struct transfer *transfer = context;
    void *host = transfer->broadcast != NULL ? (void *)transfer->broadcast : transfer->buffers[n];
    dpu_error_t status = copy_bytes(&transfer->copy, transfer->dpus[n], host);
    if (status != DPU_OK) {
        transfer->status = status;
    }
}

static dpu_error_t
run_transfer(struct transfer *transfer)
{
    transfer->copy.large = transfer->count * transfer->copy.length >= LARGE_BYTES;
    if (transfer->count > 1 && transfer->count * transfer->copy.length >= SHARED_BYTES) {
        pool_each(transfer->count, copy_nth, transfer);
    } else {
        for (uint32_t n = 0; n < transfer->count && transfer->status == DPU_OK; n++) {
            copy_nth(transfer, n);
        }
    }
    for (uint32_t n = 0; n < transfer->count;) {
        struct dpu_rank_t *rank = transfer->dpus[n]->rank;
        uint32_t first = n;
        while (n < transfer->count && transfer->dpus[n]->rank == rank) {
            n++;
        }
        transfer_account(rank, transfer->copy.direction, n - first, transfer->copy.length,
            transfer->broadcast != NULL && n - first > 1);
    }
    return transfer->status;
}

static void
free_transfer(struct transfer *transfer)
{
    free(transfer->buffers);
    free(transfer->dpus);
    free(transfer->owned);
    free(transfer);
}

static dpu_error_t
work_transfer(struct job *job)
{
    return run_transfer(job->context);
}

static void
release_transfer(struct job *job)
{
    free_transfer(job->context);
}

/* Collects what is to be copied of a set of one rank or several. */
static dpu_error_t
make_transfer(
    const struct dpu_set_t *set, const struct copy *copy, const void *broadcast, struct transfer **made)
{
    uint32_t count = set_count(set);
    struct transfer *transfer = calloc(1, sizeof *transfer);
    if (transfer != NULL) {
        transfer->copy = *copy;
        transfer->broadcast = broadcast;
        transfer->buffers = calloc(count + 1, sizeof(void *));
        transfer->dpus = calloc(count + 1, sizeof(struct dpu_t *));
    }
    if (transfer == NULL || transfer->buffers == NULL || transfer->dpus == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for a transfer");
    }
    dpu_error_t status = set_each(set, gather, transfer);
    if (status != DPU_OK) {
        free_transfer(transfer);
        return status;
    }
    *made = transfer;
    return DPU_OK;
}

static dpu_error_t
push_later(const struct dpu_set_t *set, const struct copy *copy, const void *broadcast)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(set, &single, &count);
    dpu_error_t status = DPU_OK;
    for (uint32_t each = 0; each < count && status == DPU_OK; each++) {
        struct dpu_set_t part = set->kind == DPU_SET_DPU ? *set : dpu_set_from_rank(&ranks[each]);
        struct transfer *transfer;
        status = make_transfer(&part, copy, broadcast, &transfer);
        if (status == DPU_OK) {
            struct job job = { .work = work_transfer, .release = release_transfer, .context = transfer };
            status = queue_push(ranks[each], job);
        }
    }
    return status;
}

static dpu_error_t
move(const struct dpu_set_t *set, struct copy *copy, const void *broadcast, dpu_xfer_flags_t flags)
{
    bool later = flags & DPU_XFER_ASYNC, parallel = flags & DPU_XFER_PARALLEL;
    if (copy->direction != DPU_XFER_TO_DPU && copy->direction != DPU_XFER_FROM_DPU) {
        return fail(DPU_ERR_INVALID_MEMORY_TRANSFER, "a transfer goes to the DPUs or from them");
    }
    copy->running = parallel;
    dpu_error_t status = DPU_OK;
    if (later) {
        status = push_later(set, copy, broadcast);
    } else {
        struct transfer *transfer;
        if (!parallel) {
            status = queue_settle(set, copy->symbol.address >= MRAM_ADDRESS);
        }
        if (status == DPU_OK) {
            status = make_transfer(set, copy, broadcast, &transfer);
        }
        if (status == DPU_OK) {
            status = run_transfer(transfer);
            free_transfer(transfer);
        }
    }
    if (broadcast == NULL && !(flags & DPU_XFER_NO_RESET)) {
        (void)set_each(set, forget, NULL);
    }
    return status;
}

PUBLIC dpu_error_t
dpu_broadcast_to_symbol(struct dpu_set_t dpu_set, struct dpu_symbol_t symbol, uint32_t symbol_offset, const void *src,
    size_t length, dpu_xfer_flags_t flags)
{
    struct copy copy = { DPU_XFER_TO_DPU, symbol, symbol_offset, length, false, false };
    return move(&dpu_set, &copy, src, flags);
}

PUBLIC dpu_error_t
dpu_broadcast_to(struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src,
    size_t length, dpu_xfer_flags_t flags)
{
    struct dpu_symbol_t symbol;
    dpu_error_t status = symbol_of_set(&dpu_set, symbol_name, &symbol);
    return status == DPU_OK ? dpu_broadcast_to_symbol(dpu_set, symbol, symbol_offset, src, length, flags) : status;
}

PUBLIC dpu_error_t
dpu_copy_to_symbol(
    struct dpu_set_t dpu_set, struct dpu_symbol_t symbol, uint32_t symbol_offset, const void *src, size_t length)
{
    return dpu_broadcast_to_symbol(dpu_set, symbol, symbol_offset, src, length, DPU_XFER_DEFAULT);
}

PUBLIC dpu_error_t
dpu_copy_to(struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, const void *src, size_t length)
{
    return dpu_broadcast_to(dpu_set, symbol_name, symbol_offset, src, length, DPU_XFER_DEFAULT);
}

PUBLIC dpu_error_t
dpu_copy_from_symbol(
    struct dpu_set_t dpu_set, struct dpu_symbol_t symbol, uint32_t symbol_offset, void *dst, size_t length)
{
    if (dpu_set.kind != DPU_SET_DPU) {
        return fail(DPU_ERR_INVALID_DPU_SET, "one buffer takes the bytes of one DPU: push a transfer for a set");
    }
    struct copy copy = { DPU_XFER_FROM_DPU, symbol, symbol_offset, length, false, false };
    return move(&dpu_set, &copy, dst, DPU_XFER_DEFAULT);
}

PUBLIC dpu_error_t
dpu_copy_from(struct dpu_set_t dpu_set, const char *symbol_name, uint32_t symbol_offset, void *dst, size_t length)
{
    struct dpu_symbol_t symbol;
    dpu_error_t status = symbol_of_set(&dpu_set, symbol_name, &symbol);
    return status == DPU_OK ? dpu_copy_from_symbol(dpu_set, symbol, symbol_offset, dst, length) : status;
}

static dpu_error_t
prepare(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    if (context != NULL && dpu->transfer != NULL) {
        return fail(DPU_ERR_TRANSFER_ALREADY_SET, "dpu %u of %s has a buffer already: push it first", dpu->index,
            dpu->rank->name);
    }
    dpu->transfer = context;
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_prepare_xfer(struct dpu_set_t dpu_set, void *buffer)
{
    return set_each(&dpu_set, prepare, buffer);
}

PUBLIC dpu_error_t
dpu_push_xfer_symbol(struct dpu_set_t dpu_set, dpu_xfer_t xfer, struct dpu_symbol_t symbol, uint32_t symbol_offset,
    size_t length, dpu_xfer_flags_t flags)
{
    struct copy copy = { xfer, symbol, symbol_offset, length, false, false };
    return move(&dpu_set, &copy, NULL, flags);
}

PUBLIC dpu_error_t
dpu_push_xfer(struct dpu_set_t dpu_set, dpu_xfer_t xfer, const char *symbol_name, uint32_t symbol_offset, size_t length,
    dpu_xfer_flags_t flags)
{
    struct dpu_symbol_t symbol;
    dpu_error_t status = symbol_of_set(&dpu_set, symbol_name, &symbol);
    return status == DPU_OK ? dpu_push_xfer_symbol(dpu_set, xfer, symbol, symbol_offset, length, flags) : status;
}
