/* mram_unaligned.h. A word of MRAM that is changed in part is held by a virtual mutex meanwhile. */
#include <defs.h>
#include <mram_unaligned.h>
#include <string.h>
#include <vmutex.h>

#define LOCKS 2048u

VMUTEX_INIT(__mram_words, LOCKS, 8)

static uint64_t words[DPU_NR_THREADS] __dma_aligned;

static uint16_t
lock_of(uintptr_t address)
{
    return (uint16_t)((address >> 3) & (LOCKS - 1));
}

void *
__hal_mram_word_lock(uintptr_t address)
{
    uint8_t *word = (uint8_t *)&words[me()];
    vmutex_lock(&__mram_words, lock_of(address));
    mram_read((__mram_ptr void *)(address & ~(uintptr_t)7), word, 8);
    return word + (address & 7);
}

void
__hal_mram_word_unlock(uintptr_t address)
{
    mram_write(&words[me()], (__mram_ptr void *)(address & ~(uintptr_t)7), 8);
    vmutex_unlock(&__mram_words, lock_of(address));
}

void *
mram_read_unaligned(const __mram_ptr void *from, void *buffer, unsigned int nb_of_bytes)
{
    uintptr_t address = (uintptr_t)from;
    unsigned int offset = address & 7;
    mram_read((const __mram_ptr void *)(address - offset), buffer, (nb_of_bytes + offset + 7) & ~7u);
    return (uint8_t *)buffer + offset;
}

static void
write_part(const uint8_t *from, uintptr_t address, unsigned int bytes)
{
    memcpy(__hal_mram_word_lock(address), from, bytes);
    __hal_mram_word_unlock(address);
}

void
mram_write_unaligned(const void *from, __mram_ptr void *dest, unsigned int nb_of_bytes)
{
    const uint8_t *source = from;
    uintptr_t address = (uintptr_t)dest;
    unsigned int before = (8 - (address & 7)) & 7;
    if (before > nb_of_bytes) {
        before = nb_of_bytes;
    }
    if (before > 0) {
        write_part(source, address, before);
    }
    /* The bytes of whole words may lie anywhere in WRAM: they go through the tasklet's own word. */
    for (source += before, address += before, nb_of_bytes -= before; nb_of_bytes >= 8;
         source += 8, address += 8, nb_of_bytes -= 8) {
        memcpy(&words[me()], source, 8);
        mram_write(&words[me()], (__mram_ptr void *)address, 8);
    }
    if (nb_of_bytes > 0) {
        write_part(source, address, nb_of_bytes);
    }
}
