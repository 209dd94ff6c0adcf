#ifndef HAL_UPMEM_STDLIB_H
#define HAL_UPMEM_STDLIB_H

#include <attributes.h>
#include <stddef.h>

#define EXIT_FAILURE 1
#define EXIT_SUCCESS 0

_Noreturn void abort(void);
_Noreturn void exit(int status);
int atoi(const char *text);
long atol(const char *text);
long strtol(const char *text, char **end, int base);

typedef struct {
    int quot;
    int rem;
} div_t;

typedef struct {
    long quot;
    long rem;
} ldiv_t;

static inline char *
getenv(const char *name)
{
    (void)name;
    return NULL;
}

static inline int
abs(int x)
{
    return x < 0 ? -x : x;
}

static inline long
labs(long x)
{
    return x < 0 ? -x : x;
}

static inline div_t
div(int numerator, int denominator)
{
    return (div_t) { numerator / denominator, numerator % denominator };
}

static inline ldiv_t
ldiv(long numerator, long denominator)
{
    return (ldiv_t) { numerator / denominator, numerator % denominator };
}

#endif
