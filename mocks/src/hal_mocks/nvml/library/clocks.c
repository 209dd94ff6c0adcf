/* Clocks: what they are, what they may be, what holds them back. */
#include "library.h"

enum { GRAPHICS = 0, SM = 1, MEMORY = 2, VIDEO = 3 };
enum {
    IDLE = 1,
    APPLICATIONS = 2,
    POWER_CAP = 4,
    HW_SLOWDOWN = 8,
    SW_THERMAL = 32,
    HW_THERMAL = 64,
    POWER_BRAKE = 128
};

static unsigned ceiling_mhz(const struct hal_gpu *gpu, const struct hal_managed *managed) {
    unsigned most = managed->applications_sm_mhz ? managed->applications_sm_mhz : gpu->sm_max_mhz;
    return managed->locked_sm_max_mhz && managed->locked_sm_max_mhz < most ? managed->locked_sm_max_mhz : most;
}

/* See the SM clock as the model has it, and as settings hold it back. */
static nvmlReturn_t see_clock(nvmlDevice_t device, struct sight *sight, unsigned *sm_mhz, bool *held_back) {
    nvmlReturn_t result = see(device, sight);
    if (result != NVML_SUCCESS) return result;
    struct hal_managed managed;
    read_managed(sight->gpu, &managed);
    unsigned ceiling = ceiling_mhz(sight->gpu, &managed);
    *held_back = sight->moment.sm_mhz > ceiling;
    *sm_mhz = *held_back ? ceiling : sight->moment.sm_mhz;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    struct sight sight;
    unsigned sm_mhz;
    bool held_back;
    nvmlReturn_t result = see_clock(device, &sight, &sm_mhz, &held_back);
    if (result != NVML_SUCCESS) return result;
    if (mhz == NULL || type > VIDEO) return NVML_ERROR_INVALID_ARGUMENT;
    *mhz = type == MEMORY ? sight.moment.memory_mhz : sm_mhz;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (mhz == NULL || type > VIDEO) return NVML_ERROR_INVALID_ARGUMENT;
    *mhz = type == MEMORY ? gpu->memory_max_mhz : gpu->sm_max_mhz;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    return nvmlDeviceGetMaxClockInfo(device, type, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    nvmlReturn_t result = nvmlDeviceGetMaxClockInfo(device, type, mhz);
    if (result != NVML_SUCCESS) return result;
    struct hal_managed managed;
    read_managed(device->gpu, &managed);
    unsigned chosen = type == MEMORY ? managed.applications_memory_mhz : managed.applications_sm_mhz;
    if (chosen) *mhz = chosen;
    return NVML_SUCCESS;
}

/* NVML's clock ids: current, applications' target, applications' default, customer's boost. */
EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, unsigned type, unsigned id, unsigned *mhz) {
    switch (id) {
    case 0: return nvmlDeviceGetClockInfo(device, type, mhz);
    case 1: return nvmlDeviceGetApplicationsClock(device, type, mhz);
    case 2: return nvmlDeviceGetDefaultApplicationsClock(device, type, mhz);
    case 3: return nvmlDeviceGetMaxCustomerBoostClock(device, type, mhz);
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}

static nvmlReturn_t set_clocks(nvmlDevice_t device, unsigned memory_mhz, unsigned sm_mhz) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if ((memory_mhz && memory_mhz != gpu->memory_max_mhz) || sm_mhz > gpu->sm_max_mhz)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    draft.applications_memory_mhz = memory_mhz;
    draft.applications_sm_mhz = sm_mhz;
    end_change(gpu, &draft, lock, true);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetApplicationsClocks(nvmlDevice_t device, unsigned memory_mhz, unsigned sm_mhz) {
    return memory_mhz == 0 || sm_mhz == 0 ? NVML_ERROR_INVALID_ARGUMENT : set_clocks(device, memory_mhz, sm_mhz);
}

EXPORT nvmlReturn_t nvmlDeviceResetApplicationsClocks(nvmlDevice_t device) { return set_clocks(device, 0, 0); }

static nvmlReturn_t lock_clocks(nvmlDevice_t device, unsigned least, unsigned most) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    draft.locked_sm_min_mhz = least;
    draft.locked_sm_max_mhz = most;
    end_change(gpu, &draft, lock, true);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned least, unsigned most) {
    return most == 0 || least > most ? NVML_ERROR_INVALID_ARGUMENT : lock_clocks(device, least, most);
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) { return lock_clocks(device, 0, 0); }

/* One number into a list that may be too short: the convention of all of NVML's lists. */
static nvmlReturn_t put_one(unsigned *count, unsigned *list, unsigned value) {
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = list == NULL ? 0 : *count;
    *count = 1;
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    list[0] = value;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned *count, unsigned *mhz) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    return result != NVML_SUCCESS ? result : put_one(count, mhz, gpu->memory_max_mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned memory_mhz, unsigned *count,
                                                         unsigned *mhz) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    return memory_mhz != gpu->memory_max_mhz ? NVML_ERROR_NOT_FOUND : put_one(count, mhz, gpu->sm_max_mhz);
}

static nvmlReturn_t put_reasons(nvmlDevice_t device, unsigned long long *reasons) {
    struct sight sight;
    unsigned sm_mhz;
    bool held_back;
    nvmlReturn_t result = see_clock(device, &sight, &sm_mhz, &held_back);
    if (result != NVML_SUCCESS) return result;
    if (reasons == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *reasons = sight.moment.reasons | (held_back ? APPLICATIONS : 0);
    return NVML_SUCCESS;
}

static nvmlReturn_t put_known_reasons(nvmlDevice_t device, unsigned long long *reasons) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (reasons == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *reasons = IDLE | APPLICATIONS | POWER_CAP | HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return put_reasons(device, reasons);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return put_known_reasons(device, reasons);
}

#if HAL_DRIVER >= 535
EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return put_reasons(device, reasons);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return put_known_reasons(device, reasons);
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned *state) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result == NVML_SUCCESS) *state = sight.moment.performance_state;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, unsigned *state) {
    return nvmlDeviceGetPerformanceState(device, state);
}
