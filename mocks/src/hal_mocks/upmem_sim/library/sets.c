/* Sets, ranks and DPUs: what is in which, and going through them. */
#include "internal.h"

static uint32_t
rank_dpus(const struct dpu_rank_t *rank)
{
    return rank->cis * rank->dpus_per_ci;
}

uint32_t
rank_count(const struct dpu_rank_t *rank)
{
    uint32_t count = 0;
    for (uint32_t index = 0; index < rank_dpus(rank); index++) {
        count += rank->dpus[index].enabled;
    }
    return count;
}

struct dpu_rank_t **
set_ranks(const struct dpu_set_t *set, struct dpu_rank_t **single, uint32_t *count)
{
    if (set->kind == DPU_SET_RANKS) {
        *count = set->list.nr_ranks;
        return set->list.ranks;
    }
    *single = set->dpu->rank;
    *count = 1;
    return single;
}

uint32_t
set_count(const struct dpu_set_t *set)
{
    if (set->kind == DPU_SET_DPU) {
        return 1;
    }
    uint32_t count = 0;
    for (uint32_t each = 0; each < set->list.nr_ranks; each++) {
        count += rank_count(set->list.ranks[each]);
    }
    return count;
}

dpu_error_t
set_each(const struct dpu_set_t *set, dpu_work work, void *context)
{
    if (set->kind == DPU_SET_DPU) {
        if (!set->dpu->enabled) {
            return fail(DPU_ERR_DPU_DISABLED, "dpu %u of %s is disabled", set->dpu->index, set->dpu->rank->name);
        }
        return work(set->dpu, 0, context);
    }
    uint32_t count = 0;
    for (uint32_t each = 0; each < set->list.nr_ranks; each++) {
        struct dpu_rank_t *rank = set->list.ranks[each];
        for (uint32_t index = 0; index < rank_dpus(rank); index++) {
            if (rank->dpus[index].enabled) {
                dpu_error_t status = work(&rank->dpus[index], count++, context);
                if (status != DPU_OK) {
                    return status;
                }
            }
        }
    }
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_get_nr_ranks(struct dpu_set_t dpu_set, uint32_t *nr_ranks)
{
    *nr_ranks = dpu_set.kind == DPU_SET_RANKS ? dpu_set.list.nr_ranks : 1;
    return DPU_OK;
}

PUBLIC dpu_error_t
dpu_get_nr_dpus(struct dpu_set_t dpu_set, uint32_t *nr_dpus)
{
    *nr_dpus = set_count(&dpu_set);
    return DPU_OK;
}

PUBLIC struct dpu_iterator_t
dpu_iterator_from(struct dpu_rank_t *rank)
{
    struct dpu_iterator_t iterator = { .rank = rank, .count = UINT32_MAX };
    dpu_iterator_next(&iterator);
    return iterator;
}

PUBLIC void
dpu_iterator_next(struct dpu_iterator_t *iterator)
{
    uint32_t index = iterator->next_idx;
    while (index < rank_dpus(iterator->rank) && !iterator->rank->dpus[index].enabled) {
        index++;
    }
    iterator->count++;
    iterator->has_next = index < rank_dpus(iterator->rank);
    iterator->next = iterator->has_next ? &iterator->rank->dpus[index] : NULL;
    iterator->next_idx = index + 1;
}

static struct dpu_set_t
rank_at(struct dpu_set_t *set, uint32_t index)
{
    return (struct dpu_set_t) { .kind = DPU_SET_RANKS, .list = { 1, &set->list.ranks[index] } };
}

PUBLIC struct dpu_set_rank_iterator_t
dpu_set_rank_iterator_from(struct dpu_set_t *set)
{
    struct dpu_set_rank_iterator_t iterator = { .set = set, .next_idx = 1, .has_next = true, .next = *set };
    if (set->kind == DPU_SET_RANKS) {
        iterator.has_next = set->list.nr_ranks > 0;
        if (iterator.has_next) {
            iterator.next = rank_at(set, 0);
        }
    }
    return iterator;
}

PUBLIC void
dpu_set_rank_iterator_next(struct dpu_set_rank_iterator_t *iterator)
{
    struct dpu_set_t *set = iterator->set;
    iterator->count++;
    iterator->has_next = iterator->has_next && set->kind == DPU_SET_RANKS && iterator->next_idx < set->list.nr_ranks;
    if (iterator->has_next) {
        iterator->next = rank_at(set, iterator->next_idx++);
    }
}

/* Moves to the next enabled DPU, through the ranks; next_idx is the place in the rank from where to look. */
static void
find_dpu(struct dpu_set_dpu_iterator_t *iterator)
{
    for (; iterator->rank_iterator.has_next; dpu_set_rank_iterator_next(&iterator->rank_iterator)) {
        struct dpu_set_t *within = &iterator->rank_iterator.next;
        if (within->kind == DPU_SET_DPU) {
            iterator->has_next = iterator->next_idx == 0 && within->dpu->enabled;
            iterator->next = *within;
            iterator->next_idx = 1;
            return;
        }
        struct dpu_rank_t *rank = within->list.ranks[0];
        for (; iterator->next_idx < rank_dpus(rank); iterator->next_idx++) {
            if (rank->dpus[iterator->next_idx].enabled) {
                iterator->next = dpu_set_from_dpu(&rank->dpus[iterator->next_idx++]);
                iterator->has_next = true;
                return;
            }
        }
        iterator->next_idx = 0;
    }
    iterator->has_next = false;
}

PUBLIC struct dpu_set_dpu_iterator_t
dpu_set_dpu_iterator_from(struct dpu_set_t *set)
{
    struct dpu_set_dpu_iterator_t iterator = { .rank_iterator = dpu_set_rank_iterator_from(set), .next = *set };
    find_dpu(&iterator);
    return iterator;
}

PUBLIC void
dpu_set_dpu_iterator_next(struct dpu_set_dpu_iterator_t *iterator)
{
    iterator->count++;
    find_dpu(iterator);
}

PUBLIC struct dpu_t *
dpu_get(struct dpu_rank_t *rank, dpu_slice_id_t slice_id, dpu_member_id_t dpu_id)
{
    bool there = slice_id < rank->cis && dpu_id < rank->dpus_per_ci;
    return there ? &rank->dpus[slice_id * rank->dpus_per_ci + dpu_id] : NULL;
}

PUBLIC dpu_id_t
dpu_get_id(struct dpu_t *dpu)
{
    return (dpu_get_rank_id(dpu->rank) << 16) | ((dpu_id_t)dpu->slice << 8) | dpu->member;
}

PUBLIC dpu_id_t
dpu_get_rank_id(struct dpu_rank_t *rank)
{
    return rank->number & 0xfff; /* the four bits above say the back end: 0 is the functional simulator */
}

PUBLIC int
dpu_get_rank_numa_node(struct dpu_rank_t *rank)
{
    return rank->numa_node;
}

PUBLIC const char *
dpu_sim_rank_name(struct dpu_rank_t *rank)
{
    return rank->name;
}

PUBLIC struct dpu_rank_t *
dpu_get_rank(struct dpu_t *dpu)
{
    return dpu->rank;
}

PUBLIC dpu_slice_id_t
dpu_get_slice_id(struct dpu_t *dpu)
{
    return dpu->slice;
}

PUBLIC dpu_member_id_t
dpu_get_member_id(struct dpu_t *dpu)
{
    return dpu->member;
}

PUBLIC bool
dpu_is_enabled(struct dpu_t *dpu)
{
    return dpu->enabled;
}

PUBLIC struct dpu_set_t
dpu_set_from_rank(struct dpu_rank_t **rank)
{
    return (struct dpu_set_t) { .kind = DPU_SET_RANKS, .list = { 1, rank } };
}

PUBLIC struct dpu_set_t
dpu_set_from_dpu(struct dpu_t *dpu)
{
    return (struct dpu_set_t) { .kind = DPU_SET_DPU, .dpu = dpu };
}

PUBLIC struct dpu_rank_t *
dpu_rank_from_set(struct dpu_set_t set)
{
    return set.kind == DPU_SET_RANKS ? set.list.ranks[0] : set.dpu->rank;
}

PUBLIC struct dpu_t *
dpu_from_set(struct dpu_set_t set)
{
    return set.kind == DPU_SET_DPU ? set.dpu : NULL;
}
