/* Which ranks the machine has: a file that somebody wrote (HAL_UPMEM_RANKS_FILE), a number (HAL_UPMEM_RANKS), or one.
 *
 * The file has a line for each rank, "rank NAME key=value ...", with what its sysfs folder would say and what is wrong
 * with it. Faults are read again before each run, so that they come and go while programs run. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static void
set_defaults(struct dpu_rank_t *rank, uint32_t number)
{
    memset(rank, 0, sizeof *rank);
    snprintf(rank->name, sizeof rank->name, "dpu_rank%u", number);
    rank->number = number;
    rank->cis = rank->dpus_per_ci = 8;
    rank->mram_bytes = MRAM_SPAN;
    rank->wram_bytes = 65536;
    rank->iram_instructions = 4096;
    rank->tasklets = MOST_TASKLETS;
    rank->clock_hz = 350000000;
    rank->numa_node = -1;
    rank->fault_dpu = rank->fault_tasklet = rank->corrupt_dpu = -1;
    rank->lock = -1;
}

static void
set_disabled(struct dpu_rank_t *rank, const char *list)
{
    while (*list != '\0') {
        char *end;
        unsigned long dpu = strtoul(list, &end, 10);
        if (end == list) {
            return;
        }
        if (dpu < MOST_DPUS) {
            rank->disabled |= 1ull << dpu;
        }
        list = *end == ',' ? end + 1 : end;
    }
}

static bool
set_field(struct dpu_rank_t *rank, const char *key, const char *value)
{
    const struct {
        const char *key;
        uint32_t *field;
        uint32_t least, most;
    } numbers[] = {
        { "number", &rank->number, 0, 4095 },
        { "cis", &rank->cis, 1, DPU_MAX_NR_CIS },
        { "dpus_per_ci", &rank->dpus_per_ci, 1, DPU_MAX_NR_DPUS_PER_CI },
        { "mram_bytes", &rank->mram_bytes, 4096, MRAM_SPAN },
        { "wram_bytes", &rank->wram_bytes, 4096, 65536 },
        { "iram_instructions", &rank->iram_instructions, 1, 65536 },
        { "tasklets", &rank->tasklets, 1, MOST_TASKLETS },
    };
    for (size_t each = 0; each < sizeof numbers / sizeof *numbers; each++) {
        if (strcmp(key, numbers[each].key) == 0) {
            unsigned long number = strtoul(value, NULL, 0);
            *numbers[each].field = (uint32_t)number;
            return number >= numbers[each].least && number <= numbers[each].most;
        }
    }
    if (strcmp(key, "clock_hz") == 0) {
        rank->clock_hz = strtoull(value, NULL, 0);
    } else if (strcmp(key, "numa_node") == 0) {
        rank->numa_node = atoi(value);
    } else if (strcmp(key, "disabled") == 0) {
        set_disabled(rank, value);
    } else if (strcmp(key, "lost") == 0) {
        rank->lost = atoi(value) != 0;
    } else if (strcmp(key, "hangs") == 0) {
        rank->hangs = atoi(value) != 0;
    } else if (strcmp(key, "slow_seconds") == 0) {
        rank->slow_seconds = atof(value);
    } else if (strcmp(key, "fault_dpu") == 0) {
        rank->fault_dpu = atoi(value);
    } else if (strcmp(key, "fault_tasklet") == 0) {
        rank->fault_tasklet = atoi(value);
    } else if (strcmp(key, "corrupt_dpu") == 0) {
        rank->corrupt_dpu = atoi(value);
    } else {
        return false;
    }
    return true;
}

static bool
read_line(struct dpu_rank_t *rank, char *line, uint32_t number)
{
    char *rest;
    const char *word = strtok_r(line, " \t\r\n", &rest);
    const char *name = strtok_r(NULL, " \t\r\n", &rest);
    if (word == NULL || strcmp(word, "rank") != 0 || name == NULL) {
        return false;
    }
    set_defaults(rank, number);
    snprintf(rank->name, sizeof rank->name, "%s", name);
    for (char *field; (field = strtok_r(NULL, " \t\r\n", &rest)) != NULL;) {
        char *value = strchr(field, '=');
        if (value == NULL) {
            return false;
        }
        *value++ = '\0';
        if (!set_field(rank, field, value)) {
            return false;
        }
    }
    return true;
}

static int
read_file(const char *path, struct dpu_rank_t *ranks, int room)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        (void)fail(DPU_ERR_DRIVER, "HAL_UPMEM_RANKS_FILE=%s: %s", path, strerror(errno));
        return -1;
    }
    char line[1024], kept[64];
    int count = 0;
    for (int number = 1; count < room && fgets(line, sizeof line, file) != NULL; number++) {
        if (line[0] == '#' || line[strspn(line, " \t\r\n")] == '\0') {
            continue;
        }
        snprintf(kept, sizeof kept, "%.40s", line);
        if (!read_line(&ranks[count], line, (uint32_t)count)) {
            fclose(file);
            (void)fail(DPU_ERR_DRIVER, "%s, line %d is no rank: %s", path, number, kept);
            return -1;
        }
        count++;
    }
    fclose(file);
    return count;
}

int
config_read(struct dpu_rank_t *ranks, int room)
{
    const char *path = getenv("HAL_UPMEM_RANKS_FILE");
    if (path != NULL && *path != '\0') {
        return read_file(path, ranks, room);
    }
    long count = environment_number("HAL_UPMEM_RANKS", 1);
    for (int each = 0; each < count && each < room; each++) {
        set_defaults(&ranks[each], (uint32_t)each);
    }
    return count < room ? (int)count : room;
}

void
config_refresh(struct dpu_rank_t *rank)
{
    const char *path = getenv("HAL_UPMEM_RANKS_FILE");
    FILE *file = path == NULL || *path == '\0' ? NULL : fopen(path, "re");
    if (file == NULL) {
        return;
    }
    char line[1024];
    struct dpu_rank_t *now = malloc(sizeof *now);
    while (now != NULL && fgets(line, sizeof line, file) != NULL) {
        if (read_line(now, line, 0) && strcmp(now->name, rank->name) == 0) {
            rank->lost = now->lost;
            rank->hangs = now->hangs;
            rank->slow_seconds = now->slow_seconds;
            rank->fault_dpu = now->fault_dpu;
            rank->fault_tasklet = now->fault_tasklet;
            rank->corrupt_dpu = now->corrupt_dpu;
            break;
        }
    }
    free(now);
    fclose(file);
}

int
config_lock(const struct dpu_rank_t *rank)
{
    char folder[256], path[320];
    const char *given = getenv("HAL_UPMEM_LOCKS"), *runtime = getenv("XDG_RUNTIME_DIR");
    if (given != NULL && *given != '\0') {
        snprintf(folder, sizeof folder, "%s", given);
    } else if (runtime != NULL && access(runtime, W_OK) == 0) {
        snprintf(folder, sizeof folder, "%s/hal-upmem", runtime);
    } else {
        snprintf(folder, sizeof folder, "/tmp/hal-upmem-%u", (unsigned)getuid());
    }
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/%s", folder, rank->name);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0 && flock(file, LOCK_EX | LOCK_NB) != 0) {
        close(file);
        file = -1;
    }
    return file;
}
