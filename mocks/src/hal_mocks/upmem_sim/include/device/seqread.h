/* Reading MRAM from front to back through a window of two pages of WRAM. */
#ifndef HAL_UPMEM_SEQREAD_H
#define HAL_UPMEM_SEQREAD_H

#include <macro_utils.h>
#include <mram.h>
#include <stdint.h>

#ifndef SEQREAD_CACHE_SIZE
#define SEQREAD_CACHE_SIZE 256
#endif

_Static_assert(SEQREAD_CACHE_SIZE == 32 || SEQREAD_CACHE_SIZE == 64 || SEQREAD_CACHE_SIZE == 128
        || SEQREAD_CACHE_SIZE == 256 || SEQREAD_CACHE_SIZE == 512 || SEQREAD_CACHE_SIZE == 1024,
    "SEQREAD_CACHE_SIZE is a power of 2 from 32 to 1024");

typedef uintptr_t seqreader_buffer_t;

typedef struct {
    seqreader_buffer_t wram_cache;
    uintptr_t mram_addr;
} seqreader_t;

seqreader_buffer_t __hal_seqread_alloc(uint32_t page);
void *__hal_seqread_init(seqreader_buffer_t cache, __mram_ptr void *mram_addr, seqreader_t *reader, uint32_t page);
void *__hal_seqread_get(void *ptr, uint32_t inc, seqreader_t *reader, uint32_t page);
void *__hal_seqread_seek(__mram_ptr void *mram_addr, seqreader_t *reader, uint32_t page);
__mram_ptr void *__hal_seqread_tell(void *ptr, seqreader_t *reader, uint32_t page);

#define seqread_alloc() __hal_seqread_alloc(SEQREAD_CACHE_SIZE)
#define seqread_init(cache, mram_addr, reader) __hal_seqread_init(cache, mram_addr, reader, SEQREAD_CACHE_SIZE)
#define seqread_get(ptr, inc, reader) __hal_seqread_get(ptr, inc, reader, SEQREAD_CACHE_SIZE)
#define seqread_seek(mram_addr, reader) __hal_seqread_seek(mram_addr, reader, SEQREAD_CACHE_SIZE)
#define seqread_tell(ptr, reader) __hal_seqread_tell(ptr, reader, SEQREAD_CACHE_SIZE)

#endif
