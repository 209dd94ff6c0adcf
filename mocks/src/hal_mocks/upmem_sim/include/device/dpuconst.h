#ifndef HAL_UPMEM_DPUCONST_H
#define HAL_UPMEM_DPUCONST_H

#include <dpu_characteristics.h>

#define __DPU_NUMBER_OF_THREADS DPU_NR_THREADS
#define __DPU_MRAM_SIZE_LOG2 26

#endif
