#ifndef HAL_UPMEM_BUDDY_ALLOC_H
#define HAL_UPMEM_BUDDY_ALLOC_H

#include <stddef.h>

/* Blocks of 32 to 4,096 bytes from a heap of up to 32 KiB; NULL when none is left. */
void buddy_init(size_t size_of_heap);
void buddy_reset(void);
void *buddy_alloc(size_t size);
void buddy_free(void *pointer);
void *buddy_realloc(void *pointer, size_t size);

#endif
