/* Memory and how busy a GPU is. */
#include "library.h"

/* Return total, reserved and used of a GPU or a MIG device; what it says of itself may be a lie. */
static nvmlReturn_t measure(nvmlDevice_t device, uint64_t *total, uint64_t *reserved, uint64_t *used) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (device->slot < 0) {
        *total = sight.moment.memory_bytes;
        *reserved = sight.gpu->reserved_bytes;
        *used = sight.moment.memory_used_told != UINT64_MAX ? sight.moment.memory_used_told : used_everywhere(&sight);
    } else {
        struct hal_managed managed;
        read_managed(sight.gpu, &managed);
        *total = sight.gpu->profiles[managed.instances[device->slot].profile].memory_bytes;
        *reserved = 0;
        *used = used_bytes(device);
    }
    if (*used > *total) *used = *total;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    if (memory == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    uint64_t total, reserved, used;
    nvmlReturn_t result = measure(device, &total, &reserved, &used);
    if (result == NVML_SUCCESS) *memory = (nvmlMemory_t){total, total - used, used};
    return result;
}

#if HAL_DRIVER >= 515
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    if (memory == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != NVML_STRUCT_VERSION(nvmlMemory_v2_t, 2)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    uint64_t total, reserved, used;
    nvmlReturn_t result = measure(device, &total, &reserved, &used);
    if (result != NVML_SUCCESS) return result;
    memory->total = total;
    memory->reserved = reserved;
    memory->free = total - used;
    memory->used = used;
    return NVML_SUCCESS;
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (memory == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const uint64_t own = 1 << 20; /* what the driver itself maps */
    *memory = (nvmlBAR1Memory_t){sight.gpu->bar1_bytes, sight.gpu->bar1_bytes - own, own};
    return NVML_SUCCESS;
}

/* A GPU in MIG mode does not say how busy it is as a whole. */
static nvmlReturn_t see_load(nvmlDevice_t device, struct sight *sight) {
    nvmlReturn_t result = see(device, sight);
    if (result != NVML_SUCCESS) return result;
    struct hal_managed managed;
    read_managed(sight->gpu, &managed);
    return managed.mig ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

/* The share of time that mock programs have computed since this program asked last; 0 the first time. */
static unsigned computing_percent(struct sight *sight) {
    struct traffic *before = &sight->device->computing, now = {sight->now, context_counter(sight->device, 0)};
    double span = now.at - before->at;
    if (before->at <= 0 || span <= 0) {
        if (before->at <= 0) *before = now;
        return 0;
    }
    unsigned percent = (unsigned)((double)(now.count - before->count) * 1e-7 / span + 0.5);
    *before = now;
    return percent;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    struct sight sight;
    nvmlReturn_t result = see_load(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (utilization == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned busy = sight.moment.utilization + computing_percent(&sight);
    if (busy > 100) busy = 100;
    *utilization = (nvmlUtilization_t){busy, busy / 2};
    return NVML_SUCCESS;
}

static nvmlReturn_t put_engine(nvmlDevice_t device, unsigned *utilization, unsigned *period) {
    struct sight sight;
    nvmlReturn_t result = see_load(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (utilization == NULL || period == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *utilization = 0; /* nothing in the model encodes or decodes */
    *period = 167000;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period) {
    return put_engine(device, utilization, period);
}

EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned *utilization, unsigned *period) {
    return put_engine(device, utilization, period);
}
