/* A barrier: its tasklets go on when as many as it counts have come. */
#ifndef HAL_UPMEM_BARRIER_H
#define HAL_UPMEM_BARRIER_H

#include <atomic_bit.h>
#include <attributes.h>
#include <stdint.h>

/* Programs set these fields by hand too: count and initial_count to the number of tasklets, wait_queue to 0xff. */
typedef struct barrier_t {
    uint8_t wait_queue;
    uint8_t count;
    uint8_t initial_count;
    uint8_t lock;
} barrier_t;

#define BARRIER_INIT(_name, _counter)                                                                                  \
    _Static_assert((_counter) < 128 && (_counter) >= -127, "a barrier's counter is a byte");                           \
    ATOMIC_BIT_INIT(__CONCAT(barrier_, _name)) __used;                                                                 \
    barrier_t _name __aligned(4) = { 0xff, (uint8_t)(_counter), (uint8_t)(_counter), 0 };

void barrier_wait(barrier_t *barrier);

#endif
