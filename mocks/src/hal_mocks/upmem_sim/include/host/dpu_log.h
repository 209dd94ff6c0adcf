#ifndef DPU_LOG_H
#define DPU_LOG_H

#include <dpu_error.h>
#include <stdio.h>

struct dpu_t;

/* What the tasklets of one DPU printed in its last run, and what stopped it. */
dpu_error_t dpulog_read_for_dpu(struct dpu_t *dpu, FILE *stream);

#endif
