/* MIG devices: what a program computes on. One for each compute instance. */
#include "library.h"
#include "mig.h"

EXPORT nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_mig) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (is_mig == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *is_mig = device->slot >= 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    read_managed(gpu, &managed);
    *count = managed.mig ? gpu->compute_slices : 0;
    return NVML_SUCCESS;
}

/* In the order of their first memory slice, then of their compute instances. */
EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *found) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_mig(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (found == NULL || index >= gpu->compute_slices) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned start = 0; start < gpu->memory_slices; start++)
        for (unsigned slot = 0; slot < HAL_INSTANCES; slot++) {
            const struct hal_instance *instance = &managed.instances[slot];
            if (!instance->exists || gpu->profiles[instance->profile].places[instance->place].start != start) continue;
            for (unsigned id = 0; id < HAL_COMPUTES; id++)
                if (instance->computes[id].exists && index-- == 0) {
                    *found = &board_at(device->index)->migs[slot][id];
                    return NVML_SUCCESS;
                }
        }
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t see_part(nvmlDevice_t device, struct sight *sight, struct hal_managed *managed) {
    nvmlReturn_t result = see_any(device, sight);
    if (result != NVML_SUCCESS) return result;
    read_managed(sight->gpu, managed);
    return device->slot < 0 ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t device, nvmlDevice_t *parent) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see_part(device, &sight, &managed);
    if (result == NVML_ERROR_NOT_SUPPORTED || parent == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) *parent = &board_at(device->index)->whole;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned *id) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see_part(device, &sight, &managed);
    if (result != NVML_SUCCESS) return result;
    if (id == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *id = instance_id(sight.gpu, &managed.instances[device->slot]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned *id) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see_part(device, &sight, &managed);
    if (result != NVML_SUCCESS) return result;
    if (id == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *id = (unsigned)device->compute;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see_part(device, &sight, &managed);
    if (result != NVML_SUCCESS) return result;
    if (attributes == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_instance *instance = &managed.instances[device->slot];
    const struct hal_profile *profile = &sight.gpu->profiles[instance->profile];
    unsigned slices = instance->computes[device->compute].slices;
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = multiprocessors_of(profile, slices),
        .sharedCopyEngineCount = profile->copy_engines,
        .sharedDecoderCount = profile->decoders,
        .sharedEncoderCount = profile->encoders,
        .sharedJpegCount = profile->jpegs,
        .sharedOfaCount = profile->ofas,
        .gpuInstanceSliceCount = profile->compute_slices,
        .computeInstanceSliceCount = slices,
        .memorySizeMB = profile->memory_bytes >> 20,
    };
    return NVML_SUCCESS;
}
