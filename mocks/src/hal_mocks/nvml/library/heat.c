/* Temperature, power and energy. */
#include "library.h"

static unsigned rounded(double value) { return value <= 0 ? 0 : (unsigned)(value + 0.5); }

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor, unsigned *celsius) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (celsius == NULL || sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
    *celsius = rounded(sight.moment.temperature);
    return NVML_SUCCESS;
}

#if HAL_DRIVER >= 565
EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *temperature) {
    if (temperature == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (temperature->version != NVML_STRUCT_VERSION(nvmlTemperature_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned celsius;
    nvmlReturn_t result = nvmlDeviceGetTemperature(device, temperature->sensorType, &celsius);
    if (result == NVML_SUCCESS) temperature->temperature = (int)celsius;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_v1_t *margin) {
    if (margin == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (margin->version != NVML_STRUCT_VERSION(nvmlMarginTemperature_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result == NVML_SUCCESS)
        margin->marginTemperature = (int)sight.gpu->slowdown_celsius - (int)rounded(sight.moment.temperature);
    return result;
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned threshold, unsigned *celsius) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (celsius == NULL || threshold > 7) return NVML_ERROR_INVALID_ARGUMENT;
    if (threshold == 0)
        *celsius = gpu->shutdown_celsius;
    else if (threshold == 1 || threshold == 3)
        *celsius = gpu->slowdown_celsius;
    else
        return NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

/* The boards of the profiles are cooled by their chassis. */
static nvmlReturn_t no_fan(nvmlDevice_t device) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *percent) {
    (void)percent;
    return no_fan(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned fan, unsigned *percent) {
    (void)fan;
    (void)percent;
    return no_fan(device);
}

EXPORT nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned *count) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result == NVML_SUCCESS) *count = 0;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (milliwatts == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *milliwatts = rounded(sight.moment.power_share * power_limit_mw(sight.gpu));
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (millijoules == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *millijoules = (unsigned long long)(sight.moment.energy_joules * 1000);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, unsigned *mode) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result == NVML_SUCCESS) *mode = 1;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *milliwatts) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (milliwatts == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *milliwatts = power_limit_mw(gpu);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *milliwatts) {
    return nvmlDeviceGetPowerManagementLimit(device, milliwatts);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned *milliwatts) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (milliwatts == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *milliwatts = gpu->power_limit_own_mw;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned *least, unsigned *most) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (least == NULL || most == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *least = gpu->power_limit_min_mw;
    *most = gpu->power_limit_max_mw;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned milliwatts) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (milliwatts < gpu->power_limit_min_mw || milliwatts > gpu->power_limit_max_mw)
        return NVML_ERROR_INVALID_ARGUMENT;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    draft.power_limit_mw = milliwatts == gpu->power_limit_own_mw ? 0 : milliwatts;
    end_change(gpu, &draft, lock, true);
    return NVML_SUCCESS;
}

#if HAL_DRIVER >= 550
EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, nvmlPowerValue_v2_t *value) {
    if (value == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (value->version != NVML_STRUCT_VERSION(nvmlPowerValue_v2_t, 2)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->powerScope != 0) return NVML_ERROR_NOT_SUPPORTED;
    return nvmlDeviceSetPowerManagementLimit(device, value->powerValueMw);
}
#endif
