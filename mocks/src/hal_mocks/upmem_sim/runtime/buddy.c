/* buddy_alloc.h: blocks of 32, 64, ... 4,096 bytes; a block's order is kept in a byte of a map beside the heap. */
#include <alloc.h>
#include <atomic_bit.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#define SMALLEST_LOG2 5
#define ORDERS 8
#define MOST_BYTES 32768u

/* A byte of the map for each 32 bytes of heap: the order of the block that begins there, and whether it is taken. */
#define TAKEN 0x80u
#define INSIDE 0x7fu

static uint8_t *heap;
static uint8_t *map;
static uint32_t slots;

ATOMIC_BIT_INIT(__buddy);

void
buddy_reset(void)
{
    memset(map, INSIDE, slots);
    for (uint32_t slot = 0; slot < slots; slot += 1u << (ORDERS - 1)) {
        map[slot] = ORDERS - 1;
    }
}

void
buddy_init(size_t size_of_heap)
{
    size_t largest = 1u << (SMALLEST_LOG2 + ORDERS - 1);
    size_of_heap = size_of_heap > MOST_BYTES ? MOST_BYTES : (size_of_heap + largest - 1) & ~(largest - 1);
    slots = size_of_heap >> SMALLEST_LOG2;
    heap = mem_alloc(size_of_heap);
    map = mem_alloc(slots);
    buddy_reset();
}

static uint8_t
order_for(size_t size)
{
    uint8_t order = 0;
    while (order < ORDERS && (1u << (SMALLEST_LOG2 + order)) < size) {
        order++;
    }
    return order;
}

static uint32_t
take(uint8_t order)
{
    uint32_t best = slots;
    for (uint32_t slot = 0; slot < slots; slot += 1u << (map[slot] & ~TAKEN)) {
        if (!(map[slot] & TAKEN) && map[slot] >= order && (best == slots || map[slot] < map[best])) {
            best = slot;
        }
    }
    if (best < slots) {
        while (map[best] > order) {
            map[best]--;
            map[best + (1u << map[best])] = map[best];
        }
        map[best] |= TAKEN;
    }
    return best;
}

void *
buddy_alloc(size_t size)
{
    uint8_t order = order_for(size);
    if (order >= ORDERS) {
        errno = EINVAL;
        return NULL;
    }
    ATOMIC_BIT_ACQUIRE(__buddy);
    uint32_t slot = take(order);
    ATOMIC_BIT_RELEASE(__buddy);
    if (slot == slots) {
        errno = ENOMEM;
        return NULL;
    }
    return heap + (slot << SMALLEST_LOG2);
}

void
buddy_free(void *pointer)
{
    uint32_t slot = (uint32_t)((uint8_t *)pointer - heap) >> SMALLEST_LOG2;
    ATOMIC_BIT_ACQUIRE(__buddy);
    uint8_t order = map[slot] & ~TAKEN;
    map[slot] = order;
    while (order < ORDERS - 1) {
        uint32_t buddy = slot ^ (1u << order);
        if (map[buddy] != order) {
            break;
        }
        uint32_t upper = slot > buddy ? slot : buddy;
        slot = slot < buddy ? slot : buddy;
        map[upper] = INSIDE;
        map[slot] = ++order;
    }
    ATOMIC_BIT_RELEASE(__buddy);
}

void *
buddy_realloc(void *pointer, size_t size)
{
    if (pointer == NULL) {
        return buddy_alloc(size);
    }
    uint8_t order = map[(uint32_t)((uint8_t *)pointer - heap) >> SMALLEST_LOG2] & ~TAKEN;
    size_t had = 1u << (SMALLEST_LOG2 + order);
    if (order_for(size) == order) {
        return pointer;
    }
    void *fresh = buddy_alloc(size);
    if (fresh != NULL) {
        memcpy(fresh, pointer, had < size ? had : size);
        buddy_free(pointer);
    }
    return fresh;
}
