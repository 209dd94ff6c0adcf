/* How a call sees its GPU: which handle, which moment, lost or hanging, and what was set. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "library.h"

struct hal_gpu *gpu_at(unsigned index) {
    return (struct hal_gpu *)((char *)session.header + sizeof(struct hal_header)) + index;
}

struct board *board_at(unsigned index) { return &session.boards[index]; }

uint64_t generation_of(const uint64_t *word) {
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire);
}

static void sleep_seconds(double seconds) {
    struct timespec span = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&span, &span) != 0 && errno == EINTR) {
    }
}

/* Take the moment that holds now, and move what moves within it. */
static void take_moment(struct sight *sight) {
    struct hal_gpu *gpu = sight->gpu;
    for (;;) {
        uint64_t generation = generation_of(&gpu->timeline_generation);
        const struct hal_timeline *timeline = &gpu->timelines[generation & 1];
        unsigned count = timeline->moment_count, chosen = 0;
        if (count > HAL_MOMENTS) count = HAL_MOMENTS;
        while (chosen + 1 < count && timeline->at[chosen + 1] <= sight->now) chosen++;
        sight->moment = timeline->moments[chosen];
        double since = sight->now - sight->moment.at;
        if (since > 0) {
            sight->moment.energy_joules += sight->moment.joules_per_second * since;
            sight->moment.replays += sight->moment.replays_per_second * since;
            if (chosen + 1 < count) {
                const struct hal_moment *next = &timeline->moments[chosen + 1];
                double share = since / (next->at - sight->moment.at);
                sight->moment.temperature += (next->temperature - sight->moment.temperature) * share;
            }
        }
        atomic_thread_fence(memory_order_acquire);
        if (generation_of(&gpu->timeline_generation) == generation) return;
    }
}

static bool is_handle(nvmlDevice_t handle) {
    const char *address = (const char *)handle, *first = (const char *)session.boards;
    return address >= first && address < (const char *)(session.boards + session.header->gpu_count);
}

nvmlReturn_t see_any(nvmlDevice_t handle, struct sight *sight) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (!is_handle(handle)) return NVML_ERROR_INVALID_ARGUMENT;
    sight->device = handle;
    sight->gpu = handle->gpu;
    bool waited = false;
    for (;;) {
        sight->now = clock_now();
        take_moment(sight);
        if (sight->moment.error != 0) return (nvmlReturn_t)sight->moment.error;
        if (sight->moment.hangs)
            sleep_seconds(0.002);
        else if (sight->moment.slow_seconds > 0 && !waited) {
            sleep_seconds(sight->moment.slow_seconds);
            waited = true;
        } else
            break;
    }
    if (handle->slot >= 0) {
        struct hal_managed managed;
        read_managed(handle->gpu, &managed);
        const struct hal_instance *instance = &managed.instances[handle->slot];
        if (!instance->exists || !instance->computes[handle->compute].exists) return NVML_ERROR_NOT_FOUND;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t see(nvmlDevice_t handle, struct sight *sight) {
    nvmlReturn_t result = see_any(handle, sight);
    return result == NVML_SUCCESS && handle->slot >= 0 ? NVML_ERROR_NOT_SUPPORTED : result;
}

nvmlReturn_t know(nvmlDevice_t handle, struct hal_gpu **gpu) {
    struct sight sight;
    nvmlReturn_t result = see(handle, &sight);
    *gpu = sight.gpu;
    return result;
}

void read_managed(struct hal_gpu *gpu, struct hal_managed *managed) {
    for (;;) {
        uint64_t generation = generation_of(&gpu->managed_generation);
        *managed = gpu->managed[generation & 1];
        atomic_thread_fence(memory_order_acquire);
        if (generation_of(&gpu->managed_generation) == generation) return;
    }
}

nvmlReturn_t begin_change(struct hal_gpu *gpu, struct hal_managed *draft, int *lock) {
    if (!session.writable) return NVML_ERROR_NO_PERMISSION;
    char path[4200];
    snprintf(path, sizeof path, "%s/gpu.lock", session.folder);
    *lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (*lock < 0) return NVML_ERROR_NO_PERMISSION;
    while (flock(*lock, LOCK_EX) != 0 && errno == EINTR) {
    }
    read_managed(gpu, draft);
    return NVML_SUCCESS;
}

/* The page counts changes, so that Python's driver looks again. */
static void count_change(void) {
    char path[4200];
    snprintf(path, sizeof path, "%s/gpu.page", session.folder);
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) return;
    uint64_t count = 0;
    if (pread(descriptor, &count, sizeof count, 0) >= 0) {
        count++;
        if (pwrite(descriptor, &count, sizeof count, 0) < 0) count = 0;
    }
    close(descriptor);
}

void end_change(struct hal_gpu *gpu, const struct hal_managed *draft, int lock, bool commit) {
    if (commit) {
        count_change(); /* before it, too: should we be killed in between, the others look again */
        uint64_t generation = generation_of(&gpu->managed_generation);
        gpu->managed[(generation + 1) & 1] = *draft;
        atomic_store_explicit((_Atomic uint64_t *)&gpu->managed_generation, generation + 1, memory_order_release);
        count_change();
    }
    close(lock);
}

unsigned power_limit_mw(struct hal_gpu *gpu) {
    struct hal_managed managed;
    read_managed(gpu, &managed);
    return managed.power_limit_mw ? managed.power_limit_mw : gpu->power_limit_own_mw;
}

bool links_down(const struct sight *sight) {
    const struct hal_moment *moment = &sight->moment;
    if (moment->links_down) return true;
    if (moment->flap_seconds <= 0) return false;
    double turns = (sight->now - moment->flap_onset) / moment->flap_seconds;
    return turns < 1e15 && turns - (double)(int64_t)turns < 0.5;
}

bool any_instance(const struct hal_managed *managed) {
    for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
        if (managed->instances[slot].exists) return true;
    return false;
}

/* contexts */

const volatile uint64_t *contexts_of(struct device *device, const char *id) {
    if (device->contexts != NULL && strcmp(device->contexts_of, id) == 0) return device->contexts;
    char path[4300];
    snprintf(path, sizeof path, "%s/devices/%s/contexts", session.folder, id);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return NULL;
    struct stat status;
    size_t words = session.header->contexts_counters + 4UL * session.header->contexts_counter_stride;
    const volatile uint64_t *page = NULL;
    if (fstat(descriptor, &status) == 0 && (size_t)status.st_size >= 8 * words) {
        void *mapped = mmap(NULL, 8 * words, PROT_READ, MAP_SHARED, descriptor, 0);
        if (mapped != MAP_FAILED) page = mapped;
    }
    close(descriptor);
    /* An older mapping stays: another thread may be reading it. There is one for each MIG device ever seen. */
    device->contexts = page;
    snprintf(device->contexts_of, sizeof device->contexts_of, "%s", id);
    return page;
}

bool is_alive(uint64_t pid) { return pid != 0 && (kill((pid_t)pid, 0) == 0 || errno == EPERM); }

static uint64_t used_on(const volatile uint64_t *page) {
    if (page == NULL) return 0;
    uint64_t used = 0;
    for (unsigned slot = 0; slot < session.header->contexts_slots; slot++) {
        uint64_t bytes = page[session.header->contexts_memory + slot];
        if (bytes != 0 && is_alive(page[session.header->contexts_pid + slot])) used += bytes;
    }
    return used;
}

uint64_t used_bytes(struct device *device) {
    if (device->slot < 0) return used_on(contexts_of(device, device->gpu->uuid));
    struct hal_managed managed;
    char id[96];
    read_managed(device->gpu, &managed);
    mig_uuid(device->gpu, &managed.instances[device->slot], (unsigned)device->compute, id);
    return used_on(contexts_of(device, id));
}

uint64_t used_everywhere(struct sight *sight) {
    struct board *board = board_at(sight->device->index);
    uint64_t used = used_bytes(&board->whole);
    struct hal_managed managed;
    read_managed(sight->gpu, &managed);
    for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
        for (unsigned id = 0; id < HAL_COMPUTES; id++)
            if (managed.instances[slot].exists && managed.instances[slot].computes[id].exists)
                used += used_bytes(&board->migs[slot][id]);
    return used;
}

uint64_t context_counter(struct device *device, unsigned which) {
    const volatile uint64_t *page = contexts_of(device, device->gpu->uuid);
    if (page == NULL) return 0;
    const struct hal_header *header = session.header;
    uint64_t sum = page[header->contexts_base + which];
    for (unsigned slot = 0; slot < header->contexts_slots; slot++)
        sum += page[header->contexts_counters + which * header->contexts_counter_stride + slot];
    return sum;
}

void mig_uuid(const struct hal_gpu *gpu, const struct hal_instance *instance, unsigned compute, char *text) {
    const uint8_t *bytes = gpu->profiles[instance->profile].places[instance->place].uuids + 16 * compute;
    char *end = text + sprintf(text, "MIG-");
    for (unsigned at = 0; at < 16; at++)
        end += sprintf(end, "%s%02x", at == 4 || at == 6 || at == 8 || at == 10 ? "-" : "", bytes[at]);
}
