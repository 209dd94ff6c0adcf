/* Field values: many facts asked for in one call, each with its own answer. */
#include <string.h>

#include "library.h"

enum {
    ALL_LINKS = 0xFFFFFFFF,
    TO_DEVICE = 1,
    TO_HOST = 2,
    TO_PEER = 3,
    ECC_CURRENT = 1,
    ECC_PENDING = 2,
    SBE_VOLATILE = 3,
    DBE_VOLATILE = 4,
    SBE_AGGREGATE = 5,
    DBE_AGGREGATE = 6,
    SBE_VOLATILE_DEVICE = 11,
    DBE_VOLATILE_DEVICE = 12,
    SBE_AGGREGATE_DEVICE = 22,
    DBE_AGGREGATE_DEVICE = 23,
    CRC_FLIT_TOTAL = 38,
    CRC_DATA_TOTAL = 45,
    REPLAY_TOTAL = 52,
    RECOVERY_TOTAL = 59,
    TOTAL_ENERGY = 83,
    LINK_SPEED_0 = 84,
    LINK_SPEED_5 = 89,
    LINK_SPEED_COMMON = 90,
    LINK_COUNT = 91,
    PCIE_REPLAYS = 94,
    LINK_SPEED_6 = 132,
    LINK_SPEED_11 = 137,
    LINK_DATA_SENT = 138,
    LINK_RAW_SENT = 140,
    REMAPPED_CORRECTABLE = 142,
    REMAPPED_UNCORRECTABLE = 143,
    REMAP_PENDING = 144,
    REMAP_FAILED = 145,
    REMOTE_LINK = 146,
    SWITCH_LINKS = 147,
    ECC_DATA_TOTAL = 160,
    LINK_DL_REPLAY = 161,
    LINK_DL_CRC = 163,
    LINK_GET_SPEED = 164,
    LINK_GET_STATE = 165,
    LINK_GET_VERSION = 166,
    C2C_LINKS = 170,
    RESETLESS_MIG = 184,
    POWER_AVERAGE = 185,
    POWER_INSTANT = 186,
    POWER_MIN = 187,
    POWER_MAX = 188,
    POWER_DEFAULT = 189,
    POWER_CURRENT_LIMIT = 190,
    POWER_REQUESTED = 192,
    PCIE_SENT = 197,
    PCIE_RECEIVED = 198,
    MIG_QUERIES_ANY_MODE = 199,
    RECOVERY_ACTION = 230
};

static nvmlReturn_t put(nvmlFieldValue_t *field, unsigned long long value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t put_small(nvmlFieldValue_t *field, unsigned value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.ullVal = 0;
    field->value.uiVal = value;
    return NVML_SUCCESS;
}

/* What holds whether or not ECC counts, of fields 1 to 31. */
static nvmlReturn_t answer_ecc(const struct sight *sight, nvmlFieldValue_t *field) {
    struct hal_managed managed;
    const struct hal_moment *moment = &sight->moment;
    read_managed(sight->gpu, &managed);
    if (!sight->gpu->has_ecc) return NVML_ERROR_NOT_SUPPORTED;
    if (field->fieldId == ECC_CURRENT) return put_small(field, managed.ecc);
    if (field->fieldId == ECC_PENDING) return put_small(field, managed.ecc_pending);
    if (!managed.ecc) return NVML_ERROR_NOT_SUPPORTED;
    switch (field->fieldId) {
    case SBE_VOLATILE: return put(field, moment->volatile_dram_corrected + moment->volatile_sram_corrected);
    case DBE_VOLATILE: return put(field, moment->volatile_dram_uncorrected + moment->volatile_sram_uncorrected);
    case SBE_AGGREGATE: return put(field, moment->aggregate_dram_corrected + moment->aggregate_sram_corrected);
    case DBE_AGGREGATE: return put(field, moment->aggregate_dram_uncorrected + moment->aggregate_sram_uncorrected);
    case SBE_VOLATILE_DEVICE: return put(field, moment->volatile_dram_corrected);
    case DBE_VOLATILE_DEVICE: return put(field, moment->volatile_dram_uncorrected);
    case SBE_AGGREGATE_DEVICE: return put(field, moment->aggregate_dram_corrected);
    case DBE_AGGREGATE_DEVICE: return put(field, moment->aggregate_dram_uncorrected);
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t answer_rows(const struct sight *sight, nvmlFieldValue_t *field) {
    struct hal_managed managed;
    read_managed(sight->gpu, &managed);
    if (!sight->gpu->remaps_rows || any_instance(&managed)) return NVML_ERROR_NOT_SUPPORTED;
    switch (field->fieldId) {
    case REMAPPED_CORRECTABLE: return put_small(field, sight->moment.remapped_correctable);
    case REMAPPED_UNCORRECTABLE: return put_small(field, sight->moment.remapped_uncorrectable);
    case REMAP_PENDING: return put_small(field, sight->moment.remap_pending != 0);
    default: return put_small(field, sight->moment.remap_failed);
    }
}

/* KiB that went to other GPUs. Copies are counted where they begin: what came in is not known link by link. */
static nvmlReturn_t answer_traffic(const struct sight *sight, nvmlFieldValue_t *field) {
    unsigned links = sight->gpu->link_count;
    bool sent = field->fieldId == LINK_DATA_SENT || field->fieldId == LINK_RAW_SENT;
    if (!sent || links == 0) return NVML_ERROR_NOT_SUPPORTED;
    uint64_t kib = context_counter(sight->device, TO_PEER) / 1024;
    if (field->scopeId == ALL_LINKS) return put(field, kib);
    return field->scopeId >= links ? NVML_ERROR_INVALID_ARGUMENT : put(field, kib / links);
}

static nvmlReturn_t answer_link(const struct sight *sight, nvmlFieldValue_t *field) {
    const struct hal_gpu *gpu = sight->gpu;
    unsigned id = field->fieldId, link = field->scopeId;
    if (id == LINK_COUNT) return put_small(field, gpu->link_count);
    if (gpu->link_count == 0) return NVML_ERROR_NOT_SUPPORTED;
    unsigned speed = links_down(sight) ? 0 : gpu->link_mbps;
    if (id == LINK_SPEED_COMMON) return put_small(field, speed);
    if (id >= LINK_SPEED_0 && id <= LINK_SPEED_5) link = id - LINK_SPEED_0;
    if (id >= LINK_SPEED_6 && id <= LINK_SPEED_11) link = id - LINK_SPEED_6 + 6;
    if (id == SWITCH_LINKS) {
        unsigned count = 0;
        for (unsigned at = 0; at < gpu->link_count; at++) count += gpu->links[at].peer == HAL_NOWHERE;
        return put_small(field, count);
    }
    if (id == CRC_FLIT_TOTAL || id == CRC_DATA_TOTAL || id == REPLAY_TOTAL || id == RECOVERY_TOTAL
        || id == ECC_DATA_TOTAL)
        return put(field, 0); /* no link counts errors in the model: it goes down, or it does not */
    if (link >= gpu->link_count) return NVML_ERROR_INVALID_ARGUMENT;
    if (id >= LINK_DL_REPLAY && id <= LINK_DL_CRC) return put(field, 0);
    if (id == LINK_GET_STATE) return put_small(field, !links_down(sight));
    if (id == LINK_GET_VERSION) return put_small(field, gpu->link_version);
    if (id == REMOTE_LINK) return put_small(field, gpu->links[link].remote_link);
    return put_small(field, speed);
}

#if HAL_DRIVER >= 535
static nvmlReturn_t answer_power(const struct sight *sight, nvmlFieldValue_t *field) {
    struct hal_gpu *gpu = sight->gpu;
    unsigned limit = power_limit_mw(gpu);
    switch (field->fieldId) {
    case POWER_AVERAGE:
    case POWER_INSTANT: return put_small(field, (unsigned)(sight->moment.power_share * limit + 0.5));
    case POWER_MIN: return put_small(field, gpu->power_limit_min_mw);
    case POWER_MAX: return put_small(field, gpu->power_limit_max_mw);
    case POWER_DEFAULT: return put_small(field, gpu->power_limit_own_mw);
    default: return put_small(field, limit);
    }
}
#endif

static nvmlReturn_t answer(const struct sight *sight, nvmlFieldValue_t *field) {
    switch (field->fieldId) {
    case ECC_CURRENT ... 31: return answer_ecc(sight, field);
    case CRC_FLIT_TOTAL:
    case CRC_DATA_TOTAL:
    case REPLAY_TOTAL:
    case RECOVERY_TOTAL:
    case LINK_SPEED_0 ... LINK_COUNT:
    case LINK_SPEED_6 ... LINK_SPEED_11:
    case REMOTE_LINK:
    case SWITCH_LINKS:
    case ECC_DATA_TOTAL:
    case LINK_DL_REPLAY ... LINK_DL_CRC:
    case LINK_GET_SPEED ... LINK_GET_VERSION: return answer_link(sight, field);
    case LINK_DATA_SENT ... 141: return answer_traffic(sight, field);
    case REMAPPED_CORRECTABLE ... REMAP_FAILED: return answer_rows(sight, field);
    case TOTAL_ENERGY:
    case 191: return put(field, (unsigned long long)(sight->moment.energy_joules * 1000));
    case PCIE_REPLAYS: return put(field, (unsigned long long)sight->moment.replays);
    case C2C_LINKS: return put_small(field, sight->gpu->coherent ? 10 : 0);
    case RESETLESS_MIG: return put_small(field, 0);
#if HAL_DRIVER >= 535
    case POWER_AVERAGE ... POWER_CURRENT_LIMIT:
    case POWER_REQUESTED: return answer_power(sight, field);
    case PCIE_SENT: return put(field, context_counter(sight->device, TO_HOST));
    case PCIE_RECEIVED: return put(field, context_counter(sight->device, TO_DEVICE));
#endif
#if HAL_DRIVER >= 550
    case MIG_QUERIES_ANY_MODE: return put_small(field, 1);
#endif
#if HAL_DRIVER >= 565
    case RECOVERY_ACTION: return put_small(field, sight->moment.recovery_action);
#endif
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    struct sight sight;
    nvmlReturn_t result = see(device, &sight);
    if (result != NVML_SUCCESS) return result;
    if (count <= 0 || fields == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (int at = 0; at < count; at++) {
        fields[at].timestamp = (long long)(sight.now * 1e6);
        fields[at].latencyUsec = 0;
        fields[at].nvmlReturn = (unsigned)answer(&sight, &fields[at]);
    }
    return NVML_SUCCESS;
}
