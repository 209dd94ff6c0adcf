#ifndef HAL_UPMEM_FSB_ALLOCATOR_H
#define HAL_UPMEM_FSB_ALLOCATOR_H

/* Blocks of one size, from a list of free ones. */
typedef void **fsb_allocator_t;

fsb_allocator_t fsb_alloc(unsigned int block_size, unsigned int nb_of_blocks);
void *fsb_get(fsb_allocator_t allocator);
void fsb_free(fsb_allocator_t allocator, void *ptr);

#endif
