/* Allocation: ranks are taken whole, by one process at a time. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_RANKS 256

static pthread_mutex_t allocation = PTHREAD_MUTEX_INITIALIZER;

static dpu_error_t
open_rank(struct dpu_rank_t *rank, const struct request *request)
{
    rank->seed = request->seed;
    rank->scatter = request->scatter;
    rank->scatter_blocks = request->scatter_blocks;
    size_t span = (size_t)MRAM_SPAN * rank->cis * rank->dpus_per_ci;
    rank->mram = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (rank->mram == MAP_FAILED) {
        rank->mram = NULL;
        return fail(DPU_ERR_SYSTEM, "%s: no address space for %zu MiB of MRAM", rank->name, span >> 20);
    }
    pthread_mutex_init(&rank->mutex, NULL);
    pthread_cond_init(&rank->changed, NULL);
    for (uint32_t index = 0; index < rank->cis * rank->dpus_per_ci; index++) {
        struct dpu_t *dpu = &rank->dpus[index];
        dpu->rank = rank;
        dpu->index = (uint8_t)index;
        dpu->slice = (uint8_t)(index / rank->dpus_per_ci);
        dpu->member = (uint8_t)(index % rank->dpus_per_ci);
        dpu->enabled = !(rank->disabled >> index & 1);
        dpu->mram = rank->mram + (size_t)MRAM_SPAN * index;
        dpu->fault_tasklet = -1;
        pthread_mutex_init(&dpu->wram_lock, NULL);
    }
    return DPU_OK;
}

static void
close_rank(struct dpu_rank_t *rank)
{
    if (rank->mram != NULL) {
        queue_close(rank);
        munmap(rank->mram, (size_t)MRAM_SPAN * rank->cis * rank->dpus_per_ci);
        for (uint32_t index = 0; index < rank->cis * rank->dpus_per_ci; index++) {
            dpu_forget_program(&rank->dpus[index]);
            free(rank->dpus[index].wram);
            free(rank->dpus[index].log);
        }
    }
    if (rank->lock >= 0) {
        close(rank->lock);
    }
    free(rank);
}

static bool
wanted(const struct dpu_rank_t *rank, const struct request *request)
{
    if (request->rank_path[0] == '\0') {
        return true;
    }
    const char *name = strrchr(request->rank_path, '/');
    return strcmp(name == NULL ? request->rank_path : name + 1, rank->name) == 0;
}

/* Takes free ranks until there are enough; returns how many DPUs the ranks have. */
static uint32_t
take_ranks(const struct dpu_rank_t *found, int count, const struct request *request, struct dpu_rank_t **taken,
    uint32_t *nr_taken, dpu_error_t *status, char *why, size_t room)
{
    uint32_t dpus = 0;
    for (int each = 0; each < count && *status == DPU_OK; each++) {
        if (request->nr_ranks != 0 ? *nr_taken >= request->nr_ranks : dpus >= request->nr_dpus) {
            break;
        }
        if (!wanted(&found[each], request)) {
            continue;
        }
        size_t used = strlen(why);
        if (found[each].lost) {
            snprintf(why + used, room - used, ", %s does not answer", found[each].name);
            continue;
        }
        int lock = config_lock(&found[each]);
        if (lock < 0) {
            snprintf(why + used, room - used, ", %s has an owner", found[each].name);
            continue;
        }
        struct dpu_rank_t *rank = malloc(sizeof *rank);
        if (rank == NULL) {
            close(lock);
            *status = fail(DPU_ERR_SYSTEM, "no memory for a rank");
            break;
        }
        *rank = found[each];
        rank->lock = lock;
        taken[(*nr_taken)++] = rank;
        *status = open_rank(rank, request);
        dpus += rank_count(rank);
    }
    return dpus;
}

/* Leaves as many DPUs enabled as were asked for: what is too much in the last rank is switched off. */
static void
trim(struct dpu_rank_t *rank, uint32_t surplus)
{
    for (int index = MOST_DPUS - 1; index >= 0 && surplus > 0; index--) {
        if (rank->dpus[index].enabled) {
            rank->dpus[index].enabled = false;
            surplus--;
        }
    }
}

static dpu_error_t
allocate(struct request *request, struct dpu_set_t *set)
{
    bool all = request->nr_dpus == DPU_ALLOCATE_ALL || request->nr_ranks == DPU_ALLOCATE_ALL;
    struct dpu_rank_t *found = calloc(MOST_RANKS, sizeof *found), **taken = calloc(MOST_RANKS, sizeof(*taken));
    char why[256] = "";
    uint32_t nr_taken = 0, dpus = 0;
    dpu_error_t status = found == NULL || taken == NULL ? fail(DPU_ERR_SYSTEM, "no memory for ranks") : DPU_OK;
    if (status == DPU_OK) {
        int count = config_read(found, MOST_RANKS);
        if (count < 0) {
            status = DPU_ERR_DRIVER;
        } else {
            dpus = take_ranks(found, count, request, taken, &nr_taken, &status, why, sizeof why);
        }
        bool enough = all ? nr_taken > 0 : request->nr_ranks != 0 ? nr_taken == request->nr_ranks
                                                                  : dpus >= request->nr_dpus;
        if (status == DPU_OK && !enough) {
            status = fail(DPU_ERR_ALLOCATION, "%u DPUs in %u free ranks of %d%s", dpus, nr_taken, count, why);
        }
    }
    free(found);
    if (status != DPU_OK) {
        for (uint32_t each = 0; each < nr_taken; each++) {
            close_rank(taken[each]);
        }
        free(taken);
        return status;
    }
    if (!all && request->nr_dpus != 0) {
        trim(taken[nr_taken - 1], dpus - request->nr_dpus);
    }
    *set = (struct dpu_set_t) { .kind = DPU_SET_RANKS, .list = { nr_taken, taken } };
    return DPU_OK;
}

static dpu_error_t
allocate_request(uint32_t dpus, uint32_t ranks, const char *profile, struct dpu_set_t *set)
{
    struct request request = { .nr_dpus = dpus, .nr_ranks = ranks };
    dpu_error_t status = profile_read(profile, &request);
    if (status == DPU_OK && dpus == 0 && ranks == 0) {
        status = fail(DPU_ERR_ALLOCATION, "nothing was asked for");
    }
    if (status == DPU_OK) {
        pthread_mutex_lock(&allocation);
        status = allocate(&request, set);
        pthread_mutex_unlock(&allocation);
    }
    return status;
}

PUBLIC dpu_error_t
dpu_alloc(uint32_t nr_dpus, const char *profile, struct dpu_set_t *dpu_set)
{
    return allocate_request(nr_dpus, 0, profile, dpu_set);
}

PUBLIC dpu_error_t
dpu_alloc_ranks(uint32_t nr_ranks, const char *profile, struct dpu_set_t *dpu_set)
{
    return allocate_request(0, nr_ranks, profile, dpu_set);
}

PUBLIC dpu_error_t
dpu_free(struct dpu_set_t dpu_set)
{
    if (dpu_set.kind != DPU_SET_RANKS || dpu_set.list.ranks == NULL) {
        return fail(DPU_ERR_INVALID_DPU_SET, "only a set that was allocated can be freed");
    }
    for (uint32_t each = 0; each < dpu_set.list.nr_ranks; each++) {
        close_rank(dpu_set.list.ranks[each]);
    }
    free(dpu_set.list.ranks);
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_get_rank_of_type(const char *profile, struct dpu_rank_t **rank)
{
    struct dpu_set_t set;
    dpu_error_t status = dpu_alloc_ranks(1, profile, &set);
    if (status == DPU_OK) {
        *rank = set.list.ranks[0];
        free(set.list.ranks);
    }
    return status;
}

PUBLIC dpu_error_t
dpu_free_rank(struct dpu_rank_t *rank)
{
    close_rank(rank);
    return DPU_OK;
}
