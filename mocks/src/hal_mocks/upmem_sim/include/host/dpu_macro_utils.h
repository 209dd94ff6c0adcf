#ifndef DPU_MACRO_UTILS_H
#define DPU_MACRO_UTILS_H

#define _CONCAT_X(x, y) x##y
#define _CONCAT(x, y) _CONCAT_X(x, y)
#define _XSTR(x) #x
#define _STR(x) _XSTR(x)

/* X for (set, each), I for (set, each, index). */
#define _DPU_FOREACH_VARIANT(...) _DPU_FOREACH_PICK(__VA_ARGS__, I, X, WRONG_NUMBER_OF_ARGUMENTS, )
#define _DPU_FOREACH_PICK(_1, _2, _3, _variant, ...) _variant

#endif
