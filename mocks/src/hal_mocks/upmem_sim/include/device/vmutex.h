/* Virtual mutexes: a bit of WRAM each, guarded by a few real ones. */
#ifndef HAL_UPMEM_VMUTEX_H
#define HAL_UPMEM_VMUTEX_H

#include <assert.h>
#include <mutex.h>
#include <stdint.h>

struct vmutex {
    uint8_t *vm;
    uint8_t *hw_mutexes;
    uint8_t hw_mutexes_mask;
};

#define VMUTEX_INIT(NAME, NB_VMUTEXES, NB_MUTEXES)                                                                     \
    static_assert(NB_MUTEXES > 0, "virtual mutexes need at least one mutex");                                          \
    static_assert(((NB_MUTEXES) & ((NB_MUTEXES)-1)) == 0, "the number of mutexes is a power of 2");                    \
    static_assert(((NB_VMUTEXES)&7) == 0, "the number of virtual mutexes is a multiple of 8");                         \
    uint8_t __atomic_bit hw_mutexes_##NAME[NB_MUTEXES];                                                                \
    uint8_t vmutex_##NAME[(NB_VMUTEXES) >> 3];                                                                         \
    struct vmutex NAME = { .vm = vmutex_##NAME, .hw_mutexes = hw_mutexes_##NAME, .hw_mutexes_mask = (NB_MUTEXES)-1 };

void vmutex_lock(struct vmutex *vmutex, uint16_t id);
void vmutex_unlock(struct vmutex *vmutex, uint16_t id);

#endif
