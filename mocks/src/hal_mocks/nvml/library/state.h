/* What a mock host's GPUs are and do, in one file that the library maps and that Python writes.
 *
 * Python reads this header to lay out the file (layout.py): one member a line, of fixed size, and whole numbers for
 * defines. Two parts of a GPU change, and each has a writer of its own and two places: the inactive place is filled,
 * then the generation is raised, whose lowest bit says which place holds. A reader that finds the generation moved
 * reads again; a writer that dies half-way leaves the old place whole.
 */
#ifndef HAL_NVML_STATE_H
#define HAL_NVML_STATE_H

#include <stdint.h>

#define HAL_LAYOUT 1
#define HAL_MOMENTS 64
#define HAL_EVENTS 32
#define HAL_LINKS 36
#define HAL_PROFILES 16
#define HAL_PLACES 8
#define HAL_INSTANCES 8
#define HAL_COMPUTES 8
#define HAL_CPU_WORDS 16
#define HAL_NOWHERE 4294967295

/* The file begins with this; then the GPUs, then a matrix of their nearness: for each pair, one byte of
 * nvmlGpuTopologyLevel_t. clock_kind is 0 for the kernel's time, 1 for the word of the machine's control page that all
 * processes share, 2 for changed_at, when somebody changed something. contexts_* say at which 64-bit words a GPU's page
 * of contexts keeps what (gpu_contexts.py). */
struct hal_header {
    char magic[8];
    uint32_t layout;
    uint32_t gpu_bytes;
    uint32_t gpu_count;
    uint32_t init_error;
    uint32_t clock_kind;
    uint32_t clock_word;
    uint32_t contexts_slots;
    uint32_t contexts_memory;
    uint32_t contexts_pid;
    uint32_t contexts_base;
    uint32_t contexts_counters;
    uint32_t contexts_counter_stride;
    double changed_at;
    uint64_t matrix_offset;
    uint64_t file_bytes;
};

/* One NVLink: the other end. peer is a GPU's index, or HAL_NOWHERE for a switch. */
struct hal_link {
    uint32_t peer;
    uint32_t remote_type;
    uint32_t remote_link;
    uint32_t pci_id;
    char bus_id[32];
};

/* Where a GPU instance of a profile may lie: its first memory slice, the id that it then has, and the UUIDs of the
 * MIG devices of its compute instances, by their id. */
struct hal_place {
    uint32_t start;
    uint32_t instance_id;
    uint8_t uuids[128];
};

/* A GPU instance profile. index is nvmlGpuInstance profile number, id what creation takes. */
struct hal_profile {
    char name[32];
    uint64_t memory_bytes;
    uint32_t index;
    uint32_t id;
    uint32_t compute_slices;
    uint32_t memory_slices;
    uint32_t instances;
    uint32_t multiprocessors;
    uint32_t copy_engines;
    uint32_t decoders;
    uint32_t encoders;
    uint32_t jpegs;
    uint32_t ofas;
    uint32_t media;
    uint32_t place_count;
    uint32_t spare;
    struct hal_place places[HAL_PLACES];
};

/* What holds from a time on, until the next moment. Temperature goes in a straight line to the next moment's; energy
 * and replays grow at their rates. Links flap with a period from an onset on: down in the first half of each. */
struct hal_moment {
    double at;
    double temperature;
    double power_share;
    double joules_per_second;
    double energy_joules;
    double replays;
    double replays_per_second;
    double slow_seconds;
    double flap_onset;
    double flap_seconds;
    uint64_t reasons;
    uint64_t memory_bytes;
    uint64_t memory_used_told;
    uint64_t volatile_dram_corrected;
    uint64_t volatile_dram_uncorrected;
    uint64_t volatile_sram_corrected;
    uint64_t volatile_sram_uncorrected;
    uint64_t aggregate_dram_corrected;
    uint64_t aggregate_dram_uncorrected;
    uint64_t aggregate_sram_corrected;
    uint64_t aggregate_sram_uncorrected;
    uint32_t error;
    uint32_t hangs;
    uint32_t links_down;
    uint32_t utilization;
    uint32_t sm_mhz;
    uint32_t memory_mhz;
    uint32_t performance_state;
    uint32_t recovery_action;
    uint32_t pcie_generation;
    uint32_t pcie_width;
    uint32_t remapped_correctable;
    uint32_t remapped_uncorrectable;
    uint32_t remap_pending;
    uint32_t remap_failed;
};

/* Something that is told once to whoever asked to be told. Ordered by time, then id. */
struct hal_event {
    double at;
    uint64_t id;
    uint64_t type;
    uint64_t data;
    uint32_t instance;
    uint32_t compute;
};

struct hal_timeline {
    uint32_t moment_count;
    uint32_t event_count;
    double at[HAL_MOMENTS];
    struct hal_moment moments[HAL_MOMENTS];
    struct hal_event events[HAL_EVENTS];
};

struct hal_compute {
    uint32_t exists;
    uint32_t slices;
    uint32_t start;
};

struct hal_instance {
    uint32_t exists;
    uint32_t profile;
    uint32_t place;
    struct hal_compute computes[HAL_COMPUTES];
};

/* What programs set through the library, and Python through its driver: both under the lock gpu.lock. */
struct hal_managed {
    uint32_t mig;
    uint32_t mig_pending;
    uint32_t ecc;
    uint32_t ecc_pending;
    uint32_t persistence;
    uint32_t compute_mode;
    uint32_t power_limit_mw;
    uint32_t applications_sm_mhz;
    uint32_t applications_memory_mhz;
    uint32_t locked_sm_min_mhz;
    uint32_t locked_sm_max_mhz;
    uint32_t spare;
    struct hal_instance instances[HAL_INSTANCES];
};

/* course is a digest of all that the timeline follows of: while it is the same, there is nothing to write. */
struct hal_gpu {
    char name[96];
    char uuid[96];
    char serial[32];
    char bus_id[32];
    char vbios[32];
    char part_number[32];
    char inforom_image[16];
    char inforom_ecc[16];
    char inforom_power[16];
    uint64_t memory_bytes;
    uint64_t reserved_bytes;
    uint64_t bar1_bytes;
    uint64_t cpus[HAL_CPU_WORDS];
    uint32_t domain;
    uint32_t bus;
    uint32_t device;
    uint32_t pci_id;
    uint32_t subsystem_id;
    uint32_t minor;
    uint32_t architecture;
    uint32_t brand;
    uint32_t capability_major;
    uint32_t capability_minor;
    uint32_t board_id;
    uint32_t multiprocessors;
    uint32_t cores;
    uint32_t memory_bus_width;
    uint32_t pcie_generation_max;
    uint32_t pcie_width_max;
    uint32_t sm_max_mhz;
    uint32_t memory_max_mhz;
    uint32_t power_limit_min_mw;
    uint32_t power_limit_max_mw;
    uint32_t power_limit_own_mw;
    uint32_t slowdown_celsius;
    uint32_t shutdown_celsius;
    uint32_t remaps_rows;
    uint32_t has_ecc;
    uint32_t has_mig;
    uint32_t coherent;
    int32_t numa_node;
    uint32_t compute_slices;
    uint32_t memory_slices;
    uint32_t link_count;
    uint32_t link_version;
    uint32_t link_mbps;
    uint32_t profile_count;
    struct hal_link links[HAL_LINKS];
    struct hal_profile profiles[HAL_PROFILES];
    uint64_t course;
    uint64_t timeline_generation;
    uint64_t managed_generation;
    struct hal_timeline timelines[2];
    struct hal_managed managed[2];
};

#endif
