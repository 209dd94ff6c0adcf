/* Event sets: what happens to a GPU is told to those who registered for it, once, from then on. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "library.h"

enum { DOUBLE_BIT = 2, XID = 8, SUPPORTED = DOUBLE_BIT | XID };

/* One GPU in a set, and up to where it has been told: a time, and among events of one time an id. */
struct registration {
    struct hal_gpu *gpu;
    unsigned index;
    unsigned long long types;
    double told_at;
    uint64_t told_id;
};

struct event_set {
    pthread_mutex_t lock;
    unsigned count;
    struct registration *registrations;
};

/* Find the first event after what has been told that has happened; false if there is none. */
static bool next_event(const struct registration *registration, unsigned long long types, double now,
                       struct hal_event *first) {
    const struct hal_gpu *gpu = registration->gpu;
    for (;;) {
        uint64_t generation = generation_of(&gpu->timeline_generation);
        const struct hal_timeline *timeline = &gpu->timelines[generation & 1];
        bool found = false;
        for (unsigned at = 0; at < timeline->event_count && at < HAL_EVENTS; at++) {
            struct hal_event event = timeline->events[at];
            bool told = event.at < registration->told_at ||
                        (event.at == registration->told_at && event.id <= registration->told_id);
            if (told || event.at > now || !(event.type & types)) continue;
            if (!found || event.at < first->at || (event.at == first->at && event.id < first->id)) *first = event;
            found = true;
        }
        atomic_thread_fence(memory_order_acquire);
        if (generation_of(&gpu->timeline_generation) == generation) return found;
    }
}

EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *made) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (made == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    struct event_set *set = calloc(1, sizeof *set);
    if (set == NULL) return NVML_ERROR_MEMORY;
    pthread_mutex_init(&set->lock, NULL);
    *made = set;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (set == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_destroy(&set->lock);
    free(set->registrations);
    free(set);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (types == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *types = gpu->has_ecc ? SUPPORTED : XID;
    return NVML_SUCCESS;
}

/* Registering again adds types; what has happened before is not told. */
EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (set == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~(unsigned long long)SUPPORTED) return NVML_ERROR_NOT_SUPPORTED;
    pthread_mutex_lock(&set->lock);
    struct registration *registration = NULL;
    for (unsigned at = 0; at < set->count; at++)
        if (set->registrations[at].index == device->index) registration = &set->registrations[at];
    if (registration == NULL) {
        struct registration *grown = realloc(set->registrations, (set->count + 1) * sizeof *grown);
        if (grown == NULL) {
            result = NVML_ERROR_MEMORY;
        } else {
            set->registrations = grown;
            registration = &grown[set->count++];
            *registration = (struct registration){.gpu = sight.gpu, .index = device->index, .told_at = sight.now};
            /* Of events at this very moment, those there are have happened before; ids tell them from later ones. */
            struct hal_event event;
            registration->told_id = 0;
            while (next_event(registration, SUPPORTED, sight.now, &event)) registration->told_id = event.id;
        }
    }
    if (registration != NULL) registration->types |= types;
    pthread_mutex_unlock(&set->lock);
    return result;
}

/* Hand out the earliest event of all GPUs in the set. A lost GPU has nothing more to say than that it was lost. */
static bool take_event(struct event_set *set, nvmlEventData_t *data) {
    struct registration *whose = NULL;
    struct hal_event first = {0}, event;
    double now = clock_now();
    pthread_mutex_lock(&set->lock);
    for (unsigned at = 0; at < set->count; at++) {
        struct registration *registration = &set->registrations[at];
        if (!next_event(registration, registration->types, now, &event)) continue;
        if (whose == NULL || event.at < first.at || (event.at == first.at && event.id < first.id)) {
            whose = registration;
            first = event;
        }
    }
    if (whose != NULL) {
        whose->told_at = first.at;
        whose->told_id = first.id;
        *data = (nvmlEventData_t){
            .device = &board_at(whose->index)->whole,
            .eventType = first.type,
            .eventData = first.data,
            .gpuInstanceId = first.instance,
            .computeInstanceId = first.compute,
        };
    }
    pthread_mutex_unlock(&set->lock);
    return whose != NULL;
}

static double waited_since(const struct timespec *start) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - start->tv_sec) * 1e3 + (double)(now.tv_nsec - start->tv_nsec) / 1e6;
}

/* Without a thread of its own the library looks now and then: every half millisecond at first, every five later. */
EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned milliseconds) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (set == NULL || data == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;;) {
        if (take_event(set, data)) return NVML_SUCCESS;
        double waited = waited_since(&start);
        if (waited >= milliseconds) return NVML_ERROR_TIMEOUT;
        double pause = waited < 1000 ? 0.5 : 5;
        if (pause > milliseconds - waited) pause = milliseconds - waited;
        struct timespec span = {0, (long)(pause * 1e6)};
        nanosleep(&span, NULL);
    }
}

/* The older shape ends before the instances. */
EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, void *data, unsigned milliseconds) {
    nvmlEventData_t whole;
    if (data == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = nvmlEventSetWait_v2(set, &whole, milliseconds);
    if (result == NVML_SUCCESS) __builtin_memcpy(data, &whole, offsetof(nvmlEventData_t, gpuInstanceId));
    return result;
}
