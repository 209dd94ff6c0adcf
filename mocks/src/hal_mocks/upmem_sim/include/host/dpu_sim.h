/* What only the simulator can tell. Nothing here is in UPMEM's SDK: a program that uses it runs on the simulator alone.
 * All numbers of time are SIMULATED by a model; none of them was measured on hardware. */
#ifndef DPU_SIM_H
#define DPU_SIM_H

#include <dpu_error.h>
#include <dpu_types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The last run of one DPU, and the transfers of its rank since it was allocated. */
struct dpu_sim_counters {
    uint64_t cycles;         /* of the run, from boot to the end of the last tasklet */
    uint64_t instructions;   /* issued by all tasklets, estimated from the host's code */
    uint64_t dma_operations; /* between MRAM and WRAM */
    uint64_t dma_bytes;
    uint64_t clock_hz;
    double to_dpu_seconds; /* host transfers of the rank, by a table of bandwidths */
    double from_dpu_seconds;
};

dpu_error_t dpu_sim_counters(struct dpu_t *dpu, struct dpu_sim_counters *counters);

/* What stopped a DPU, or NULL if nothing did; tasklet is -1 if it was not one tasklet's doing. Valid until it is
 * launched or loaded again. */
const char *dpu_sim_fault(struct dpu_t *dpu, int *tasklet);

/* Why the calling thread's last failed call failed, in words; empty if none has. Valid until the next one. */
const char *dpu_sim_last_error(void);

/* The name of a rank as in /sys/class/dpu_rank. */
const char *dpu_sim_rank_name(struct dpu_rank_t *rank);

/* Seed of the schedules of launches to come: 0 is the one in the order of simulated time. A program that was loaded
 * without a seed has no points between its calls where tasklets may change. */
void dpu_sim_set_seed(uint64_t seed);

#ifdef __cplusplus
}
#endif

#endif
