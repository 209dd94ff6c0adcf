/* Modes of a board that are set and asked, and what these boards do not have. */
#include "library.h"

static nvmlReturn_t put_set(nvmlDevice_t device, unsigned *value, size_t member) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (value == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    read_managed(gpu, &managed);
    *value = *(const uint32_t *)((const char *)&managed + member);
    return NVML_SUCCESS;
}

static nvmlReturn_t set_mode(nvmlDevice_t device, unsigned value, unsigned most, size_t member) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (value > most) return NVML_ERROR_INVALID_ARGUMENT;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    *(uint32_t *)((char *)&draft + member) = value;
    end_change(gpu, &draft, lock, true);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *mode) {
    return put_set(device, mode, offsetof(struct hal_managed, persistence));
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned mode) {
    return set_mode(device, mode, 1, offsetof(struct hal_managed, persistence));
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, unsigned *mode) {
    return put_set(device, mode, offsetof(struct hal_managed, compute_mode));
}

/* Default 0, prohibited 2, one process 3; 1 has gone. */
EXPORT nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, unsigned mode) {
    return mode == 1 ? NVML_ERROR_NOT_SUPPORTED : set_mode(device, mode, 3, offsetof(struct hal_managed, compute_mode));
}

static nvmlReturn_t put_zero(nvmlDevice_t device, unsigned *value) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result == NVML_SUCCESS && value == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) *value = 0;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, unsigned *display) {
    return put_zero(device, display);
}
EXPORT nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, unsigned *active) {
    return put_zero(device, active);
}
EXPORT nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device, unsigned *mode) {
    return put_zero(device, mode);
}
EXPORT nvmlReturn_t nvmlDeviceGetPowerSource(nvmlDevice_t device, unsigned *source) { return put_zero(device, source); }

/* What the real library answers on Linux, or on a board that lacks it. */
static nvmlReturn_t lacks(nvmlDevice_t device) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

EXPORT nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    (void)current;
    (void)pending;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuOperationMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    (void)current;
    (void)pending;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetLastBBXFlushTime(nvmlDevice_t device, unsigned long long *time,
                                                  unsigned long *microseconds) {
    (void)time;
    (void)microseconds;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, unsigned policy, nvmlViolationTime_t *time) {
    (void)policy;
    (void)time;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingMode(nvmlDevice_t device, unsigned *mode) {
    (void)mode;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned *count, unsigned *pids) {
    (void)count;
    (void)pids;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned pid, void *stats) {
    (void)pid;
    (void)stats;
    return lacks(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetAccountingBufferSize(nvmlDevice_t device, unsigned *size) {
    (void)size;
    return lacks(device);
}

#if HAL_DRIVER >= 535
EXPORT nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (support == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    support->isSupportedDevice = 0;
    return NVML_SUCCESS;
}
#endif
