/* Errors: the SDK's numbers and words, and for each thread what led to its last one. */
#include "internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Not thread-local storage: a library that is loaded late has next to none. */
struct last {
    dpu_error_t code;
    char detail[768];
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
make_key(void)
{
    pthread_key_create(&key, free);
}

static struct last *
last(void)
{
    static struct last nobody; /* when there is no memory for one of the thread's own */
    pthread_once(&once, make_key);
    struct last *mine = pthread_getspecific(key);
    if (mine == NULL && (mine = calloc(1, sizeof *mine)) != NULL) {
        pthread_setspecific(key, mine);
    }
    return mine == NULL ? &nobody : mine;
}

static const char *const words[] = {
    [DPU_OK] = "success",
    [DPU_ERR_INTERNAL] = "internal error",
    [DPU_ERR_SYSTEM] = "system error",
    [DPU_ERR_DRIVER] = "driver error",
    [DPU_ERR_ALLOCATION] = "dpu allocation error",
    [DPU_ERR_INVALID_DPU_SET] = "invalid action for this dpu set",
    [DPU_ERR_INVALID_THREAD_ID] = "invalid thread id",
    [DPU_ERR_INVALID_NOTIFY_ID] = "invalid notify id",
    [DPU_ERR_INVALID_WRAM_ACCESS] = "invalid wram access",
    [DPU_ERR_INVALID_IRAM_ACCESS] = "invalid iram access",
    [DPU_ERR_INVALID_MRAM_ACCESS] = "invalid mram access",
    [DPU_ERR_INVALID_SYMBOL_ACCESS] = "invalid memory symbol access",
    [DPU_ERR_MRAM_BUSY] = "mram is busy",
    [DPU_ERR_TRANSFER_ALREADY_SET] = "dpu transfer is already set",
    [DPU_ERR_INVALID_PARALLEL_MEMORY_TRANSFER] = "invalid parallel transfer (should be to/from WRAM)",
    [DPU_ERR_WRAM_FIFO_FULL] = "cannot push to WRAM FIFO, FIFO full",
    [DPU_ERR_NO_PROGRAM_LOADED] = "no program has been loaded in the dpu set",
    [DPU_ERR_DIFFERENT_DPU_PROGRAMS] = "cannot access symbol on dpus with different programs",
    [DPU_ERR_CORRUPTED_MEMORY] = "corrupted memory",
    [DPU_ERR_DPU_DISABLED] = "dpu is disabled",
    [DPU_ERR_DPU_ALREADY_RUNNING] = "dpu is already running",
    [DPU_ERR_INVALID_MEMORY_TRANSFER] = "invalid memory transfer",
    [DPU_ERR_INVALID_LAUNCH_POLICY] = "invalid launch policy",
    [DPU_ERR_DPU_FAULT] = "dpu is in fault",
    [DPU_ERR_ELF_INVALID_FILE] = "invalid ELF file",
    [DPU_ERR_ELF_NO_SUCH_FILE] = "no such ELF file",
    [DPU_ERR_ELF_NO_SUCH_SECTION] = "no such ELF section",
    [DPU_ERR_TIMEOUT] = "result timeout",
    [DPU_ERR_INVALID_PROFILE] = "invalid profile",
    [DPU_ERR_UNKNOWN_SYMBOL] = "undefined symbol",
    [DPU_ERR_LOG_FORMAT] = "logging format error",
    [DPU_ERR_LOG_CONTEXT_MISSING] = "logging context missing",
    [DPU_ERR_LOG_BUFFER_TOO_SMALL] = "logging buffer too small",
    [DPU_ERR_VPD_INVALID_FILE] = "invalid VPD file",
    [DPU_ERR_VPD_NO_REPAIR] = "no repair has been generated",
    [DPU_ERR_NO_THREAD_PER_RANK] = "no thread per rank",
    [DPU_ERR_INVALID_BUFFER_SIZE] = "invalid buffer size",
    [DPU_ERR_NONBLOCKING_SYNC_CALLBACK] = "a non-blocking callback has to be asynchronous",
    [DPU_ERR_TOO_MANY_TASKLETS] = "dpu program uses more tasklets than the hardware has threads",
    [DPU_ERR_SG_TOO_MANY_BLOCKS] = "too many blocks for a scatter gather transfer",
    [DPU_ERR_SG_LENGTH_MISMATCH] = "the blocks of a scatter gather transfer have not its length",
    [DPU_ERR_SG_NOT_ACTIVATED] = "scatter gather transfers are not activated",
    [DPU_ERR_SG_NOT_MRAM_SYMBOL] = "scatter gather transfers are to and from MRAM",
};

void
error_note(dpu_error_t code, const char *detail)
{
    struct last *mine = last();
    mine->code = code;
    snprintf(mine->detail, sizeof mine->detail, "%s", detail);
    if (environment_number("HAL_UPMEM_VERBOSE", 0) > 0) {
        fprintf(stderr, "libdpu (simulated): %s\n", mine->detail);
    }
}

dpu_error_t
fail(dpu_error_t code, const char *format, ...)
{
    char detail[768];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(detail, sizeof detail, format, arguments);
    va_end(arguments);
    error_note(code, detail);
    return code;
}

PUBLIC char *
dpu_error_to_string(dpu_error_t status)
{
    uint32_t code = (uint32_t)status & 0xffffu;
    const char *word = code < sizeof words / sizeof *words && words[code] != NULL ? words[code] : "unknown error";
    const char *async = (uint32_t)status & (uint32_t)DPU_ERR_ASYNC_JOBS ? "asynchronous operation error: " : "";
    char *text = NULL;
    int made = last()->code == status && status != DPU_OK ? asprintf(&text, "%s%s: %s", async, word, last()->detail)
                                                       : asprintf(&text, "%s%s", async, word);
    return made < 0 ? NULL : text;
}

PUBLIC const char *
dpu_sim_last_error(void)
{
    return last()->detail;
}

long
environment_number(const char *name, long otherwise)
{
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') {
        return otherwise;
    }
    char *end;
    long value = strtol(text, &end, 0);
    return *end == '\0' ? value : otherwise;
}
