/* What the files of the library share: the session, and how a call sees its GPU. */
#ifndef HAL_NVML_LIBRARY_H
#define HAL_NVML_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

#include "nvml.h"
#include "state.h"

#ifndef HAL_DRIVER
#define HAL_DRIVER 580
#endif

#define EXPORT __attribute__((visibility("default")))
#define NO_INSTANCE 0xFFFFFFFFU

struct traffic {
    double at;
    uint64_t count;
};

/* A handle: a whole GPU, or the MIG device of one compute instance (slot and compute; whole GPUs have slot -1). */
struct device {
    struct hal_gpu *gpu;
    unsigned index;
    int slot;
    int compute;
    /* The page of its contexts, mapped when it is first needed. */
    const volatile uint64_t *contexts;
    char contexts_of[96];
    /* What had been sent and received over PCIe, and computed, when this program asked last. */
    struct traffic traffic[2];
    struct traffic computing;
};

struct instance {
    struct device *device;
    unsigned slot;
};

struct compute {
    struct instance *instance;
    unsigned id;
};

/* Everything of one GPU in this process: the handles that it can give out. */
struct board {
    struct device whole;
    struct device migs[HAL_INSTANCES][HAL_COMPUTES];
    struct instance instances[HAL_INSTANCES];
    struct compute computes[HAL_INSTANCES][HAL_COMPUTES];
};

struct session {
    unsigned users;
    char folder[4096];
    struct hal_header *header;
    const uint8_t *matrix;
    struct board *boards;
    volatile uint64_t *control;
    double clock_offset;
    bool writable;
};

extern struct session session;

/* What a call sees of its GPU: the facts of now, and what was set. */
struct sight {
    struct device *device;
    struct hal_gpu *gpu;
    struct hal_moment moment;
    double now;
};

/* Look at a GPU for a call: whole GPUs only, or MIG devices too. Waits while the GPU hangs. */
nvmlReturn_t see(nvmlDevice_t handle, struct sight *sight);
nvmlReturn_t see_any(nvmlDevice_t handle, struct sight *sight);
/* The same without the facts of now: for what does not change. */
nvmlReturn_t know(nvmlDevice_t handle, struct hal_gpu **gpu);

/* Read what was set, all of it from one time. */
void read_managed(struct hal_gpu *gpu, struct hal_managed *managed);
/* Change what was set: begin locks out the others, end writes if commit is true. */
nvmlReturn_t begin_change(struct hal_gpu *gpu, struct hal_managed *draft, int *lock);
void end_change(struct hal_gpu *gpu, const struct hal_managed *draft, int lock, bool commit);

/* Which place of a part holds: see state.h. */
uint64_t generation_of(const uint64_t *word);

struct hal_gpu *gpu_at(unsigned index);
struct board *board_at(unsigned index);
double clock_now(void);
nvmlReturn_t put_text(char *target, unsigned length, const char *text);
unsigned power_limit_mw(struct hal_gpu *gpu);
bool links_down(const struct sight *sight);
bool any_instance(const struct hal_managed *managed);

/* Who has a context on a device, and what it counts. A page that is not there yet is an empty one. */
const volatile uint64_t *contexts_of(struct device *device, const char *id);
uint64_t used_bytes(struct device *device);
uint64_t used_everywhere(struct sight *sight);
uint64_t context_counter(struct device *device, unsigned which);
bool is_alive(uint64_t pid);
void mig_uuid(const struct hal_gpu *gpu, const struct hal_instance *instance, unsigned compute, char *text);

#endif
