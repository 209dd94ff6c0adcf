/* Sections for the SDK's profiler; nothing samples them here. */
#ifndef HAL_UPMEM_PROFILING_H
#define HAL_UPMEM_PROFILING_H

#include <stdint.h>

typedef struct {
    uint32_t count;
} dpu_profiling_t;

#define PROFILING_INIT(_name) dpu_profiling_t _name
#define profiling_start(context) ((void)(context))
#define profiling_stop(context) ((void)(context))

#endif
