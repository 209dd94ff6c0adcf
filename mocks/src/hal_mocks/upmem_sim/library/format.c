/* printf, puts and putchar of programs: into the DPU's log.
 *
 * The unit's long has 64 bits and its pointers and size_t have 32, so formats are read here, piece by piece. */
#include "worker.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int call_printf(const char *format, ...);
int call_puts(uint32_t text);
int call_putchar(int character);

struct line {
    char text[1024];
    size_t used;
};

static void
append(struct dpu_t *dpu, const char *text, size_t size)
{
    size_t most = dpu->program->log_bytes;
    if (size > most - dpu->log_used) {
        size = most - dpu->log_used;
        dpu->log_full = true;
    }
    if (dpu->log_used + size > dpu->log_room) {
        size_t room = (dpu->log_used + size) * 2 + 256;
        char *grown = realloc(dpu->log, room);
        if (grown == NULL) {
            dpu->log_full = true;
            return;
        }
        dpu->log = grown;
        dpu->log_room = room;
    }
    memcpy(dpu->log + dpu->log_used, text, size);
    dpu->log_used += size;
}

static void
put(struct line *line, const char *text, size_t size)
{
    while (size > 0) {
        size_t part = sizeof line->text - line->used;
        part = size < part ? size : part;
        memcpy(line->text + line->used, text, part);
        line->used += part;
        text += part;
        size -= part;
        if (line->used == sizeof line->text) {
            append(self->dpu, line->text, line->used);
            line->used = 0;
        }
    }
}

/* One conversion: its flags, width and precision as they stand, its length by the unit's sizes. */
struct conversion {
    char flags[24];
    size_t used;
    bool wide;
    char kind;
};

static const char *
read_conversion(const char *at, struct conversion *conversion, va_list *arguments)
{
    conversion->used = 0;
    conversion->wide = false;
    conversion->flags[conversion->used++] = '%';
    for (; *at != '\0' && strchr("-+ #0123456789.*", *at) != NULL; at++) {
        if (conversion->used > sizeof conversion->flags - 14) {
            continue;
        }
        if (*at == '*') {
            conversion->used += (size_t)snprintf(conversion->flags + conversion->used, 12, "%d", va_arg(*arguments, int));
        } else {
            conversion->flags[conversion->used++] = *at;
        }
    }
    for (; *at != '\0' && strchr("hlzjtL", *at) != NULL; at++) {
        conversion->wide = conversion->wide || *at == 'l' || *at == 'j' || *at == 'L';
    }
    conversion->kind = *at;
    conversion->flags[conversion->used] = '\0';
    return *at == '\0' ? at : at + 1;
}

static void
put_conversion(struct line *line, const struct conversion *conversion, va_list *arguments)
{
    char format[32], text[400];
    int size = 0;
    switch (conversion->kind) {
    case 'd':
    case 'i':
        snprintf(format, sizeof format, "%slld", conversion->flags);
        size = snprintf(text, sizeof text, format,
            conversion->wide ? va_arg(*arguments, long long) : (long long)va_arg(*arguments, int));
        break;
    case 'u':
    case 'x':
    case 'X':
    case 'o':
        snprintf(format, sizeof format, "%sll%c", conversion->flags, conversion->kind);
        size = snprintf(text, sizeof text, format,
            conversion->wide ? va_arg(*arguments, unsigned long long) : (unsigned long long)va_arg(*arguments, unsigned));
        break;
    case 'c':
        snprintf(format, sizeof format, "%sc", conversion->flags);
        size = snprintf(text, sizeof text, format, va_arg(*arguments, int));
        break;
    case 'p':
        size = snprintf(text, sizeof text, "0x%x",
            (uint32_t)va_arg(*arguments, unsigned) - (uint32_t)(uintptr_t)self->base);
        break;
    case 's':
        snprintf(format, sizeof format, "%ss", conversion->flags);
        size = snprintf(text, sizeof text, format, (const char *)(uintptr_t)va_arg(*arguments, unsigned));
        break;
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
        snprintf(format, sizeof format, "%s%c", conversion->flags, conversion->kind);
        size = snprintf(text, sizeof text, format, va_arg(*arguments, double));
        break;
    case '%':
        text[0] = '%';
        size = 1;
        break;
    default:
        fault_here("printf: %%%c is no conversion", conversion->kind);
    }
    if (size > 0) {
        put(line, text, (size_t)size < sizeof text ? (size_t)size : sizeof text - 1);
    }
}

int
call_printf(const char *format, ...)
{
    struct line line = { .used = 0 };
    struct conversion conversion;
    va_list arguments;
    va_start(arguments, format);
    while (*format != '\0') {
        size_t plain = strcspn(format, "%");
        put(&line, format, plain);
        format += plain;
        if (*format == '%') {
            format = read_conversion(format + 1, &conversion, &arguments);
            put_conversion(&line, &conversion, &arguments);
        }
    }
    va_end(arguments);
    append(self->dpu, line.text, line.used);
    return 0;
}

int
call_puts(uint32_t text)
{
    const char *line = (const char *)(uintptr_t)text;
    size_t size = strlen(line);
    append(self->dpu, line, size);
    append(self->dpu, "\n", 1);
    return 0;
}

int
call_putchar(int character)
{
    char one = (char)character;
    append(self->dpu, &one, 1);
    return character;
}
