/* Numbers in text, and the helpers that the compiler calls for what the host has no instruction. */
#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

int __errno[DPU_NR_THREADS];

long
strtol(const char *text, char **end, int base)
{
    const char *at = text;
    while (isspace(*at)) {
        at++;
    }
    int negative = *at == '-';
    if (*at == '-' || *at == '+') {
        at++;
    }
    if ((base == 0 || base == 16) && at[0] == '0' && (at[1] == 'x' || at[1] == 'X') && isxdigit(at[2])) {
        at += 2;
        base = 16;
    } else if (base == 0) {
        base = at[0] == '0' ? 8 : 10;
    }
    const char *first = at;
    uint64_t value = 0;
    for (;; at++) {
        int digit = isdigit(*at) ? *at - '0' : isalpha(*at) ? tolower(*at) - 'a' + 10 : base;
        if (digit >= base) {
            break;
        }
        value = value * (uint64_t)base + (uint64_t)digit;
    }
    if (end != NULL) {
        *end = (char *)(at == first ? text : at);
    }
    return negative ? -(int64_t)value : (int64_t)value;
}

long
atol(const char *text)
{
    return strtol(text, NULL, 10);
}

int
atoi(const char *text)
{
    return (int)strtol(text, NULL, 10);
}

int
__popcountdi2(uint64_t value)
{
    int count = 0;
    for (; value != 0; value &= value - 1) {
        count++;
    }
    return count;
}
