#ifndef DPU_PROGRAM_H
#define DPU_PROGRAM_H

#include <dpu_error.h>
#include <dpu_types.h>

struct dpu_program_t *dpu_get_program(struct dpu_t *dpu);
void dpu_take_program_ref(struct dpu_program_t *program);
void dpu_free_program(struct dpu_program_t *program);

#endif
