/* Copies between the host's memory and one DPU's: what is allowed, and the bytes. */
#include "internal.h"

#include <emmintrin.h>
#include <string.h>

enum memory { WRAM, MRAM, IRAM };

static enum memory
memory_of(uint32_t address)
{
    if (address >= MRAM_ADDRESS) {
        return MRAM;
    }
    return address >= TEXT_ADDRESS ? IRAM : WRAM;
}

static dpu_error_t
check_range(const struct copy *copy, const struct dpu_t *dpu, enum memory memory)
{
    uint64_t first = (uint64_t)copy->symbol.address + copy->offset;
    uint64_t end = memory == MRAM ? (uint64_t)MRAM_ADDRESS + dpu->rank->mram_bytes : dpu->rank->wram_bytes;
    const char *name = memory == MRAM ? "MRAM" : "WRAM";
    dpu_error_t code = memory == MRAM ? DPU_ERR_INVALID_MRAM_ACCESS : DPU_ERR_INVALID_WRAM_ACCESS;
    uint32_t alignment = memory == MRAM ? 8 : 4;
    if (copy->symbol.size != 0 && (uint64_t)copy->offset + copy->length > copy->symbol.size) {
        return fail(DPU_ERR_INVALID_SYMBOL_ACCESS, "%zu bytes at offset %u: the symbol has %u", copy->length,
            copy->offset, copy->symbol.size);
    }
    if (first % alignment != 0 || copy->length % alignment != 0) {
        return fail(code, "%zu bytes at 0x%08llx: address and length of a copy to or from %s are multiples of %u",
            copy->length, (unsigned long long)first, name, alignment);
    }
    if (first + copy->length > end) {
        return fail(code, "%zu bytes at 0x%08llx go beyond the end of %s at 0x%08llx", copy->length,
            (unsigned long long)first, name, (unsigned long long)end);
    }
    return DPU_OK;
}

dpu_error_t
copy_check(const struct copy *copy, const struct dpu_t *dpu)
{
    enum memory memory = memory_of(copy->symbol.address);
    if (memory == IRAM) {
        return fail(DPU_ERR_INVALID_IRAM_ACCESS, "the simulator's code is the host's: IRAM cannot be copied");
    }
    if (copy->running && memory != WRAM) {
        return fail(DPU_ERR_INVALID_PARALLEL_MEMORY_TRANSFER, "MRAM is the DPU's alone while it runs");
    }
    if (dpu->rank->lost) {
        return fail(DPU_ERR_DRIVER, "%s does not answer", dpu->rank->name);
    }
    if (dpu->wram == NULL && memory == WRAM) {
        return fail(DPU_ERR_NO_PROGRAM_LOADED, "dpu %u of %s", dpu->index, dpu->rank->name);
    }
    return check_range(copy, dpu, memory);
}

static void
stream_line(uint8_t *to, const uint8_t *from)
{
    const __m128i *source = (const __m128i *)(const void *)from;
    __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    __m128i *target = (__m128i *)(void *)to;
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
}

/* memcpy for what no cache will hold: around the caches, and four pages at a time, as memcpy itself does for one large
 * block. */
static void
stream(uint8_t *to, const uint8_t *from, size_t bytes)
{
    enum { LINE = 64, PAGE = 4096, PAGES = 4 };
    size_t head = (LINE - ((uintptr_t)to & (LINE - 1))) & (LINE - 1);
    head = head < bytes ? head : bytes;
    memcpy(to, from, head);
    to += head;
    from += head;
    bytes -= head;
    for (; bytes >= PAGE * PAGES; bytes -= PAGE * PAGES, to += PAGE * PAGES, from += PAGE * PAGES) {
        for (size_t line = 0; line < PAGE; line += LINE) {
            for (size_t page = 0; page < PAGE * PAGES; page += PAGE) {
                _mm_prefetch((const char *)from + page + line + 2 * LINE, _MM_HINT_T0);
                stream_line(to + page + line, from + page + line);
            }
        }
    }
    memcpy(to, from, bytes);
    _mm_sfence();
}

dpu_error_t
copy_bytes(const struct copy *copy, struct dpu_t *dpu, void *host)
{
    enum memory memory = memory_of(copy->symbol.address);
    uint32_t at = copy->symbol.address + copy->offset;
    if (memory == WRAM) {
        pthread_mutex_lock(&dpu->wram_lock);
    } else if (dpu->rank->corrupt_dpu == dpu->index && copy->direction == DPU_XFER_FROM_DPU) {
        return fail(DPU_ERR_CORRUPTED_MEMORY, "MRAM of dpu %u of %s lost data", dpu->index, dpu->rank->name);
    }
    struct worker *live = dpu->live;
    uint8_t *wram = live == NULL ? dpu->wram : (uint8_t *)(uintptr_t)pool_base(dpu_worker(dpu));
    uint8_t *bytes = memory == WRAM ? wram + at : dpu->mram + (at - MRAM_ADDRESS);
    void *to = copy->direction == DPU_XFER_TO_DPU ? bytes : host;
    const void *from = copy->direction == DPU_XFER_TO_DPU ? host : bytes;
    if (copy->large) {
        stream(to, from, copy->length);
    } else {
        memcpy(to, from, copy->length);
    }
    if (memory == WRAM) {
        if (at + copy->length > dpu->wram_used) {
            dpu->wram_used = at + (uint32_t)copy->length;
        }
        pthread_mutex_unlock(&dpu->wram_lock);
    }
    return DPU_OK;
}

/* Bandwidths of one rank of 64 DPUs, and of one DPU alone, as the PrIM study measured them (arXiv 2105.03814, section
 * 3.4): in parallel to and from, alone to and from, and one buffer to all. */
void
transfer_account(struct dpu_rank_t *rank, dpu_xfer_t direction, uint32_t dpus, size_t bytes, bool broadcast)
{
    double alone = direction == DPU_XFER_TO_DPU ? 0.33e9 : 0.12e9;
    double all = broadcast ? 16.88e9 : direction == DPU_XFER_TO_DPU ? 6.68e9 : 4.74e9;
    double bandwidth = all * dpus / MOST_DPUS;
    double seconds = (double)bytes * dpus / (bandwidth > alone ? bandwidth : alone);
    *(direction == DPU_XFER_TO_DPU ? &rank->to_dpu_seconds : &rank->from_dpu_seconds) += seconds;
}

static dpu_error_t
copy_one(struct dpu_t *dpu, dpu_xfer_t direction, uint32_t address, void *host, size_t length)
{
    struct copy copy = { .direction = direction, .symbol = { address, 0 }, .length = length };
    struct dpu_set_t set = dpu_set_from_dpu(dpu);
    dpu_error_t status = queue_settle(&set, memory_of(address) == MRAM);
    if (status == DPU_OK) {
        status = copy_check(&copy, dpu);
    }
    return status == DPU_OK ? copy_bytes(&copy, dpu, host) : status;
}

PUBLIC dpu_error_t
dpu_copy_to_wram_for_dpu(struct dpu_t *dpu, wram_addr_t word, const dpuword_t *source, wram_size_t words)
{
    return copy_one(dpu, DPU_XFER_TO_DPU, word * 4, (void *)source, (size_t)words * 4);
}

PUBLIC dpu_error_t
dpu_copy_from_wram_for_dpu(struct dpu_t *dpu, dpuword_t *target, wram_addr_t word, wram_size_t words)
{
    return copy_one(dpu, DPU_XFER_FROM_DPU, word * 4, target, (size_t)words * 4);
}

PUBLIC dpu_error_t
dpu_copy_to_mram(struct dpu_t *dpu, mram_addr_t offset, const uint8_t *source, mram_size_t bytes)
{
    return copy_one(dpu, DPU_XFER_TO_DPU, MRAM_ADDRESS | offset, (void *)source, bytes);
}

PUBLIC dpu_error_t
dpu_copy_from_mram(struct dpu_t *dpu, uint8_t *target, mram_addr_t offset, mram_size_t bytes)
{
    return copy_one(dpu, DPU_XFER_FROM_DPU, MRAM_ADDRESS | offset, target, bytes);
}
