/* Where a tasklet begins, and the ways from a program into the library.
 *
 * A program has pointers of 32 bits, the library lies anywhere: the ways are jumps through a table of 64-bit
 * addresses that the loader fills in. Register 15 counts instructions; its value is kept at each call. */

        .section .hal, "aw", @progbits
        .balign 16
        .globl __hal_runtime, __hal_count, __hal_tasklet, CLOCKS_PER_SEC, __hal_budget
__hal_runtime:
        .fill 32, 8, 0
__hal_count:
        .quad 0
        .type __hal_tasklet, @object
__hal_tasklet:
        .long 0
        .type CLOCKS_PER_SEC, @object
CLOCKS_PER_SEC:
        .long 0
__hal_budget:
        .long 0x7fffffff

        .text
        .globl __hal_start
        .type __hal_start, @function
__hal_start:
        xorl    %r15d, %r15d
        subq    $8, %rsp
        call    main
        call    __hal_finish
        ud2

#define HAL_CALL(slot, name)                    \
        .globl name;                            \
        .type name, @function;                  \
name:   movq    %r15, __hal_count(%rip);        \
        jmp     *__hal_runtime + 8 * slot(%rip);
#include "calls.h"

        .section .note.GNU-stack, "", @progbits
