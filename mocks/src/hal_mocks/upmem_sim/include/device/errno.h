/* One errno for each tasklet. The numbers are those of the SDK, not those of the host. */
#ifndef HAL_UPMEM_ERRNO_H
#define HAL_UPMEM_ERRNO_H

#include <defs.h>

extern int __errno[];
#define errno (__errno[me()])

#define E2BIG 1
#define EACCES 2
#define EAGAIN 6
#define EALREADY 7
#define EBUSY 10
#define EDEADLK 16
#define EDOM 18
#define EEXIST 20
#define EFAULT 21
#define EINTR 27
#define EINVAL 28
#define EIO 29
#define ENODEV 44
#define ENOENT 45
#define ENOMEM 49
#define ENOSPC 52
#define ENOSYS 55
#define ENOTSUP 61
#define EOVERFLOW 65
#define EPERM 67
#define ERANGE 72
#define ETIMEDOUT 78

#endif
