/* Copies by address: WRAM in words of 4 bytes, MRAM in bytes. */
#ifndef DPU_MEMORY_H
#define DPU_MEMORY_H

#include <dpu_error.h>
#include <dpu_types.h>

dpu_error_t dpu_copy_to_wram_for_dpu(struct dpu_t *dpu, wram_addr_t word, const dpuword_t *source, wram_size_t words);
dpu_error_t dpu_copy_from_wram_for_dpu(struct dpu_t *dpu, dpuword_t *target, wram_addr_t word, wram_size_t words);
dpu_error_t dpu_copy_to_mram(struct dpu_t *dpu, mram_addr_t offset, const uint8_t *source, mram_size_t bytes);
dpu_error_t dpu_copy_from_mram(struct dpu_t *dpu, uint8_t *target, mram_addr_t offset, mram_size_t bytes);

#endif
