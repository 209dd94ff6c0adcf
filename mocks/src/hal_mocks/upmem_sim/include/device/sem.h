/* Semaphores: a count below zero is the number of tasklets that wait. */
#ifndef HAL_UPMEM_SEM_H
#define HAL_UPMEM_SEM_H

#include <atomic_bit.h>
#include <attributes.h>
#include <stdint.h>

typedef struct sem_t {
    uint8_t wait_queue;
    uint8_t count;
    uint8_t initial_count;
    uint8_t lock;
} sem_t;

#define SEMAPHORE_INIT(_name, _counter)                                                                                \
    _Static_assert((_counter) < 128 && (_counter) >= -127, "a semaphore's counter is a byte");                         \
    ATOMIC_BIT_INIT(__CONCAT(semaphore_, _name)) __used;                                                               \
    sem_t _name __aligned(4) = { 0xff, (uint8_t)(_counter), (uint8_t)(_counter), 0 };

void sem_take(sem_t *sem);
void sem_give(sem_t *sem);

#endif
