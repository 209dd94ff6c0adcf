/* What the two files about MIG share. */
#ifndef HAL_NVML_MIG_H
#define HAL_NVML_MIG_H

#include "library.h"

enum { GPU_INSTANCE_PROFILES = 0x12, COMPUTE_INSTANCE_PROFILES = 9 };

/* Look at a whole GPU in MIG mode, or at one of its instances that exists. */
nvmlReturn_t see_mig(nvmlDevice_t device, struct hal_gpu **gpu, struct hal_managed *managed);
nvmlReturn_t see_instance(nvmlGpuInstance_t handle, struct hal_gpu **gpu, struct hal_managed *managed);
/* How many of an instance's multiprocessors a compute instance of so many slices has. */
unsigned multiprocessors_of(const struct hal_profile *profile, unsigned slices);
unsigned instance_id(const struct hal_gpu *gpu, const struct hal_instance *instance);

#endif
