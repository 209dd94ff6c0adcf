/* A mutex is an atomic bit: who asks for one that is taken tries again until it is free. */
#ifndef HAL_UPMEM_MUTEX_H
#define HAL_UPMEM_MUTEX_H

#include <atomic_bit.h>
#include <stdbool.h>
#include <stdint.h>
#include <sysdef.h>

typedef uint8_t *mutex_id_t;

#define MUTEX_GET(_name) _name
#define MUTEX_INIT(_name)                                                                                              \
    ATOMIC_BIT_INIT(__CONCAT(mutex_, _name));                                                                          \
    const mutex_id_t MUTEX_GET(_name) = &ATOMIC_BIT_GET(__CONCAT(mutex_, _name))

static inline void
mutex_lock(mutex_id_t mutex)
{
    __hal_acquire(mutex);
}

static inline bool
mutex_trylock(mutex_id_t mutex)
{
    return __hal_try_acquire(mutex) != 0;
}

static inline void
mutex_unlock(mutex_id_t mutex)
{
    __hal_release(mutex);
}

#endif
