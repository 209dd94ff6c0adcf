/* Scatter and gather: for each DPU many blocks of the host's memory, one after the other in its MRAM. */
#include "internal.h"

struct scatter {
    struct copy copy;
    get_block_t *blocks;
    bool check_length;
};

static dpu_error_t
scatter_dpu(struct dpu_t *dpu, uint32_t index, void *context)
{
    struct scatter *scatter = context;
    struct copy copy = scatter->copy;
    struct sg_block_info block;
    size_t done = 0;
    dpu_error_t status = copy_check(&copy, dpu);
    for (uint32_t number = 0; status == DPU_OK && done < scatter->copy.length; number++) {
        block = (struct sg_block_info) { NULL, 0 };
        if (!scatter->blocks->f(&block, index, number, scatter->blocks->args)) {
            break;
        }
        if (number >= dpu->rank->scatter_blocks) {
            return fail(DPU_ERR_SG_TOO_MANY_BLOCKS, "dpu %u of %s has more than %u blocks (sgXferMaxBlocksPerDpu)",
                dpu->index, dpu->rank->name, dpu->rank->scatter_blocks);
        }
        copy.offset = scatter->copy.offset + (uint32_t)done;
        copy.length = block.length < scatter->copy.length - done ? block.length : scatter->copy.length - done;
        status = copy_bytes(&copy, dpu, block.addr);
        done += copy.length;
    }
    if (status == DPU_OK && scatter->check_length && done != scatter->copy.length) {
        return fail(DPU_ERR_SG_LENGTH_MISMATCH, "the blocks of dpu %u of %s have %zu bytes of %zu", dpu->index,
            dpu->rank->name, done, scatter->copy.length);
    }
    transfer_account(dpu->rank, copy.direction, 1, done, false);
    return status;
}

PUBLIC dpu_error_t
dpu_push_sg_xfer_symbol(struct dpu_set_t dpu_set, dpu_xfer_t xfer, struct dpu_symbol_t symbol, uint32_t symbol_offset,
    size_t length, get_block_t *get_block_info, dpu_sg_xfer_flags_t flags)
{
    struct dpu_rank_t *single, **ranks;
    uint32_t count;
    ranks = set_ranks(&dpu_set, &single, &count);
    if (count > 0 && !ranks[0]->scatter) {
        return fail(DPU_ERR_SG_NOT_ACTIVATED, "allocate with the profile sgXferEnable=true");
    }
    if (symbol.address < MRAM_ADDRESS) {
        return fail(DPU_ERR_SG_NOT_MRAM_SYMBOL, "the symbol at 0x%08x is not in MRAM", symbol.address);
    }
    struct scatter scatter = { { xfer, symbol, symbol_offset, length, false, false }, get_block_info,
        !(flags & DPU_SG_XFER_DISABLE_LENGTH_CHECK) };
    /* Its callback may use what its caller has on the stack: it is done before the call returns, asynchronous or not. */
    dpu_error_t status = DPU_OK;
    if (flags & DPU_SG_XFER_ASYNC) {
        for (uint32_t each = 0; each < count; each++) {
            queue_wait(ranks[each]);
        }
    } else {
        status = queue_settle(&dpu_set, true);
    }
    return status == DPU_OK ? set_each(&dpu_set, scatter_dpu, &scatter) : status;
}

static dpu_error_t
any_program(struct dpu_t *dpu, uint32_t index, void *context)
{
    struct dpu_program_t **program = context;
    if (index == 0) {
        *program = dpu->program;
    }
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_push_sg_xfer(struct dpu_set_t dpu_set, dpu_xfer_t xfer, const char *symbol_name, uint32_t symbol_offset,
    size_t length, get_block_t *get_block_info, dpu_sg_xfer_flags_t flags)
{
    struct dpu_program_t *program = NULL;
    struct dpu_symbol_t symbol;
    dpu_error_t status = set_each(&dpu_set, any_program, &program);
    if (status == DPU_OK && program == NULL) {
        status = fail(DPU_ERR_NO_PROGRAM_LOADED, "a symbol is a program's");
    }
    if (status == DPU_OK) {
        status = dpu_get_symbol(program, symbol_name, &symbol);
    }
    return status == DPU_OK
        ? dpu_push_sg_xfer_symbol(dpu_set, xfer, symbol, symbol_offset, length, get_block_info, flags)
        : status;
}
