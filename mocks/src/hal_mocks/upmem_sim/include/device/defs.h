/* Who a tasklet is, and how it stops. */
#ifndef HAL_UPMEM_DEFS_H
#define HAL_UPMEM_DEFS_H

#include <attributes.h>
#include <dpufault.h>
#include <macro_utils.h>
#include <sysdef.h>

extern sysname_t __hal_tasklet;

/* The number of the tasklet that asks. Not volatile: for one tasklet it never changes. */
static inline sysname_t
me(void)
{
    sysname_t tasklet;
    __asm__("movl %1, %0" : "=r"(tasklet) : "m"(__hal_tasklet));
    return tasklet;
}

_Noreturn void halt(void);

/* Bytes of its stack that the tasklet has left. */
int check_stack(void);

#endif
