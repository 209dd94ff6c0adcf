/* fsb_allocator.h: a list of free blocks that goes through the blocks themselves. */
#include <alloc.h>
#include <atomic_bit.h>
#include <stdint.h>

ATOMIC_BIT_INIT(__fixed_blocks);

fsb_allocator_t
fsb_alloc(unsigned int block_size, unsigned int nb_of_blocks)
{
    block_size = (block_size + 7) & ~7u;
    uint8_t *blocks = mem_alloc(block_size * nb_of_blocks);
    fsb_allocator_t head = mem_alloc(sizeof(void *));
    *head = NULL;
    for (unsigned int block = nb_of_blocks; block-- > 0;) {
        void **free_block = (void **)(blocks + block * block_size);
        *free_block = *head;
        *head = free_block;
    }
    return head;
}

void *
fsb_get(fsb_allocator_t allocator)
{
    ATOMIC_BIT_ACQUIRE(__fixed_blocks);
    void **block = *allocator;
    if (block != NULL) {
        *allocator = *block;
    }
    ATOMIC_BIT_RELEASE(__fixed_blocks);
    return block;
}

void
fsb_free(fsb_allocator_t allocator, void *ptr)
{
    ATOMIC_BIT_ACQUIRE(__fixed_blocks);
    *(void **)ptr = *allocator;
    *allocator = ptr;
    ATOMIC_BIT_RELEASE(__fixed_blocks);
}
