/* The unit's own instructions that programs name, as functions. */
#ifndef HAL_UPMEM_BUILT_INS_H
#define HAL_UPMEM_BUILT_INS_H

#include <defs.h>
#include <mram.h>
#include <stdint.h>

#define __builtin_dpu_tid() me()
#define __builtin_dpu_ldma(to, from, bytes) mram_read(from, to, bytes)
#define __builtin_dpu_sdma(from, to, bytes) mram_write(from, to, bytes)

#define __builtin_cao_rr(result, value) ((result) = (uint32_t)__builtin_popcount(value))
#define __builtin_clz_rr(result, value) ((result) = (value) ? (uint32_t)__builtin_clz(value) : 32u)
#define __builtin_rol_rri(result, value, shift)                                                                        \
    ((result) = ((uint32_t)(value) << ((shift)&31)) | ((uint32_t)(value) >> ((32 - (shift)) & 31)))
#define __builtin_ror_rri(result, value, shift)                                                                        \
    ((result) = ((uint32_t)(value) >> ((shift)&31)) | ((uint32_t)(value) << ((32 - (shift)) & 31)))
#define __builtin_mul_ul_ul_rrr(result, a, b) ((result) = (uint32_t)(uint8_t)(a) * (uint8_t)(b))
#define __builtin_mul_sl_sl_rrr(result, a, b) ((result) = (int32_t)(int8_t)(a) * (int8_t)(b))

/* Four bytes at once: 1 in each byte where they are equal. */
static inline uint32_t
__hal_cmpb4(uint32_t a, uint32_t b)
{
    uint32_t equal = 0;
    for (int byte = 0; byte < 32; byte += 8) {
        equal |= (uint32_t)(((a >> byte) & 0xff) == ((b >> byte) & 0xff)) << byte;
    }
    return equal;
}
#define __builtin_cmpb4_rrr(result, a, b) ((result) = __hal_cmpb4(a, b))

#endif
