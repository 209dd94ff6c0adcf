/* MRAM access without alignment: whole words are read, changed and written under a lock of their own. */
#ifndef HAL_UPMEM_MRAM_UNALIGNED_H
#define HAL_UPMEM_MRAM_UNALIGNED_H

#include <mram.h>
#include <stdint.h>

/* Reads into the buffer and returns where in it the asked bytes begin: from + offset of 0 to 7. */
void *mram_read_unaligned(const __mram_ptr void *from, void *buffer, unsigned int nb_of_bytes);
void mram_write_unaligned(const void *from, __mram_ptr void *dest, unsigned int nb_of_bytes);

/* Between these two the 8 bytes around an address are in WRAM, and nobody else changes them. */
void *__hal_mram_word_lock(uintptr_t address);
void __hal_mram_word_unlock(uintptr_t address);

#define __HAL_MRAM_UPDATE(type, dest, statement)                                                                       \
    do {                                                                                                               \
        uintptr_t __hal_address = (uintptr_t)(dest);                                                                   \
        type *__hal_word = (type *)__hal_mram_word_lock(__hal_address);                                                \
        statement;                                                                                                     \
        __hal_mram_word_unlock(__hal_address);                                                                         \
    } while (0)

#define mram_update_int_atomic(dest, update_func, args) __HAL_MRAM_UPDATE(int, dest, (*(update_func))(__hal_word, args))
#define mram_write_int_atomic(dest, val) __HAL_MRAM_UPDATE(int, dest, *__hal_word = (val))
#define mram_update_byte_atomic(dest, update_func, args)                                                               \
    __HAL_MRAM_UPDATE(uint8_t, dest, (*(update_func))(__hal_word, args))
#define mram_write_byte_atomic(dest, val) __HAL_MRAM_UPDATE(uint8_t, dest, *__hal_word = (val))

#endif
