/* Temperature, power, energy, clocks, and why the clocks are where they are. */
#include "library.h"

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, int sensor, unsigned *celsius) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (celsius == NULL || sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
    *celsius = (unsigned)(sight.moment.temperature + 0.5);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (milliwatts == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *milliwatts = (unsigned)(sight.moment.power_share * power_limit_mw(sight.gpu) + 0.5);
    return NVML_SUCCESS;
}
