/* WRAM that is asked for while the program runs: a heap that only grows, until it is reset. */
#ifndef HAL_UPMEM_ALLOC_H
#define HAL_UPMEM_ALLOC_H

#include <attributes.h>
#include <buddy_alloc.h>
#include <fsb_allocator.h>
#include <stddef.h>

/* 8-byte aligned; stops the unit when WRAM is full. */
void *mem_alloc(size_t size);
void *mem_reset(void);

#endif
