/* What DPUs said and counted. */
#include "internal.h"

static dpu_error_t
write_log(struct dpu_t *dpu, FILE *stream)
{
    dpu_error_t status = DPU_OK;
    fprintf(stream, "=== DPU#0x%x ===\n", dpu_get_id(dpu));
    if (dpu->log_used > 0 && fwrite(dpu->log, 1, dpu->log_used, stream) != dpu->log_used) {
        return fail(DPU_ERR_SYSTEM, "the log cannot be written");
    }
    if (dpu->state == FAULTED) {
        fprintf(stream, "%s*** fault: %s\n", dpu->log_used > 0 && dpu->log[dpu->log_used - 1] != '\n' ? "\n" : "",
            dpu->fault);
    }
    if (dpu->log_full) {
        status = fail(DPU_ERR_LOG_BUFFER_TOO_SMALL, "dpu %u of %s said more than the %u bytes of its log", dpu->index,
            dpu->rank->name, dpu->program == NULL ? 0 : dpu->program->log_bytes);
    }
    return status;
}

PUBLIC dpu_error_t
dpulog_read_for_dpu(struct dpu_t *dpu, FILE *stream)
{
    struct dpu_set_t set = dpu_set_from_dpu(dpu);
    dpu_error_t status = queue_settle(&set, true);
    return status == DPU_OK ? write_log(dpu, stream) : status;
}

static dpu_error_t
write_nth(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    return write_log(dpu, context);
}

PUBLIC dpu_error_t
dpu_log_read(struct dpu_set_t set, FILE *stream)
{
    dpu_error_t status = queue_settle(&set, true);
    return status == DPU_OK ? set_each(&set, write_nth, stream) : status;
}

PUBLIC dpu_error_t
dpu_sim_counters(struct dpu_t *dpu, struct dpu_sim_counters *counters)
{
    *counters = (struct dpu_sim_counters) {
        .cycles = dpu->cycles,
        .instructions = dpu->instructions,
        .dma_operations = dpu->dma_operations,
        .dma_bytes = dpu->dma_bytes,
        .clock_hz = dpu->rank->clock_hz,
        .to_dpu_seconds = dpu->rank->to_dpu_seconds,
        .from_dpu_seconds = dpu->rank->from_dpu_seconds,
    };
    return DPU_OK;
}

PUBLIC const char *
dpu_sim_fault(struct dpu_t *dpu, int *tasklet)
{
    bool faulted = dpu->state == FAULTED;
    if (tasklet != NULL) {
        *tasklet = faulted ? dpu->fault_tasklet : -1;
    }
    return faulted ? dpu->fault : NULL;
}
