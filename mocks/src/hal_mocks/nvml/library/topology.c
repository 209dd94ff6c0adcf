/* What is near a GPU: other GPUs, CPUs, memory. */
#include "library.h"

enum { P2P_OK = 0, P2P_NOT_SUPPORTED = 5, P2P_NVLINK = 2, P2P_UNKNOWN = 5 };

static nvmlReturn_t see_pair(nvmlDevice_t one, nvmlDevice_t other, struct sight *first, struct sight *second) {
    nvmlReturn_t result = see(one, first);
    return result == NVML_SUCCESS ? see(other, second) : result;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t one, nvmlDevice_t other, unsigned *level) {
    struct sight first, second;
    nvmlReturn_t result = see_pair(one, other, &first, &second);
    if (result != NVML_SUCCESS) return result;
    if (level == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *level = session.matrix[one->index * session.header->gpu_count + other->index];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, unsigned level, unsigned *count,
                                                     nvmlDevice_t *devices) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned all = session.header->gpu_count, room = devices == NULL ? 0 : *count, found = 0;
    for (unsigned index = 0; index < all; index++) {
        if (index == device->index || session.matrix[device->index * all + index] != level) continue;
        if (found < room) devices[found] = &board_at(index)->whole;
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}

/* Directly, or both to the switch. */
static bool linked(const struct device *one, const struct device *other) {
    const struct hal_gpu *gpu = one->gpu, *peer = other->gpu;
    for (unsigned at = 0; at < gpu->link_count && at < HAL_LINKS; at++) {
        if (gpu->links[at].peer == other->index) return true;
        if (gpu->links[at].peer == HAL_NOWHERE && peer->link_count > 0 && peer->links[0].peer == HAL_NOWHERE)
            return true;
    }
    return false;
}

EXPORT nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t one, nvmlDevice_t other, unsigned capability,
                                           unsigned *status) {
    struct sight first, second;
    nvmlReturn_t result = see_pair(one, other, &first, &second);
    if (result != NVML_SUCCESS) return result;
    if (status == NULL || capability >= P2P_UNKNOWN || one == other) return NVML_ERROR_INVALID_ARGUMENT;
    bool up = linked(one, other) && !links_down(&first) && !links_down(&second);
    *status = capability == P2P_NVLINK && !up ? P2P_NOT_SUPPORTED : P2P_OK;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t other, int *same) {
    struct sight first, second;
    nvmlReturn_t result = see_pair(one, other, &first, &second);
    if (result == NVML_SUCCESS) *same = one->index == other->index;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned words, unsigned long *set) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (set == NULL || words == 0) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned word = 0; word < words; word++) set[word] = word < HAL_CPU_WORDS ? gpu->cpus[word] : 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned words, unsigned long *set,
                                                        unsigned scope) {
    return scope > 1 ? NVML_ERROR_INVALID_ARGUMENT : nvmlDeviceGetCpuAffinity(device, words, set);
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned words, unsigned long *set,
                                                unsigned scope) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (set == NULL || words == 0 || scope > 1) return NVML_ERROR_INVALID_ARGUMENT;
    if (gpu->numa_node < 0) return NVML_ERROR_NOT_SUPPORTED;
    for (unsigned word = 0; word < words; word++)
        set[word] = word == (unsigned)gpu->numa_node / 64 ? 1UL << (gpu->numa_node % 64) : 0;
    return NVML_SUCCESS;
}

#if HAL_DRIVER >= 535
/* Not the node that the GPU is near, but the one that its own memory is: only where it is coherent. */
EXPORT nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned *node) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (node == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->coherent || gpu->numa_node < 0) return NVML_ERROR_NOT_SUPPORTED;
    *node = (unsigned)gpu->numa_node;
    return NVML_SUCCESS;
}
#endif
