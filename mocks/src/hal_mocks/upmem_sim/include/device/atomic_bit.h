/* The unit's 256 atomic bits, by the address of a byte that stands for one. */
#ifndef HAL_UPMEM_ATOMIC_BIT_H
#define HAL_UPMEM_ATOMIC_BIT_H

#include <attributes.h>
#include <macro_utils.h>
#include <stdint.h>

#define ATOMIC_BIT_GET(_name) __CONCAT(__atomic_bit_, _name)
#define ATOMIC_BIT_INIT(_name) uint8_t __atomic_bit ATOMIC_BIT_GET(_name)
#define ATOMIC_BIT_EXTERN(_name) extern uint8_t ATOMIC_BIT_GET(_name)

extern uint8_t __atomic_start_addr;
#define ATOMIC_BIT_INDEX(_name) (&ATOMIC_BIT_GET(_name) - &__atomic_start_addr)

void __hal_acquire(const uint8_t *bit);
int __hal_try_acquire(const uint8_t *bit);
void __hal_release(const uint8_t *bit);

#define ATOMIC_BIT_ACQUIRE(_name) __hal_acquire(&ATOMIC_BIT_GET(_name))
#define ATOMIC_BIT_RELEASE(_name) __hal_release(&ATOMIC_BIT_GET(_name))
#define __ATOMIC_BIT_ACQUIRE(_reg, _bit) __hal_acquire((const uint8_t *)(uintptr_t)(_reg) + (uintptr_t)(_bit))
#define __ATOMIC_BIT_RELEASE(_reg, _bit) __hal_release((const uint8_t *)(uintptr_t)(_reg) + (uintptr_t)(_bit))

#endif
