#ifndef DPU_RUNNER_H
#define DPU_RUNNER_H

#include <dpu_error.h>
#include <dpu_types.h>

dpu_error_t dpu_boot_dpu(struct dpu_t *dpu);
dpu_error_t dpu_boot_rank(struct dpu_rank_t *rank);
dpu_error_t dpu_status_dpu(struct dpu_t *dpu, bool *done, bool *fault);
dpu_error_t dpu_status_rank(struct dpu_rank_t *rank, bool *done, bool *fault);

#endif
