/* Loading: every DPU of a set gets the program's bytes in its WRAM, and its initialised variables in MRAM. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

void
dpu_forget_program(struct dpu_t *dpu)
{
    dpu_free_program(dpu->program);
    dpu->program = NULL;
}

/* Puts the arena's addresses where the program has the unit's, within a part of it. */
static void
relocate(const struct dpu_program_t *program, const struct part *part, uint8_t *bytes, uint64_t base)
{
    for (uint32_t each = 0; each < program->nr_relocations; each++) {
        const struct relocation *place = &program->relocations[each];
        if (place->address >= part->address && place->address + place->bytes <= part->address + part->size) {
            uint64_t value = base + place->value;
            memcpy(bytes + (place->address - part->address), &value, place->bytes);
        }
    }
}

static dpu_error_t
fits(const struct dpu_program_t *program, const struct dpu_rank_t *rank)
{
    if (program->nr_tasklets > rank->tasklets) {
        return fail(DPU_ERR_TOO_MANY_TASKLETS, "%s uses %u tasklets, the DPUs of %s run %u", program->path,
            program->nr_tasklets, rank->name, rank->tasklets);
    }
    if (program->heap > rank->wram_bytes) {
        return fail(DPU_ERR_INVALID_WRAM_ACCESS, "WRAM overflow: %s has %u bytes of data and stacks, a DPU of %s has %u",
            program->path, program->heap, rank->name, rank->wram_bytes);
    }
    if (program->mram_end - MRAM_ADDRESS > rank->mram_bytes) {
        return fail(DPU_ERR_INVALID_MRAM_ACCESS, "MRAM overflow: %s has %u bytes of variables, a DPU of %s has %u",
            program->path, program->mram_end - MRAM_ADDRESS, rank->name, rank->mram_bytes);
    }
    return DPU_OK;
}

static dpu_error_t
load_dpu(struct dpu_t *dpu, uint32_t index, void *context)
{
    (void)index;
    struct dpu_program_t *program = context;
    dpu_error_t status = fits(program, dpu->rank);
    uint64_t base = pool_base(dpu_worker(dpu));
    if (status != DPU_OK) {
        return status;
    }
    if (base == 0) {
        return fail(DPU_ERR_SYSTEM, "no room for a DPU's memories below 2 GiB of this process");
    }
    if (dpu->wram == NULL && (dpu->wram = calloc(1, 65536)) == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for WRAM");
    }
    memset(dpu->wram, 0, dpu->wram_used);
    if (program->wram.bytes != NULL) {
        memcpy(dpu->wram, program->wram.bytes, program->wram.size);
    }
    relocate(program, &program->wram, dpu->wram, base);
    dpu->wram_used = program->heap;
    if (program->mram.bytes != NULL) {
        uint8_t *at = dpu->mram + (program->mram.address - MRAM_ADDRESS);
        memcpy(at, program->mram.bytes, program->mram.size);
        relocate(program, &program->mram, at, base);
    }
    dpu_take_program_ref(program);
    dpu_forget_program(dpu);
    dpu->program = program;
    dpu->state = NEVER_RUN;
    dpu->fault[0] = '\0';
    dpu->fault_tasklet = -1;
    dpu->log_used = 0;
    return DPU_OK;
}

dpu_error_t
program_load(struct dpu_set_t *set, struct dpu_program_t *program)
{
    return set_each(set, load_dpu, program);
}

static dpu_error_t
load_bytes(struct dpu_set_t set, const uint8_t *bytes, size_t size, const char *path, struct dpu_program_t **program)
{
    struct dpu_rank_t *single, **ranks;
    struct dpu_program_t *made;
    uint32_t count;
    ranks = set_ranks(&set, &single, &count);
    for (uint32_t each = 0; each < count; each++) {
        config_refresh(ranks[each]);
        if (ranks[each]->lost) {
            return fail(DPU_ERR_DRIVER, "%s does not answer", ranks[each]->name);
        }
    }
    dpu_error_t status = queue_settle(&set, true);
    if (status == DPU_OK) {
        status = program_read(bytes, size, path, count > 0 && schedule_seed(ranks[0]) != 0, &made);
    }
    if (status != DPU_OK) {
        return status;
    }
    status = program_load(&set, made);
    /* The DPUs keep the program; as with the SDK, the caller's pointer is valid as long as they do. */
    dpu_free_program(made);
    if (status == DPU_OK && program != NULL) {
        *program = made;
    }
    return status;
}

PUBLIC dpu_error_t
dpu_load_from_memory(
    struct dpu_set_t dpu_set, uint8_t *buffer, size_t buffer_size, struct dpu_program_t **program)
{
    return load_bytes(dpu_set, buffer, buffer_size, "a program in memory", program);
}

PUBLIC dpu_error_t
dpu_load_from_incbin(struct dpu_set_t dpu_set, struct dpu_incbin_t *incbin, struct dpu_program_t **program)
{
    const char *path = incbin->path == NULL ? "a program in the executable" : incbin->path;
    return load_bytes(dpu_set, incbin->buffer, incbin->size, path, program);
}

PUBLIC dpu_error_t
dpu_load(struct dpu_set_t dpu_set, const char *binary_path, struct dpu_program_t **program)
{
    struct stat state;
    FILE *file = fopen(binary_path, "re");
    if (file == NULL || fstat(fileno(file), &state) != 0) {
        dpu_error_t code = errno == ENOENT ? DPU_ERR_ELF_NO_SUCH_FILE : DPU_ERR_SYSTEM;
        code = fail(code, "%s: %s", binary_path, strerror(errno));
        if (file != NULL) {
            fclose(file);
        }
        return code;
    }
    size_t size = (size_t)state.st_size;
    uint8_t *bytes = malloc(size + 1);
    dpu_error_t status = DPU_ERR_SYSTEM;
    if (bytes == NULL || fread(bytes, 1, size, file) != size) {
        status = fail(DPU_ERR_SYSTEM, "%s cannot be read", binary_path);
    } else {
        status = load_bytes(dpu_set, bytes, size, binary_path, program);
    }
    free(bytes);
    fclose(file);
    return status;
}

PUBLIC struct dpu_program_t *
dpu_get_program(struct dpu_t *dpu)
{
    return dpu->program;
}
