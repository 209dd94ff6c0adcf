/* MRAM: 64 MiB that a tasklet reaches by DMA, 8 to 2,048 bytes at a time, everything a multiple of 8. */
#ifndef HAL_UPMEM_MRAM_H
#define HAL_UPMEM_MRAM_H

#include <attributes.h>
#include <dpu_characteristics.h>
#include <stdint.h>

#define DPU_MRAM_HEAP_POINTER ((__mram_ptr void *)(&__sys_used_mram_end))

extern __mram_ptr uint8_t __sys_used_mram_end[];

void mram_read(const __mram_ptr void *from, void *to, unsigned int nb_of_bytes);
void mram_write(const void *from, __mram_ptr void *to, unsigned int nb_of_bytes);

#endif
