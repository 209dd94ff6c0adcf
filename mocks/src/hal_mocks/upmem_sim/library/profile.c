/* Profiles: "key=value,key=value" at an allocation. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* Keys of the SDK that change nothing here: they choose details of its own back ends. */
static const char *const accepted[] = { "backend", "chipId", "clockDivision", "fckFrequency", "enableProfiling",
    "profilingDpuId", "profilingSliceId", "mcountAddress", "retMcountAddress", "threadProfilingAddress",
    "mramAccessByDpuOnly", "disableSafeChecks", "disableMuxSwitch", "disableResetOnAlloc", "cmdsBufferSize",
    "ignoreVersion", "ignoreVpd", "tryRepairIram", "tryRepairWram", "regionMode", "cycleAccurate", "nrThreadsPerRank",
    "nrThreadPerPool", "nrJobsPerRank", "nrJobPerRank", "sgXferEnable", "sgXferMaxBlocksPerDpu", "rankPath",
    "schedule" };

static bool
known(const char *key)
{
    for (size_t each = 0; each < sizeof accepted / sizeof *accepted; each++) {
        if (strcmp(key, accepted[each]) == 0) {
            return true;
        }
    }
    return false;
}

static dpu_error_t
set_value(struct request *request, const char *key, const char *value)
{
    if (!known(key)) {
        return fail(DPU_ERR_INVALID_PROFILE, "a profile has no key %s", key);
    }
    char *end;
    if (strcmp(key, "backend") == 0 && strcmp(value, "simulator") != 0 && strcmp(value, "hw") != 0) {
        return fail(DPU_ERR_INVALID_PROFILE, "backend=%s: there are simulator and hw", value);
    }
    if (strcmp(key, "rankPath") == 0) {
        snprintf(request->rank_path, sizeof request->rank_path, "%s", value);
    } else if (strcmp(key, "schedule") == 0) {
        request->seed = strtoull(value, &end, 0);
        if (*end != '\0' || end == value) {
            return fail(DPU_ERR_INVALID_PROFILE, "schedule=%s: a seed is a number", value);
        }
    } else if (strcmp(key, "sgXferEnable") == 0) {
        request->scatter = strcmp(value, "true") == 0;
    } else if (strcmp(key, "sgXferMaxBlocksPerDpu") == 0) {
        request->scatter_blocks = (uint32_t)strtoul(value, NULL, 0);
    }
    return DPU_OK;
}

dpu_error_t
profile_read(const char *profile, struct request *request)
{
    request->seed = (uint64_t)environment_number("HAL_UPMEM_SEED", 0);
    request->scatter_blocks = 64;
    char *text = strdup(profile == NULL ? "" : profile), *rest;
    if (text == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for a profile");
    }
    dpu_error_t status = DPU_OK;
    for (char *pair = strtok_r(text, ",", &rest); pair != NULL && status == DPU_OK; pair = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(pair, '=');
        if (value == NULL) {
            status = fail(DPU_ERR_INVALID_PROFILE, "%s: a profile is key=value,key=value", pair);
        } else {
            *value++ = '\0';
            status = set_value(request, pair, value);
        }
    }
    free(text);
    return status;
}
