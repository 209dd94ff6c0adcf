/* Where the variables of a DPU program live: words of UPMEM's SDK, said to the host's compiler. */
#ifndef HAL_UPMEM_ATTRIBUTES_H
#define HAL_UPMEM_ATTRIBUTES_H

#define DEPRECATED __attribute__((deprecated))
#define __NO_RETURN _Noreturn
#define __ATTRIBUTE_NO_RETURN__ _Noreturn
#define __weak __attribute__((weak))
#define __section(s) __attribute__((section(s)))
#define __aligned(a) __attribute__((aligned(a)))
#define __used __attribute__((used))
#define __noinline __attribute__((noinline))

/* One byte of address space for each of the unit's atomic bits; nothing is ever stored there. */
#define __atomic_bit __section(".bss.__atomic")
#define __dma_aligned __aligned(8)
#define __keep __used
#define __host __aligned(8) __used __section(".dpu_host")
#define __lower_data(name) __used

/* The compiler knows one address space; a tasklet that dereferences MRAM reaches it all the same. */
#define __mram_ptr
#define __mram __section(".mram") __dma_aligned __used
#define __mram_keep __section(".mram.keep") __dma_aligned __used
/* The name begins with .bss so that large arrays take no room in the file. */
#define __mram_noinit __section(".bss.__mram_noinit") __dma_aligned __used
#define __mram_noinit_keep __section(".bss.__mram_noinit.keep") __dma_aligned __used

#endif
