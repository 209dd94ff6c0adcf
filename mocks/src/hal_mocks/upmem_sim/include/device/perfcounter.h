/* What the unit counts. Here the numbers are the cycle model's: simulated, never measured. */
#ifndef HAL_UPMEM_PERFCOUNTER_H
#define HAL_UPMEM_PERFCOUNTER_H

#include <stdbool.h>
#include <stdint.h>

typedef uint64_t perfcounter_t;

typedef enum _perfcounter_config_t {
    COUNT_SAME = 0,
    COUNT_CYCLES = 1,
    COUNT_INSTRUCTIONS = 2,
    COUNT_NOTHING = 3,
    COUNT_DISABLE_BOTH = 6,
    COUNT_ENABLE_BOTH = 7,
} perfcounter_config_t;

extern const volatile uint32_t CLOCKS_PER_SEC;

perfcounter_t perfcounter_get(void);
perfcounter_t perfcounter_config(perfcounter_config_t config, bool reset_value);

#ifdef __dpu_v1B__
typedef struct {
    perfcounter_t cycles;
    perfcounter_t instr;
} perfcounter_pair_t;

perfcounter_pair_t perfcounter_get_both(bool should_reset);
#endif

#endif
