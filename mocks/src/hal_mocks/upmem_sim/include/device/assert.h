#ifndef HAL_UPMEM_ASSERT_H
#define HAL_UPMEM_ASSERT_H

#include <dpufault.h>
#include <macro_utils.h>

#define static_assert _Static_assert

#endif

#undef assert
#ifdef NDEBUG
#define assert(ignored) ((void)0)
#else
#define assert(expression)                                                                                             \
    ((expression) ? (void)0 : __hal_fault("assertion failed: " #expression " (" __FILE__ ":" __STR(__LINE__) ")"))
#endif
