/* PCIe and NVLink: what they carry, now and at most, and what is at the other end. */
#include <stdio.h>
#include <string.h>

#include "library.h"

enum { TO_DEVICE = 1, TO_HOST = 2 };

static nvmlReturn_t put_moment(nvmlDevice_t device, unsigned *target, size_t member) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (target == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (sight.gpu->pcie_width_max == 0) return NVML_ERROR_NOT_SUPPORTED;
    *target = *(const uint32_t *)((const char *)&sight.moment + member);
    return NVML_SUCCESS;
}

static nvmlReturn_t put_most(nvmlDevice_t device, unsigned *target, size_t member) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (target == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *target = *(const uint32_t *)((const char *)gpu + member);
    return *target == 0 ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned *generation) {
    return put_moment(device, generation, offsetof(struct hal_moment, pcie_generation));
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned *width) {
    return put_moment(device, width, offsetof(struct hal_moment, pcie_width));
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned *generation) {
    return put_most(device, generation, offsetof(struct hal_gpu, pcie_generation_max));
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned *width) {
    return put_most(device, width, offsetof(struct hal_gpu, pcie_width_max));
}

#if HAL_DRIVER >= 515
EXPORT nvmlReturn_t nvmlDeviceGetGpuMaxPcieLinkGeneration(nvmlDevice_t device, unsigned *generation) {
    return put_most(device, generation, offsetof(struct hal_gpu, pcie_generation_max));
}

/* Megatransfers a second, by generation. */
static unsigned speed_of(unsigned generation) {
    static const unsigned speeds[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    return generation < sizeof speeds / sizeof *speeds ? speeds[generation] : 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetPcieSpeed(nvmlDevice_t device, unsigned *speed) {
    nvmlReturn_t result = nvmlDeviceGetCurrPcieLinkGeneration(device, speed);
    if (result == NVML_SUCCESS) *speed = speed_of(*speed);
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetPcieLinkMaxSpeed(nvmlDevice_t device, unsigned *speed) {
    nvmlReturn_t result = nvmlDeviceGetMaxPcieLinkGeneration(device, speed);
    if (result == NVML_SUCCESS) *speed = speed_of(*speed);
    return result;
}
#endif

EXPORT nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned *replays) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (replays == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *replays = (unsigned)sight.moment.replays;
    return NVML_SUCCESS;
}

/* KiB a second since this program asked last; the first answer is 0. The real one looks at the last 20 ms. */
EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned counter, unsigned *rate) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (rate == NULL || counter > 1) return NVML_ERROR_INVALID_ARGUMENT;
    struct traffic *before = &device->traffic[counter];
    struct traffic now = {sight.now, context_counter(device, counter == 0 ? TO_HOST : TO_DEVICE)};
    double span = now.at - before->at;
    *rate = before->at > 0 && span > 0 ? (unsigned)((double)(now.count - before->count) / span / 1024) : 0;
    *before = now;
    return NVML_SUCCESS;
}

static nvmlReturn_t see_link(nvmlDevice_t device, unsigned link, struct sight *sight) {
    nvmlReturn_t result = see(device, sight);
    if (result != NVML_SUCCESS) return result;
    if (link >= HAL_LINKS) return NVML_ERROR_INVALID_ARGUMENT;
    return link >= sight->gpu->link_count ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result == NVML_SUCCESS) *active = !links_down(&sight);
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned link, unsigned *version) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result == NVML_SUCCESS) *version = sight.gpu->link_version;
    return result;
}

/* Capabilities 0 to 5: peers, system memory, atomics with both, a bridge, valid. */
EXPORT nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned link, unsigned capability,
                                                  unsigned *has) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result != NVML_SUCCESS) return result;
    if (has == NULL || capability > 5) return NVML_ERROR_INVALID_ARGUMENT;
    *has = capability == 0 || capability == 2 || capability == 5;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned link, nvmlPciInfo_t *pci) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result != NVML_SUCCESS) return result;
    if (pci == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    const struct hal_link *end = &sight.gpu->links[link];
    memset(pci, 0, sizeof *pci);
    if (sscanf(end->bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3) return NVML_ERROR_NOT_SUPPORTED;
    snprintf(pci->busId, sizeof pci->busId, "%s", end->bus_id);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%s", end->bus_id + 4);
    if (end->peer == HAL_NOWHERE) {
        pci->pciDeviceId = end->pci_id;
    } else {
        pci->pciDeviceId = gpu_at(end->peer)->pci_id;
        pci->pciSubSystemId = gpu_at(end->peer)->subsystem_id;
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned link, unsigned *type) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result == NVML_SUCCESS) *type = sight.gpu->links[link].remote_type;
    return result;
}

/* The model takes links down as a whole: none of them counts an error. */
EXPORT nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned link, unsigned counter,
                                                    unsigned long long *count) {
    struct sight sight;
    nvmlReturn_t result = see_link(device, link, &sight);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL || counter > 4) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceResetNvLinkErrorCounters(nvmlDevice_t device, unsigned link) {
    struct sight sight;
    return see_link(device, link, &sight);
}

/* Gone from Ampere on: the fields of throughput took its place. */
EXPORT nvmlReturn_t nvmlDeviceGetNvLinkUtilizationCounter(nvmlDevice_t device, unsigned link, unsigned counter,
                                                          unsigned long long *received, unsigned long long *sent) {
    struct sight sight;
    (void)counter;
    (void)received;
    (void)sent;
    nvmlReturn_t result = see_link(device, link, &sight);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

#if HAL_DRIVER >= 535
EXPORT nvmlReturn_t nvmlDeviceGetC2cModeInfoV(nvmlDevice_t device, nvmlC2cModeInfo_v1_t *info) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (info == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    info->isC2cEnabled = gpu->coherent;
    return NVML_SUCCESS;
}
#endif
