/* Errors of memory: ECC modes and counts, rows and pages replaced. */
#include <string.h>

#include "library.h"

enum { CORRECTED = 0, VOLATILE = 0 };
enum { BANKS = 640 };

struct counts {
    uint64_t dram, sram;
};

static struct counts counts_of(const struct hal_moment *moment, unsigned type, unsigned counter) {
    bool corrected = type == CORRECTED;
    if (counter == VOLATILE)
        return (struct counts){corrected ? moment->volatile_dram_corrected : moment->volatile_dram_uncorrected,
                               corrected ? moment->volatile_sram_corrected : moment->volatile_sram_uncorrected};
    return (struct counts){corrected ? moment->aggregate_dram_corrected : moment->aggregate_dram_uncorrected,
                           corrected ? moment->aggregate_sram_corrected : moment->aggregate_sram_uncorrected};
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    struct hal_gpu *gpu;
    struct hal_managed managed;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (current == NULL || pending == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->has_ecc) return NVML_ERROR_NOT_SUPPORTED;
    read_managed(gpu, &managed);
    *current = managed.ecc;
    *pending = managed.ecc_pending;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDefaultEccMode(nvmlDevice_t device, unsigned *mode) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    if (result == NVML_SUCCESS) *mode = gpu->has_ecc;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceSetEccMode(nvmlDevice_t device, unsigned mode) {
    struct hal_gpu *gpu;
    struct hal_managed draft;
    int lock;
    nvmlReturn_t result = know(device, &gpu);
    if (result != NVML_SUCCESS) return result;
    if (mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
    if (!gpu->has_ecc) return NVML_ERROR_NOT_SUPPORTED;
    result = begin_change(gpu, &draft, &lock);
    if (result != NVML_SUCCESS) return result;
    draft.ecc_pending = mode;
    end_change(gpu, &draft, lock, true);
    return NVML_SUCCESS;
}

/* Without ECC nothing is counted. */
static nvmlReturn_t see_counts(nvmlDevice_t device, unsigned type, unsigned counter, struct counts *counts) {
    struct sight sight;
    struct hal_managed managed;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (type > 1 || counter > 1) return NVML_ERROR_INVALID_ARGUMENT;
    read_managed(sight.gpu, &managed);
    if (!sight.gpu->has_ecc || !managed.ecc) return NVML_ERROR_NOT_SUPPORTED;
    *counts = counts_of(&sight.moment, type, counter);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned type, unsigned counter,
                                                unsigned long long *count) {
    struct counts counts;
    nvmlReturn_t result = see_counts(device, type, counter, &counts);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *count = counts.dram + counts.sram;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetDetailedEccErrors(nvmlDevice_t device, unsigned type, unsigned counter,
                                                   nvmlEccErrorCounts_t *told) {
    struct counts counts;
    nvmlReturn_t result = see_counts(device, type, counter, &counts);
    if (result != NVML_SUCCESS) return result;
    if (told == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    *told = (nvmlEccErrorCounts_t){.l2Cache = counts.sram, .deviceMemory = counts.dram};
    return NVML_SUCCESS;
}

/* Locations: device memory is 2, all memory on the chip 7; its parts are not told one by one. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned type, unsigned counter,
                                                    unsigned location,
                                                    unsigned long long *count) {
    struct counts counts;
    nvmlReturn_t result = see_counts(device, type, counter, &counts);
    if (result != NVML_SUCCESS) return result;
    if (count == NULL || location > 7) return NVML_ERROR_INVALID_ARGUMENT;
    if (location != 2 && location != 7) return NVML_ERROR_NOT_SUPPORTED;
    *count = location == 2 ? counts.dram : counts.sram;
    return NVML_SUCCESS;
}

#if HAL_DRIVER >= 550
EXPORT nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_v1_t *status) {
    if (status == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    if (status->version != NVML_STRUCT_VERSION(nvmlEccSramErrorStatus_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    const struct hal_moment *moment = &sight.moment;
    *status = (nvmlEccSramErrorStatus_v1_t){
        .version = status->version,
        .aggregateUncSecDed = moment->aggregate_sram_uncorrected,
        .aggregateCor = moment->aggregate_sram_corrected,
        .volatileUncSecDed = moment->volatile_sram_uncorrected,
        .volatileCor = moment->volatile_sram_corrected,
        .aggregateUncBucketOther = moment->aggregate_sram_uncorrected,
    };
    return NVML_SUCCESS;
}
#endif

/* Rows cannot be looked at while instances exist. */
static nvmlReturn_t see_rows(nvmlDevice_t device, struct sight *sight) {
    struct hal_managed managed;
    nvmlReturn_t result = see(device, sight);
    if (result != NVML_SUCCESS) return result;
    read_managed(sight->gpu, &managed);
    return !sight->gpu->remaps_rows || any_instance(&managed) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *correctable, unsigned *uncorrectable,
                                              unsigned *pending, unsigned *failed) {
    struct sight sight;
    nvmlReturn_t result = see_rows(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (correctable == NULL || uncorrectable == NULL || pending == NULL || failed == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    *correctable = sight.moment.remapped_correctable;
    *uncorrectable = sight.moment.remapped_uncorrectable;
    *pending = sight.moment.remap_pending != 0;
    *failed = sight.moment.remap_failed;
    return NVML_SUCCESS;
}

/* How many banks have how many spare rows left: all of them, or some used. */
EXPORT nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
    struct sight sight;
    nvmlReturn_t result = see_rows(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (values == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned used = sight.moment.remapped_correctable + sight.moment.remapped_uncorrectable;
    if (used > BANKS) used = BANKS;
    *values = (nvmlRowRemapperHistogramValues_t){.max = BANKS - used, .high = used};
    if (sight.moment.remap_failed && used > 0) {
        values->high--;
        values->none = 1;
    }
    return NVML_SUCCESS;
}

/* Pages are retired where rows are not remapped; the model retires none. */
static nvmlReturn_t see_pages(nvmlDevice_t device) {
    struct hal_gpu *gpu;
    nvmlReturn_t result = know(device, &gpu);
    return result == NVML_SUCCESS && gpu->remaps_rows ? NVML_ERROR_NOT_SUPPORTED : result;
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, unsigned cause, unsigned *count,
                                              unsigned long long *addresses) {
    nvmlReturn_t result = see_pages(device);
    (void)addresses;
    if (result != NVML_SUCCESS) return result;
    if (count == NULL || cause > 1) return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, unsigned cause, unsigned *count,
                                                 unsigned long long *addresses, unsigned long long *times) {
    (void)times;
    return nvmlDeviceGetRetiredPages(device, cause, count, addresses);
}

EXPORT nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, unsigned *pending) {
    nvmlReturn_t result = see_pages(device);
    if (result == NVML_SUCCESS) *pending = 0;
    return result;
}
