#ifndef HAL_UPMEM_STRING_H
#define HAL_UPMEM_STRING_H

#include <stddef.h>

size_t strlen(const char *text);
size_t strnlen(const char *text, size_t most);
int memcmp(const void *a, const void *b, size_t size);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t most);
void *memset(void *area, int value, size_t size);
void *memchr(const void *area, int character, size_t size);
void *memcpy(void *destination, const void *source, size_t size);
void *memmove(void *destination, const void *source, size_t size);
char *strcat(char *destination, const char *source);
char *strncat(char *destination, const char *source, size_t most);
char *strchr(const char *text, int character);
char *strrchr(const char *text, int character);
char *strcpy(char *destination, const char *source);
char *strncpy(char *destination, const char *source, size_t most);
char *stpcpy(char *destination, const char *source);
char *strstr(const char *text, const char *part);
size_t strspn(const char *text, const char *accept);
size_t strcspn(const char *text, const char *reject);
char *strpbrk(const char *text, const char *accept);

#endif
