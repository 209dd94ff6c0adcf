/* Which GPUs there are and what they are: enumeration, names, numbers, PCI. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "library.h"

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *count = session.header->gpu_count;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

/* A lost GPU keeps its index, and whoever asks for it is told. */
static nvmlReturn_t hand_out(unsigned index, nvmlDevice_t *device) {
    struct sight sight;
    nvmlReturn_t result = see(&board_at(index)->whole, &sight);
    if (result == NVML_SUCCESS) *device = sight.device;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (device == NULL || index >= session.header->gpu_count) return NVML_ERROR_INVALID_ARGUMENT;
    return hand_out(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (uuid == NULL || device == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned index = 0; index < session.header->gpu_count; index++) {
        struct hal_gpu *gpu = gpu_at(index);
        if (strcmp(gpu->uuid, uuid) == 0) return hand_out(index, device);
        if (strncmp(uuid, "MIG-", 4) != 0) continue;
        struct hal_managed managed;
        read_managed(gpu, &managed);
        for (unsigned slot = 0; slot < HAL_INSTANCES; slot++)
            for (unsigned id = 0; id < HAL_COMPUTES; id++) {
                char text[96];
                if (!managed.instances[slot].exists || !managed.instances[slot].computes[id].exists) continue;
                mig_uuid(gpu, &managed.instances[slot], id, text);
                if (strcmp(text, uuid) != 0) continue;
                struct sight sight;
                nvmlReturn_t result = see_any(&board_at(index)->migs[slot][id], &sight);
                if (result == NVML_SUCCESS) *device = sight.device;
                return result;
            }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (serial == NULL || device == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned index = 0; index < session.header->gpu_count; index++)
        if (gpu_at(index)->serial[0] != '\0' && strcmp(gpu_at(index)->serial, serial) == 0)
            return hand_out(index, device);
    return NVML_ERROR_NOT_FOUND;
}

/* domain:bus:device.function, the domain of four digits or eight or left out. */
EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    if (session.users == 0) return NVML_ERROR_UNINITIALIZED;
    if (bus_id == NULL || device == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned domain = 0, bus, slot, function = 0;
    if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
        domain = 0;
        if (sscanf(bus_id, "%x:%x.%x", &bus, &slot, &function) < 2) return NVML_ERROR_INVALID_ARGUMENT;
    }
    for (unsigned index = 0; index < session.header->gpu_count; index++) {
        const struct hal_gpu *gpu = gpu_at(index);
        if (gpu->bus_id[0] != '\0' && gpu->domain == domain && gpu->bus == bus && gpu->device == slot && function == 0)
            return hand_out(index, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (index == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *index = device->index;
    return NVML_SUCCESS;
}

/* A MIG device's name is its GPU's, with the profile behind it: that of a part of an instance has both sizes. */
EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (device->slot < 0) return put_text(name, length, sight.gpu->name);
    struct hal_managed managed;
    char text[200], part[16] = "";
    read_managed(sight.gpu, &managed);
    const struct hal_instance *instance = &managed.instances[device->slot];
    const struct hal_profile *profile = &sight.gpu->profiles[instance->profile];
    unsigned slices = instance->computes[device->compute].slices;
    if (slices != profile->compute_slices) snprintf(part, sizeof part, "%uc.", slices);
    snprintf(text, sizeof text, "%s MIG %s%s", sight.gpu->name, part, profile->name);
    return put_text(name, length, text);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (device->slot < 0) return put_text(uuid, length, sight.gpu->uuid);
    struct hal_managed managed;
    char text[96];
    read_managed(sight.gpu, &managed);
    mig_uuid(sight.gpu, &managed.instances[device->slot], (unsigned)device->compute, text);
    return put_text(uuid, length, text);
}

static nvmlReturn_t put_known(nvmlDevice_t device, char *target, unsigned length, size_t member) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    const char *text = (const char *)gpu + member;
    return *text == '\0' ? NVML_ERROR_NOT_SUPPORTED : put_text(target, length, text);
}

static nvmlReturn_t put_number(nvmlDevice_t device, unsigned *target, size_t member) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (target == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *target = *(const uint32_t *)((const char *)gpu + member);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned length) {
    return put_known(device, serial, length, offsetof(struct hal_gpu, serial));
}

EXPORT nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned length) {
    return put_known(device, version, length, offsetof(struct hal_gpu, vbios));
}

EXPORT nvmlReturn_t nvmlDeviceGetBoardPartNumber(nvmlDevice_t device, char *number, unsigned length) {
    return put_known(device, number, length, offsetof(struct hal_gpu, part_number));
}

EXPORT nvmlReturn_t nvmlDeviceGetInforomImageVersion(nvmlDevice_t device, char *version, unsigned length) {
    return put_known(device, version, length, offsetof(struct hal_gpu, inforom_image));
}

EXPORT nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, int object, char *version, unsigned length) {
    static const size_t members[] = {offsetof(struct hal_gpu, inforom_image), offsetof(struct hal_gpu, inforom_ecc),
                                     offsetof(struct hal_gpu, inforom_power)};
    if (object < 0 || object > 2) return NVML_ERROR_INVALID_ARGUMENT;
    return put_known(device, version, length, members[object]);
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor) {
    return put_number(device, minor, offsetof(struct hal_gpu, minor));
}

EXPORT nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned *board) {
    return put_number(device, board, offsetof(struct hal_gpu, board_id));
}

EXPORT nvmlReturn_t nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned *several) {
    nvmlReturn_t result = put_number(device, several, offsetof(struct hal_gpu, board_id));
    if (result == NVML_SUCCESS) *several = 0;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, unsigned *brand) {
    return put_number(device, brand, offsetof(struct hal_gpu, brand));
}

EXPORT nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned *architecture) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result == NVML_SUCCESS) *architecture = sight.gpu->architecture;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned *cores) {
    return put_number(device, cores, offsetof(struct hal_gpu, cores));
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned *bits) {
    return put_number(device, bits, offsetof(struct hal_gpu, memory_bus_width));
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (major == NULL || minor == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *major = (int)sight.gpu->capability_major;
    *minor = (int)sight.gpu->capability_minor;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    struct sight sight;
    nvmlReturn_t result = see_any(device, &sight); /* a MIG device answers with its GPU's place */
    if (result != NVML_SUCCESS) return result;
    if (pci == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_gpu *gpu = sight.gpu;
    if (gpu->bus_id[0] == '\0') return NVML_ERROR_NOT_SUPPORTED;
    memset(pci, 0, sizeof *pci);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", gpu->domain & 0xFFFF, gpu->bus & 0xFF,
        gpu->device & 0xFF);
    snprintf(pci->busId, sizeof pci->busId, "%s", gpu->bus_id);
    pci->domain = gpu->domain;
    pci->bus = gpu->bus;
    pci->device = gpu->device;
    pci->pciDeviceId = gpu->pci_id;
    pci->pciSubSystemId = gpu->subsystem_id;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t *pci) {
    nvmlPciInfo_t whole;
    if (pci == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = nvmlDeviceGetPciInfo_v3(device, &whole);
    if (result == NVML_SUCCESS) memcpy(pci, &whole, offsetof(nvmlPciInfo_v2_t, reserved));
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v1_t *pci) {
    nvmlPciInfo_t whole;
    if (pci == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t result = nvmlDeviceGetPciInfo_v3(device, &whole);
    if (result == NVML_SUCCESS) memcpy(pci, &whole, sizeof *pci);
    return result;
}

#if HAL_DRIVER >= 535
EXPORT nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t *pci) {
    if (pci == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (pci->version != NVML_STRUCT_VERSION(nvmlPciInfoExt_v1_t, 1)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlPciInfo_t plain;
    nvmlReturn_t result = nvmlDeviceGetPciInfo_v3(device, &plain);
    if (result != NVML_SUCCESS) return result;
    pci->domain = plain.domain;
    pci->bus = plain.bus;
    pci->device = plain.device;
    pci->pciDeviceId = plain.pciDeviceId;
    pci->pciSubSystemId = plain.pciSubSystemId;
    pci->baseClass = 3;
    pci->subClass = 2;
    memcpy(pci->busId, plain.busId, sizeof pci->busId);
    return NVML_SUCCESS;
}
#endif
