/* Many names for a few mutexes. */
#ifndef HAL_UPMEM_MUTEX_POOL_H
#define HAL_UPMEM_MUTEX_POOL_H

#include <assert.h>
#include <mutex.h>
#include <stdint.h>

struct mutex_pool {
    uint8_t *hw_mutexes;
    uint8_t hw_mutexes_mask;
};

#define MUTEX_POOL_INIT(NAME, NB_MUTEXES)                                                                              \
    static_assert(NB_MUTEXES > 0, "a pool has at least one mutex");                                                    \
    static_assert(((NB_MUTEXES) & ((NB_MUTEXES)-1)) == 0, "the number of mutexes of a pool is a power of 2");          \
    uint8_t __atomic_bit hw_mutexes_##NAME[NB_MUTEXES];                                                                \
    struct mutex_pool NAME = { .hw_mutexes = hw_mutexes_##NAME, .hw_mutexes_mask = (NB_MUTEXES)-1 };

static inline void
mutex_pool_lock(struct mutex_pool *pool, uint16_t id)
{
    mutex_lock(&pool->hw_mutexes[id & pool->hw_mutexes_mask]);
}

static inline void
mutex_pool_unlock(struct mutex_pool *pool, uint16_t id)
{
    mutex_unlock(&pool->hw_mutexes[id & pool->hw_mutexes_mask]);
}

#endif
