/* What a program says goes to its unit's log, which the host reads with dpu_log_read. */
#ifndef HAL_UPMEM_STDIO_H
#define HAL_UPMEM_STDIO_H

#include <attributes.h>
#include <stddef.h>

#define STDOUT_BUFFER_INIT(size)                                                                                       \
    _Static_assert((size) >= 8 && ((size)&7) == 0, "the size of the log is a multiple of 8 and not 0");                \
    unsigned char __mram_noinit __stdout_buffer[(size)];                                                               \
    const unsigned int __stdout_buffer_size __used __section(".rodata.__hal_keep") = (size);

int printf(const char *restrict format, ...);
int puts(const char *text);
int putchar(int character);

#endif
