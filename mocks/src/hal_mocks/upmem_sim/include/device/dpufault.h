/* The numbers with which a program of the SDK stops its unit. */
#ifndef HAL_UPMEM_DPUFAULT_H
#define HAL_UPMEM_DPUFAULT_H

#define __FAULT_ALLOC_HEAP_FULL__ 1
#define __FAULT_DIVISION_BY_ZERO__ 2
#define __FAULT_ASSERT_FAILED__ 3
#define __FAULT_HALT__ 4
#define __FAULT_PRINTF_OVERFLOW__ 5
#define __FAULT_ALREADY_PROFILING__ 6
#define __FAULT_NOT_PROFILING__ 7
#define __FAULT_MRAM_UNALIGNED__ 8
#define __FAULT_PFM_COUNTER_INCOMPATIBILITY__ 9

/* Stops the unit: the simulator's own way, with words. */
_Noreturn void __hal_fault(const char *what);

#endif
