/* MIG: compute instances, parts of a GPU instance that share its memory. */
#include <stdio.h>
#include <string.h>

#include "library.h"
#include "mig.h"

/* Slices of each compute instance profile, by its number, which is its id too. */
static const unsigned slices_of[COMPUTE_INSTANCE_PROFILES] = {1, 2, 3, 4, 7, 8, 6, 0, 0};

/* A part has 1 or 2 slices, or 3 or 4 where all 7 are there to be divided; or it is the whole. */
static bool fits(const struct hal_profile *profile, unsigned number) {
    if (number >= COMPUTE_INSTANCE_PROFILES || slices_of[number] == 0) return false;
    unsigned slices = slices_of[number], all = profile->compute_slices;
    return slices == all || (slices < all && (slices <= 2 || (all >= 6 && slices <= 4)));
}

static nvmlReturn_t find(nvmlGpuInstance_t handle, unsigned number, struct hal_gpu **gpu, struct hal_managed *managed,
                         const struct hal_profile **profile) {
    nvmlReturn_t result = see_instance(handle, gpu, managed);
    if (result != NVML_SUCCESS) return result;
    *profile = &(*gpu)->profiles[managed->instances[handle->slot].profile];
    if (number >= COMPUTE_INSTANCE_PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
    return fits(*profile, number) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

unsigned multiprocessors_of(const struct hal_profile *profile, unsigned slices) {
    if (slices == profile->compute_slices) return profile->multiprocessors;
    return profile->multiprocessors / profile->compute_slices * slices;
}

/* Engines are shared: engine profile 0 is the only one. */
EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfo(nvmlGpuInstance_t handle, unsigned number,
                                                                 unsigned engines,
                                                                 nvmlComputeInstanceProfileInfo_t *info) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    const struct hal_profile *profile;
    nvmlReturn_t result = find(handle, number, &gpu, &managed, &profile);
    if (result != NVML_SUCCESS) return result;
    if (info == NULL || engines != 0) return NVML_ERROR_INVALID_ARGUMENT;
    *info = (nvmlComputeInstanceProfileInfo_t){
        .id = number,
        .sliceCount = slices_of[number],
        .instanceCount = profile->compute_slices / slices_of[number],
        .multiprocessorCount = multiprocessors_of(profile, slices_of[number]),
        .sharedCopyEngineCount = profile->copy_engines,
        .sharedDecoderCount = profile->decoders,
        .sharedEncoderCount = profile->encoders,
        .sharedJpegCount = profile->jpegs,
        .sharedOfaCount = profile->ofas,
    };
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceProfileInfoV(nvmlGpuInstance_t handle, unsigned number,
                                                                  unsigned engines,
                                                                  nvmlComputeInstanceProfileInfo_v2_t *info) {
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != NVML_STRUCT_VERSION(nvmlComputeInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlComputeInstanceProfileInfo_t plain;
    nvmlReturn_t result = nvmlGpuInstanceGetComputeInstanceProfileInfo(handle, number, engines, &plain);
    if (result != NVML_SUCCESS) return result;
    memcpy(&info->id, &plain, sizeof plain);
    struct hal_managed managed;
    read_managed(handle->device->gpu, &managed);
    const struct hal_profile *profile = &handle->device->gpu->profiles[managed.instances[handle->slot].profile];
    if (plain.sliceCount == profile->compute_slices)
        snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
    else
        snprintf(info->name, sizeof info->name, "MIG %uc.%s", plain.sliceCount, profile->name);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstancePossiblePlacements(nvmlGpuInstance_t handle, unsigned number,
                                                                        nvmlPlacement_t *placements, unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    const struct hal_profile *profile;
    nvmlReturn_t result = find(handle, number, &gpu, &managed, &profile);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned size = slices_of[number], all = profile->compute_slices / size;
    if (placements != NULL && *count < all) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned at = 0; placements != NULL && at < all; at++) placements[at] = (nvmlPlacement_t){at * size, size};
    *count = all;
    return NVML_SUCCESS;
}

/* As of GPU instances: at a start, or the first that is free; the id is the lowest that is free. */
static int place_compute(struct hal_instance *instance, unsigned all, unsigned size, unsigned start) {
    unsigned taken = 0;
    int free_id = -1;
    for (int id = 0; id < HAL_COMPUTES; id++) {
        const struct hal_compute *there = &instance->computes[id];
        if (there->exists)
            taken |= ((1U << there->slices) - 1) << there->start;
        else if (free_id < 0)
            free_id = id;
    }
    if (start != HAL_NOWHERE && (start % size != 0 || start + size > all)) return -NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned at = start == HAL_NOWHERE ? 0 : start; free_id >= 0 && at + size <= all; at += size) {
        if (!(taken & ((1U << size) - 1) << at)) {
            instance->computes[free_id] = (struct hal_compute){.exists = 1, .slices = size, .start = at};
            return free_id;
        }
        if (start != HAL_NOWHERE) break;
    }
    return -NVML_ERROR_INSUFFICIENT_RESOURCES;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceRemainingCapacity(nvmlGpuInstance_t handle, unsigned number,
                                                                       unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    const struct hal_profile *profile;
    nvmlReturn_t result = find(handle, number, &gpu, &managed, &profile);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    struct hal_instance *instance = &managed.instances[handle->slot];
    unsigned all = profile->compute_slices, size = slices_of[number];
    for (*count = 0; place_compute(instance, all, size, HAL_NOWHERE) >= 0; (*count)++) {
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t make_compute(nvmlGpuInstance_t handle, unsigned number, unsigned start,
                                 nvmlComputeInstance_t *made) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    const struct hal_profile *profile;
    int lock;
    nvmlReturn_t result = find(handle, number, &gpu, &draft, &profile);
    if (result != NVML_SUCCESS) return result;
    if (made == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    struct hal_instance *instance = &draft.instances[handle->slot];
    int id = -NVML_ERROR_NOT_FOUND;
    if (instance->exists) id = place_compute(instance, profile->compute_slices, slices_of[number], start);
    end_change(gpu, &draft, lock, id >= 0);
    if (id < 0) return (nvmlReturn_t)-id;
    *made = &board_at(handle->device->index)->computes[handle->slot][id];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstance(nvmlGpuInstance_t handle, unsigned number,
                                                         nvmlComputeInstance_t *made) {
    return make_compute(handle, number, HAL_NOWHERE, made);
}

EXPORT nvmlReturn_t nvmlGpuInstanceCreateComputeInstanceWithPlacement(nvmlGpuInstance_t handle, unsigned number,
                                                                      const nvmlPlacement_t *placement,
                                                                      nvmlComputeInstance_t *made) {
    if (placement == NULL || number >= COMPUTE_INSTANCE_PROFILES || placement->size != slices_of[number])
        return NVML_ERROR_INVALID_ARGUMENT;
    return make_compute(handle, number, placement->start, made);
}

static nvmlReturn_t see_compute(nvmlComputeInstance_t handle, struct hal_gpu **gpu, struct hal_managed *managed) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (handle == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = see_instance(handle->instance, gpu, managed);
    if (result != NVML_SUCCESS) return result;
    return managed->instances[handle->instance->slot].computes[handle->id].exists ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* Not while a process computes there. */
static bool in_use(nvmlComputeInstance_t handle, const struct hal_managed *managed) {
    struct device *device = &board_at(handle->instance->device->index)->migs[handle->instance->slot][handle->id];
    char uuid[96];
    mig_uuid(device->gpu, &managed->instances[device->slot], handle->id, uuid);
    const volatile uint64_t *page = contexts_of(device, uuid);
    for (unsigned slot = 0; page != NULL && slot < session.header->contexts_slots; slot++)
        if (is_alive(page[session.header->contexts_pid + slot])) return true;
    return false;
}

EXPORT nvmlReturn_t nvmlComputeInstanceDestroy(nvmlComputeInstance_t handle) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = see_compute(handle, &gpu, &draft);
    if (result != NVML_SUCCESS) return result;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    struct hal_compute *compute = &draft.instances[handle->instance->slot].computes[handle->id];
    bool there = compute->exists, used = there && in_use(handle, &draft);
    memset(compute, 0, sizeof *compute);
    end_change(gpu, &draft, lock, there && !used);
    return !there ? NVML_ERROR_NOT_FOUND : used ? NVML_ERROR_IN_USE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstances(nvmlGpuInstance_t handle, unsigned number,
                                                       nvmlComputeInstance_t *found, unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_instance(handle, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (found == NULL || count == NULL || number >= COMPUTE_INSTANCE_PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    for (unsigned id = 0; id < HAL_COMPUTES; id++) {
        const struct hal_compute *compute = &managed.instances[handle->slot].computes[id];
        if (compute->exists && compute->slices == slices_of[number])
            found[(*count)++] = &board_at(handle->device->index)->computes[handle->slot][id];
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetComputeInstanceById(nvmlGpuInstance_t handle, unsigned id,
                                                          nvmlComputeInstance_t *found) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_instance(handle, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (found == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (id >= HAL_COMPUTES || !managed.instances[handle->slot].computes[id].exists) return NVML_ERROR_NOT_FOUND;
    *found = &board_at(handle->device->index)->computes[handle->slot][id];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlComputeInstanceGetInfo_v2(nvmlComputeInstance_t handle, nvmlComputeInstanceInfo_t *info) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_compute(handle, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_compute *compute = &managed.instances[handle->instance->slot].computes[handle->id];
    unsigned number = 0;
    while (slices_of[number] != compute->slices) number++;
    *info = (nvmlComputeInstanceInfo_t){
        .device = handle->instance->device,
        .gpuInstance = handle->instance,
        .id = handle->id,
        .profileId = number,
        .placement = {compute->start, compute->slices},
    };
    return NVML_SUCCESS;
}
