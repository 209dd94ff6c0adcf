/* seqread.h: two pages of MRAM lie in WRAM, so that an item over the edge of the first is whole. */
#include <alloc.h>
#include <seqread.h>

seqreader_buffer_t
__hal_seqread_alloc(uint32_t page)
{
    return (seqreader_buffer_t)mem_alloc(2 * page);
}

void *
__hal_seqread_seek(__mram_ptr void *mram_addr, seqreader_t *reader, uint32_t page)
{
    uintptr_t wanted = (uintptr_t)mram_addr;
    uintptr_t first = wanted & ~(uintptr_t)(page - 1);
    if (first != reader->mram_addr) {
        reader->mram_addr = first;
        mram_read((__mram_ptr void *)first, (void *)reader->wram_cache, 2 * page);
    }
    return (void *)(reader->wram_cache + (wanted - first));
}

void *
__hal_seqread_init(seqreader_buffer_t cache, __mram_ptr void *mram_addr, seqreader_t *reader, uint32_t page)
{
    reader->wram_cache = cache;
    reader->mram_addr = 0; /* no page of MRAM begins there */
    return __hal_seqread_seek(mram_addr, reader, page);
}

void *
__hal_seqread_get(void *ptr, uint32_t inc, seqreader_t *reader, uint32_t page)
{
    uintptr_t next = (uintptr_t)ptr + inc;
    if (next - reader->wram_cache >= page) {
        return __hal_seqread_seek(__hal_seqread_tell((void *)next, reader, page), reader, page);
    }
    return (void *)next;
}

__mram_ptr void *
__hal_seqread_tell(void *ptr, seqreader_t *reader, uint32_t page)
{
    (void)page;
    return (__mram_ptr void *)(reader->mram_addr + ((uintptr_t)ptr - reader->wram_cache));
}
