/* The part of <string.h> and <stdlib.h> that programs use, compiled and counted as a program's own code is. */
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *
memcpy(void *destination, const void *source, size_t size)
{
    uint8_t *to = destination;
    const uint8_t *from = source;
    if ((((uintptr_t)to | (uintptr_t)from) & 7) == 0) {
        for (; size >= 8; size -= 8, to += 8, from += 8) {
            *(uint64_t *)to = *(const uint64_t *)from;
        }
    }
    while (size-- > 0) {
        *to++ = *from++;
    }
    return destination;
}

void *
memmove(void *destination, const void *source, size_t size)
{
    uint8_t *to = destination;
    const uint8_t *from = source;
    if (to <= from || to >= from + size) {
        return memcpy(destination, source, size);
    }
    while (size-- > 0) {
        to[size] = from[size];
    }
    return destination;
}

void *
memset(void *area, int value, size_t size)
{
    uint8_t *to = area;
    if (((uintptr_t)to & 7) == 0) {
        uint64_t word = (uint8_t)value * 0x0101010101010101ull;
        for (; size >= 8; size -= 8, to += 8) {
            *(uint64_t *)to = word;
        }
    }
    while (size-- > 0) {
        *to++ = (uint8_t)value;
    }
    return area;
}

int
memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *left = a, *right = b;
    for (; size > 0; size--, left++, right++) {
        if (*left != *right) {
            return *left - *right;
        }
    }
    return 0;
}

void *
memchr(const void *area, int character, size_t size)
{
    const uint8_t *each = area;
    for (; size > 0; size--, each++) {
        if (*each == (uint8_t)character) {
            return (void *)each;
        }
    }
    return NULL;
}

size_t
strnlen(const char *text, size_t most)
{
    size_t length = 0;
    while (length < most && text[length] != '\0') {
        length++;
    }
    return length;
}

size_t
strlen(const char *text)
{
    return strnlen(text, UINT_MAX);
}

int
strncmp(const char *a, const char *b, size_t most)
{
    for (; most > 0; most--, a++, b++) {
        if (*a != *b || *a == '\0') {
            return (uint8_t)*a - (uint8_t)*b;
        }
    }
    return 0;
}

int
strcmp(const char *a, const char *b)
{
    return strncmp(a, b, UINT_MAX);
}

char *
stpcpy(char *destination, const char *source)
{
    while ((*destination = *source++) != '\0') {
        destination++;
    }
    return destination;
}

char *
strcpy(char *destination, const char *source)
{
    (void)stpcpy(destination, source);
    return destination;
}

char *
strncpy(char *destination, const char *source, size_t most)
{
    size_t length = strnlen(source, most);
    memcpy(destination, source, length);
    memset(destination + length, 0, most - length);
    return destination;
}

char *
strncat(char *destination, const char *source, size_t most)
{
    char *end = destination + strlen(destination);
    size_t length = strnlen(source, most);
    memcpy(end, source, length);
    end[length] = '\0';
    return destination;
}

char *
strcat(char *destination, const char *source)
{
    return strncat(destination, source, UINT_MAX);
}

char *
strchr(const char *text, int character)
{
    return memchr(text, character, strlen(text) + 1);
}

char *
strrchr(const char *text, int character)
{
    for (size_t length = strlen(text) + 1; length-- > 0;) {
        if (text[length] == (char)character) {
            return (char *)text + length;
        }
    }
    return NULL;
}

char *
strstr(const char *text, const char *part)
{
    size_t length = strlen(part);
    for (; strncmp(text, part, length) != 0; text++) {
        if (*text == '\0') {
            return NULL;
        }
    }
    return (char *)text;
}

size_t
strspn(const char *text, const char *accept)
{
    size_t length = 0;
    while (text[length] != '\0' && strchr(accept, text[length]) != NULL) {
        length++;
    }
    return length;
}

size_t
strcspn(const char *text, const char *reject)
{
    size_t length = 0;
    while (text[length] != '\0' && strchr(reject, text[length]) == NULL) {
        length++;
    }
    return length;
}

char *
strpbrk(const char *text, const char *accept)
{
    text += strcspn(text, accept);
    return *text == '\0' ? NULL : (char *)text;
}
