/* Called before each load and store that other tasklets may see, in programs that run under a seed: another tasklet may
 * go on instead. The compiler puts the calls where its thread sanitizer has them; the names are the sanitizer's. */

extern int __hal_budget;
void __hal_yield(void);

static inline void
point(void)
{
    if (--__hal_budget < 0) {
        __hal_yield();
    }
}

#define ACCESS(name)                                                                                                   \
    void name(void *address);                                                                                          \
    void name(void *address)                                                                                           \
    {                                                                                                                  \
        (void)address;                                                                                                 \
        point();                                                                                                       \
    }
#define ACCESSES(size)                                                                                                 \
    ACCESS(__tsan_read##size)                                                                                          \
    ACCESS(__tsan_write##size)                                                                                         \
    ACCESS(__tsan_unaligned_read##size)                                                                                \
    ACCESS(__tsan_unaligned_write##size)                                                                               \
    ACCESS(__tsan_volatile_read##size)                                                                                 \
    ACCESS(__tsan_volatile_write##size)

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void *address, unsigned int size);
void __tsan_write_range(void *address, unsigned int size);
void __tsan_func_entry(void *caller);
void __tsan_func_exit(void);
void __tsan_init(void);

void
__tsan_read_range(void *address, unsigned int size)
{
    (void)address;
    (void)size;
    point();
}

void
__tsan_write_range(void *address, unsigned int size)
{
    (void)address;
    (void)size;
    point();
}

void
__tsan_func_entry(void *caller)
{
    (void)caller;
}

void
__tsan_func_exit(void)
{
}

void
__tsan_init(void)
{
}
