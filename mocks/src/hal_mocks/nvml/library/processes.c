/* Who has a context on a GPU, in the three shapes that programs of different age ask for. */
#include "library.h"

enum { MOST_PROCESSES = 512 };

static unsigned add_from(struct device *device, const char *id, unsigned instance, unsigned compute,
                         nvmlProcessInfo_t *found, unsigned count) {
    const volatile uint64_t *page = contexts_of(device, id);
    if (page == NULL) return count;
    const struct hal_header *header = session.header;
    for (unsigned slot = 0; slot < header->contexts_slots && count < MOST_PROCESSES; slot++) {
        uint64_t pid = page[header->contexts_pid + slot];
        if (!is_alive(pid)) continue;
        found[count++] = (nvmlProcessInfo_t){
            .pid = (unsigned)pid,
            .usedGpuMemory = page[header->contexts_memory + slot],
            .gpuInstanceId = instance,
            .computeInstanceId = compute,
        };
    }
    return count;
}

/* Those of a GPU include those of its MIG devices; a MIG device tells its own. */
static nvmlReturn_t find_processes(nvmlDevice_t device, nvmlProcessInfo_t *found, unsigned *count) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    struct board *board = board_at(device->index);
    read_managed(sight.gpu, &managed);
    *count = device->slot < 0 ? add_from(&board->whole, sight.gpu->uuid, NO_INSTANCE, NO_INSTANCE, found, 0) : 0;
    for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
        for (unsigned id = 0; id < HAL_COMPUTES; id++) {
            const struct hal_instance *instance = &managed.instances[slot];
            if (!instance->exists || !instance->computes[id].exists) continue;
            if (device->slot >= 0 && (device->slot != (int)slot || device->compute != (int)id)) continue;
            char uuid[96];
            mig_uuid(sight.gpu, instance, id, uuid);
            unsigned number = sight.gpu->profiles[instance->profile].places[instance->place].instance_id;
            *count = add_from(&board->migs[slot][id], uuid, number, id, found, *count);
        }
    return NVML_SUCCESS;
}

static nvmlReturn_t put_processes(nvmlDevice_t device, unsigned *count, void *list, bool old_shape) {
    nvmlProcessInfo_t found[MOST_PROCESSES];
    unsigned all, room;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = find_processes(device, found, &all);
    if (result != NVML_SUCCESS) return result;
    room = list == NULL ? 0 : *count;
    *count = all;
    if (room < all) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < all; at++) {
        if (old_shape)
            ((nvmlProcessInfo_v1_t *)list)[at] = (nvmlProcessInfo_v1_t){found[at].pid, found[at].usedGpuMemory};
        else
            ((nvmlProcessInfo_t *)list)[at] = found[at];
    }
    return NVML_SUCCESS;
}

/* Nothing in the model draws, and nothing goes through an MPS server. */
static nvmlReturn_t put_none(nvmlDevice_t device, unsigned *count) {
    struct sight sight;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = see_any(device, &sight);
    if (result == NVML_SUCCESS) *count = 0;
    return result;
}

#define COMPUTE_PROCESSES(name, old_shape) \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned *count, void *list) { \
        return put_processes(device, count, list, old_shape); \
    }
#define NO_PROCESSES(name) \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned *count, void *list) { \
        (void)list; \
        return put_none(device, count); \
    }

COMPUTE_PROCESSES(nvmlDeviceGetComputeRunningProcesses, true)
COMPUTE_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, false)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)
#if HAL_DRIVER >= 515
COMPUTE_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, false)
NO_PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
NO_PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)
#endif

#if HAL_DRIVER >= 550
EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_v1_t *list) {
    if (list == NULL || list->mode > 2) return NVML_ERROR_INVALID_ARGUMENT;
    if (list->version != NVML_STRUCT_VERSION(nvmlProcessDetailList_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlProcessInfo_t found[MOST_PROCESSES];
    unsigned all = 0;
    nvmlReturn_t result = list->mode == 0 ? find_processes(device, found, &all) : put_none(device, &all);
    if (result != NVML_SUCCESS) return result;
    unsigned room = list->procArray == NULL ? 0 : list->numProcArrayEntries;
    list->numProcArrayEntries = all;
    if (room < all) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < all; at++)
        list->procArray[at] = (nvmlProcessDetail_v1_t){
            .pid = found[at].pid,
            .usedGpuMemory = found[at].usedGpuMemory,
            .gpuInstanceId = found[at].gpuInstanceId,
            .computeInstanceId = found[at].computeInstanceId,
        };
    return NVML_SUCCESS;
}
#endif

/* No samples were taken: what the real one says of an idle GPU. */
EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, void *samples, unsigned *count,
                                                    unsigned long long since) {
    (void)samples;
    (void)since;
    nvmlReturn_t result = put_none(device, count);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_FOUND : result;
}
