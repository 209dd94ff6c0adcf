/* Beginning and end, and what belongs to no GPU: the mapped file, the clock, versions, the words of errors. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

#if HAL_DRIVER >= 580
#define DRIVER_VERSION "580.95.05"
#define CUDA_VERSION 13000
#elif HAL_DRIVER >= 565
#define DRIVER_VERSION "565.57.01"
#define CUDA_VERSION 12070
#elif HAL_DRIVER >= 550
#define DRIVER_VERSION "550.163.01"
#define CUDA_VERSION 12040
#elif HAL_DRIVER >= 535
#define DRIVER_VERSION "535.261.03"
#define CUDA_VERSION 12020
#elif HAL_DRIVER >= 515
#define DRIVER_VERSION "515.105.01"
#define CUDA_VERSION 11070
#else
#define DRIVER_VERSION "470.256.02"
#define CUDA_VERSION 11040
#endif

#define STRING_OF(number) #number
#define NUMBER_TEXT(number) STRING_OF(number)

struct session session;
static pthread_mutex_t session_lock = PTHREAD_MUTEX_INITIALIZER;

static void *map_file(const char *path, size_t least, bool *writable) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    *writable = descriptor >= 0;
    if (descriptor < 0) descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return NULL;
    struct stat status;
    void *mapped = MAP_FAILED;
    if (fstat(descriptor, &status) == 0 && (size_t)status.st_size >= least) {
        mapped = mmap(NULL, (size_t)status.st_size, PROT_READ | (*writable ? PROT_WRITE : 0), MAP_SHARED,
                      descriptor, 0);
    }
    close(descriptor);
    return mapped == MAP_FAILED ? NULL : mapped;
}

/* The state file is FOLDER/nvml/HOST.state, and FOLDER what the machine remembers. */
static bool set_folder(const char *path) {
    if (snprintf(session.folder, sizeof session.folder, "%s", path) >= (int)sizeof session.folder) return false;
    for (int level = 0; level < 2; level++) {
        char *slash = strrchr(session.folder, '/');
        if (slash == NULL) return false;
        *slash = '\0';
    }
    return true;
}

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double clock_now(void) {
    if (session.header->clock_kind == 2) return session.header->changed_at;
    if (session.control != NULL) return (double)session.control[session.header->clock_word] / 1e9;
    return seconds_of(CLOCK_BOOTTIME) + session.clock_offset;
}

/* Errors that a machine without a working driver gives, for whoever wants to see what a program makes of them. */
static nvmlReturn_t wanted_error(const struct hal_header *header) {
    const char *word = getenv("HAL_MOCK_NVML_INIT");
    if (word == NULL || *word == '\0') return (nvmlReturn_t)header->init_error;
    if (strcmp(word, "driver-not-loaded") == 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    if (strcmp(word, "version-mismatch") == 0) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (strcmp(word, "no-permission") == 0) return NVML_ERROR_NO_PERMISSION;
    return strcmp(word, "ok") == 0 ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

static void make_boards(void) {
    session.boards = calloc(session.header->gpu_count ? session.header->gpu_count : 1, sizeof(struct board));
    if (session.boards == NULL) return;
    for (unsigned index = 0; index < session.header->gpu_count; index++) {
        struct board *board = &session.boards[index];
        board->whole = (struct device){.gpu = gpu_at(index), .index = index, .slot = -1, .compute = -1};
        for (unsigned slot = 0; slot < HAL_INSTANCES; slot++) {
            board->instances[slot] = (struct instance){.device = &board->whole, .slot = slot};
            for (unsigned id = 0; id < HAL_COMPUTES; id++) {
                board->migs[slot][id] = board->whole;
                board->migs[slot][id].slot = (int)slot;
                board->migs[slot][id].compute = (int)id;
                board->computes[slot][id] = (struct compute){.instance = &board->instances[slot], .id = id};
            }
        }
    }
}

/* Mapped once and kept: handles given out stay good when a program ends NVML and begins it again. */
static nvmlReturn_t open_session(void) {
    if (session.boards != NULL) return wanted_error(session.header);
    const char *path = getenv("HAL_MOCK_NVML_STATE");
    if (path == NULL || !set_folder(path)) return NVML_ERROR_DRIVER_NOT_LOADED;
    bool writable;
    struct hal_header *header = map_file(path, sizeof *header, &writable);
    if (header == NULL) return NVML_ERROR_DRIVER_NOT_LOADED;
    bool ours = memcmp(header->magic, "halnvml", 8) == 0;
    if (!ours || header->layout != HAL_LAYOUT || header->gpu_bytes != sizeof(struct hal_gpu)) {
        munmap(header, sizeof *header);
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    }
    nvmlReturn_t wanted = wanted_error(header);
    if (wanted != NVML_SUCCESS) {
        munmap(header, header->file_bytes);
        return wanted;
    }
    session.header = header;
    session.writable = writable;
    session.matrix = (const uint8_t *)header + header->matrix_offset;
    session.clock_offset = seconds_of(CLOCK_REALTIME) - seconds_of(CLOCK_BOOTTIME);
    if (header->clock_kind == 1) {
        char control[4200];
        bool ignored;
        snprintf(control, sizeof control, "%s/control", session.folder);
        session.control = map_file(control, 64, &ignored);
    }
    make_boards();
    return session.boards == NULL ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&session_lock);
    nvmlReturn_t result = open_session();
    if (result == NVML_SUCCESS) session.users++;
    pthread_mutex_unlock(&session_lock);
    return result;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&session_lock);
    nvmlReturn_t result = session.users == 0 ? NVML_ERROR_UNINITIALIZED : NVML_SUCCESS;
    if (session.users > 0) session.users--;
    pthread_mutex_unlock(&session_lock);
    return result;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch ((int)result) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 5: return "Already Initialized";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 8: return "Insufficient External Power";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 11: return "Interrupt Request Issue";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case 14: return "Corrupted infoROM";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 17: return "GPU access blocked by the operating system";
    case 18: return "Driver/library version mismatch";
    case 19: return "In use by another client";
    case 20: return "Insufficient Memory";
    case 21: return "No data";
    case 22: return "The requested vgpu operation is not available on target device, becasue ECC is enabled";
    case 23: return "Insufficient Resources";
    case 24: return "Frequency Not Supported";
    case 25: return "Argument version mismatch";
    case 26: return "The requested functionality has been deprecated";
    case 27: return "System is not ready for the request";
    case 28: return "No GPUs were found";
    case 29: return "Resource not in correct state to perform requested operation";
    default: return "Unknown Error";
    }
}

nvmlReturn_t put_text(char *target, unsigned length, const char *text) {
    if (target == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    size_t needed = strlen(text) + 1;
    if (needed > length) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(target, text, needed);
    return NVML_SUCCESS;
}

#define NEED_SESSION() \
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    NEED_SESSION();
    return put_text(version, length, DRIVER_VERSION);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    NEED_SESSION();
    char text[80];
    snprintf(text, sizeof text, "%d.%s", CUDA_VERSION / 1000, DRIVER_VERSION);
    return put_text(version, length, text);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    if (version == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *version = CUDA_VERSION;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    NEED_SESSION();
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    NEED_SESSION();
    if (name == NULL || length == 0) return NVML_ERROR_INVALID_ARGUMENT;
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return NVML_ERROR_NOT_FOUND;
    ssize_t got = read(descriptor, text, sizeof text - 1);
    close(descriptor);
    if (got <= 0) return NVML_ERROR_NOT_FOUND;
    text[got] = '\0'; /* arguments end with a null byte each: the first is the program */
    snprintf(name, length, "%s", text);
    return NVML_SUCCESS;
}

/* The branch that the library stands in for; a state file of another layout is refused as a mismatched driver. */
EXPORT const char *hal_mock_driver(void) { return NUMBER_TEXT(HAL_DRIVER); }
EXPORT unsigned hal_mock_gpu_bytes(void) { return sizeof(struct hal_gpu); }
EXPORT unsigned hal_mock_header_bytes(void) { return sizeof(struct hal_header); }
