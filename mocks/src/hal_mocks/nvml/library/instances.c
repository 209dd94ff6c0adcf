/* MIG: the mode, and GPU instances: their profiles, where they may lie, making and ending them. */
#include <stdio.h>
#include <string.h>

#include "library.h"
#include "mig.h"

nvmlReturn_t see_mig(nvmlDevice_t device, struct hal_gpu **gpu, struct hal_managed *managed) {
    nvmlReturn_t result = know(device, gpu);
    if (result != NVML_SUCCESS) return result;
    read_managed(*gpu, managed);
    return (*gpu)->has_mig && managed->mig ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (current == NULL || pending == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->has_mig) return NVML_ERROR_NOT_SUPPORTED;
    read_managed(gpu, &managed);
    *current = managed.mig;
    *pending = managed.mig_pending;
    return NVML_SUCCESS;
}

/* The mode holds from the next reset on, and activation says so. */
EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned mode, nvmlReturn_t *activation) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (activation == NULL || mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->has_mig) return NVML_ERROR_NOT_SUPPORTED;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    bool used = !mode && any_instance(&draft);
    draft.mig_pending = mode;
    end_change(gpu, &draft, lock, !used);
    if (used) return *activation = NVML_ERROR_IN_USE;
    *activation = draft.mig == mode ? NVML_SUCCESS : NVML_ERROR_RESET_REQUIRED;
    return NVML_SUCCESS;
}

/* Profiles can be asked for with the mode off from 550 on (field 199 says so). */
static nvmlReturn_t see_profiles(nvmlDevice_t device, struct hal_gpu **gpu, struct hal_managed *managed) {
    nvmlReturn_t result = see_mig(device, gpu, managed);
#if HAL_DRIVER >= 550
    if (result == NVML_ERROR_NOT_SUPPORTED && device->slot < 0 && (*gpu)->has_mig) return NVML_SUCCESS;
#endif
    return result;
}

static int profile_by_id(const struct hal_gpu *gpu, unsigned id) {
    for (unsigned at = 0; at < gpu->profile_count; at++)
        if (gpu->profiles[at].id == id) return (int)at;
    return -1;
}

static nvmlReturn_t find_profile(nvmlDevice_t device, unsigned number, const struct hal_profile **profile) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_profiles(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (number >= GPU_INSTANCE_PROFILES) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned at = 0; at < gpu->profile_count; at++)
        if (gpu->profiles[at].index == number) {
            *profile = &gpu->profiles[at];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfo(nvmlDevice_t device, unsigned number,
                                                        nvmlGpuInstanceProfileInfo_t *info) {
    const struct hal_profile *profile;
    nvmlReturn_t result = find_profile(device, number, &profile);
    if (result != NVML_SUCCESS) return result;
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *info = (nvmlGpuInstanceProfileInfo_t){
        .id = profile->id,
        .sliceCount = profile->compute_slices,
        .instanceCount = profile->instances,
        .multiprocessorCount = profile->multiprocessors,
        .copyEngineCount = profile->copy_engines,
        .decoderCount = profile->decoders,
        .encoderCount = profile->encoders,
        .jpegCount = profile->jpegs,
        .ofaCount = profile->ofas,
        .memorySizeMB = profile->memory_bytes >> 20,
    };
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceProfileInfoV(nvmlDevice_t device, unsigned number,
                                                         nvmlGpuInstanceProfileInfo_v2_t *info) {
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (info->version != NVML_STRUCT_VERSION(nvmlGpuInstanceProfileInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    const struct hal_profile *profile;
    nvmlGpuInstanceProfileInfo_t plain;
    nvmlReturn_t result = nvmlDeviceGetGpuInstanceProfileInfo(device, number, &plain);
    if (result == NVML_SUCCESS) result = find_profile(device, number, &profile);
    if (result != NVML_SUCCESS) return result;
    info->id = plain.id;
    info->isP2pSupported = plain.isP2pSupported;
    info->sliceCount = plain.sliceCount;
    info->instanceCount = plain.instanceCount;
    info->multiprocessorCount = plain.multiprocessorCount;
    info->copyEngineCount = plain.copyEngineCount;
    info->decoderCount = plain.decoderCount;
    info->encoderCount = plain.encoderCount;
    info->jpegCount = plain.jpegCount;
    info->ofaCount = plain.ofaCount;
    info->memorySizeMB = plain.memorySizeMB;
    snprintf(info->name, sizeof info->name, "MIG %s", profile->name);
    return NVML_SUCCESS;
}

/* Where instances of a profile may lie on the empty GPU. */
static nvmlReturn_t put_placements(nvmlDevice_t device, unsigned id, nvmlPlacement_t *placements, unsigned *count,
                                   bool has_room) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_profiles(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    int at = profile_by_id(gpu, id);
    if (count == NULL || at < 0) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_profile *profile = &gpu->profiles[at];
    if (placements != NULL && has_room && *count < profile->place_count) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned place = 0; placements != NULL && place < profile->place_count; place++)
        placements[place] = (nvmlPlacement_t){profile->places[place].start, profile->memory_slices};
    *count = profile->place_count;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements_v2(nvmlDevice_t device, unsigned id,
                                                                  nvmlPlacement_t *placements, unsigned *count) {
    return put_placements(device, id, placements, count, true);
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstancePossiblePlacements(nvmlDevice_t device, unsigned id,
                                                               nvmlPlacement_t *placements, unsigned *count) {
    return put_placements(device, id, placements, count, false);
}

/* Put an instance at a start, or at the first place that is free (HAL_NOWHERE): no slice of memory twice, no more
 * slices of compute than there are, and one instance with the media engines. Return its slot, or an error below 0. */
static int place_instance(const struct hal_gpu *gpu, struct hal_managed *managed, unsigned wanted, unsigned start) {
    const struct hal_profile *profile = &gpu->profiles[wanted];
    unsigned taken = 0, compute = profile->compute_slices;
    int free_slot = -1;
    for (int slot = 0; slot < HAL_INSTANCES; slot++) {
        const struct hal_instance *there = &managed->instances[slot];
        if (!there->exists) {
            if (free_slot < 0) free_slot = slot;
            continue;
        }
        const struct hal_profile *other = &gpu->profiles[there->profile];
        if (profile->media && other->media) return -NVML_ERROR_INSUFFICIENT_RESOURCES;
        compute += other->compute_slices;
        taken |= ((1U << other->memory_slices) - 1) << other->places[there->place].start;
    }
    if (compute > gpu->compute_slices || free_slot < 0) return -NVML_ERROR_INSUFFICIENT_RESOURCES;
    bool legal = start == HAL_NOWHERE;
    for (unsigned place = 0; place < profile->place_count; place++) {
        if (start != HAL_NOWHERE && profile->places[place].start != start) continue;
        legal = true;
        if (taken & ((1U << profile->memory_slices) - 1) << profile->places[place].start) continue;
        managed->instances[free_slot] = (struct hal_instance){.exists = 1, .profile = wanted, .place = place};
        return free_slot;
    }
    return legal ? -NVML_ERROR_INSUFFICIENT_RESOURCES : -NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceRemainingCapacity(nvmlDevice_t device, unsigned id, unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_mig(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    int profile = profile_by_id(gpu, id);
    if (count == NULL || profile < 0) return NVML_ERROR_INVALID_ARGUMENT;
    for (*count = 0; place_instance(gpu, &managed, (unsigned)profile, HAL_NOWHERE) >= 0; (*count)++) {
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t make_instance(nvmlDevice_t device, unsigned id, unsigned start, unsigned size,
                                  nvmlGpuInstance_t *made) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = see_mig(device, &gpu, &draft);
    if (result != NVML_SUCCESS) return result;
    int profile = profile_by_id(gpu, id);
    if (made == NULL || profile < 0) return NVML_ERROR_INVALID_ARGUMENT;
    if (start != HAL_NOWHERE && size != gpu->profiles[profile].memory_slices) return NVML_ERROR_INVALID_ARGUMENT;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    int slot = place_instance(gpu, &draft, (unsigned)profile, start);
    end_change(gpu, &draft, lock, slot >= 0);
    if (slot < 0) return (nvmlReturn_t)-slot;
    *made = &board_at(device->index)->instances[slot];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstance(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *made) {
    return make_instance(device, id, HAL_NOWHERE, 0, made);
}

EXPORT nvmlReturn_t nvmlDeviceCreateGpuInstanceWithPlacement(nvmlDevice_t device, unsigned id,
                                                             const nvmlPlacement_t *placement,
                                                             nvmlGpuInstance_t *made) {
    if (placement == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    return make_instance(device, id, placement->start, placement->size, made);
}

nvmlReturn_t see_instance(nvmlGpuInstance_t handle, struct hal_gpu **gpu, struct hal_managed *managed) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (handle == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = see_mig(handle->device, gpu, managed);
    if (result != NVML_SUCCESS) return result;
    return managed->instances[handle->slot].exists ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

unsigned instance_id(const struct hal_gpu *gpu, const struct hal_instance *instance) {
    return gpu->profiles[instance->profile].places[instance->place].instance_id;
}

EXPORT nvmlReturn_t nvmlGpuInstanceDestroy(nvmlGpuInstance_t handle) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = see_instance(handle, &gpu, &draft);
    if (result != NVML_SUCCESS) return result;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    struct hal_instance *instance = &draft.instances[handle->slot];
    bool there = instance->exists, used = false;
    for (unsigned id = 0; id < HAL_COMPUTES; id++) used |= there && instance->computes[id].exists;
    memset(instance, 0, sizeof *instance);
    end_change(gpu, &draft, lock, there && !used);
    return !there ? NVML_ERROR_NOT_FOUND : used ? NVML_ERROR_IN_USE : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstances(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *found,
                                              unsigned *count) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_mig(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    int profile = profile_by_id(gpu, id);
    if (found == NULL || count == NULL || profile < 0) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
        if (managed.instances[slot].exists && managed.instances[slot].profile == (unsigned)profile)
            found[(*count)++] = &board_at(device->index)->instances[slot];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGpuInstanceById(nvmlDevice_t device, unsigned id, nvmlGpuInstance_t *found) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_mig(device, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (found == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
        if (managed.instances[slot].exists && instance_id(gpu, &managed.instances[slot]) == id) {
            *found = &board_at(device->index)->instances[slot];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlGpuInstanceGetInfo(nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = see_instance(handle, &gpu, &managed);
    if (result != NVML_SUCCESS) return result;
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_instance *instance = &managed.instances[handle->slot];
    const struct hal_profile *profile = &gpu->profiles[instance->profile];
    *info = (nvmlGpuInstanceInfo_t){
        .device = handle->device,
        .id = instance_id(gpu, instance),
        .profileId = profile->id,
        .placement = {profile->places[instance->place].start, profile->memory_slices},
    };
    return NVML_SUCCESS;
}
