#ifndef HAL_UPMEM_MACRO_UTILS_H
#define HAL_UPMEM_MACRO_UTILS_H

#include <dpu_characteristics.h>

#define __STR(x) __STR_AGAIN(x)
#define __STR_AGAIN(x) #x
#define __CONCAT(x, y) __CONCAT_AGAIN(x, y)
#define __CONCAT_AGAIN(x, y) x##y

#endif
