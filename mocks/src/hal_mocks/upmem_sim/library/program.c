/* Programs: files of our compiler wrapper, read and checked. Nothing of them is trusted before it is. */
#include "internal.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

struct reader {
    const uint8_t *bytes;
    size_t size;
    const Elf32_Shdr *sections;
    uint32_t nr_sections;
    const char *names;
    size_t names_size;
    const char *path;
};

static const char *
text_at(const char *table, size_t size, uint32_t at)
{
    return at < size && memchr(table + at, '\0', size - at) != NULL ? table + at : "";
}

static bool
inside(const struct reader *reader, uint64_t offset, uint64_t size)
{
    return offset <= reader->size && size <= reader->size - offset;
}

/* The half of the file that runs: the one with a point before each access, or the one without. */
static dpu_error_t
open_half(struct reader *reader, const uint8_t *file, size_t size, bool with_points)
{
    static const char magic[8] = "HALDPU01";
    struct {
        char magic[8];
        uint64_t offset, size;
    } trailer;
    if (size >= 4 && memcmp(file, ELFMAG, SELFMAG) != 0) {
        return fail(DPU_ERR_ELF_INVALID_FILE, "%s is not an ELF file", reader->path);
    }
    if (size > sizeof trailer) {
        memcpy(&trailer, file + size - sizeof trailer, sizeof trailer);
    }
    if (size <= sizeof trailer || memcmp(trailer.magic, magic, sizeof magic) != 0 || trailer.offset > size
        || trailer.size > size - trailer.offset) {
        return fail(DPU_ERR_ELF_INVALID_FILE,
            "%s was not made by hal-dpucc: the SDK's own binaries need UPMEM's instruction set", reader->path);
    }
    reader->bytes = with_points ? file + trailer.offset : file;
    reader->size = with_points ? trailer.size : trailer.offset;
    return DPU_OK;
}

static dpu_error_t
open_sections(struct reader *reader)
{
    const Elf32_Ehdr *head = (const Elf32_Ehdr *)reader->bytes;
    if (reader->size < sizeof *head || head->e_ident[EI_CLASS] != ELFCLASS32 || head->e_machine != EM_X86_64
        || head->e_shentsize != sizeof(Elf32_Shdr)
        || !inside(reader, head->e_shoff, (uint64_t)head->e_shnum * sizeof(Elf32_Shdr))
        || head->e_shstrndx >= head->e_shnum || head->e_shoff % _Alignof(Elf32_Shdr) != 0) {
        return fail(DPU_ERR_ELF_INVALID_FILE, "%s is cut short or of another kind", reader->path);
    }
    reader->sections = (const Elf32_Shdr *)(reader->bytes + head->e_shoff);
    reader->nr_sections = head->e_shnum;
    for (uint32_t each = 0; each < reader->nr_sections; each++) {
        const Elf32_Shdr *section = &reader->sections[each];
        if (section->sh_type != SHT_NOBITS && !inside(reader, section->sh_offset, section->sh_size)) {
            return fail(DPU_ERR_ELF_INVALID_FILE, "%s is cut short", reader->path);
        }
    }
    const Elf32_Shdr *names = &reader->sections[head->e_shstrndx];
    reader->names = (const char *)reader->bytes + names->sh_offset;
    reader->names_size = names->sh_size;
    return DPU_OK;
}

static const Elf32_Shdr *
find_section(const struct reader *reader, const char *name)
{
    for (uint32_t each = 0; each < reader->nr_sections; each++) {
        if (strcmp(text_at(reader->names, reader->names_size, reader->sections[each].sh_name), name) == 0) {
            return &reader->sections[each];
        }
    }
    return NULL;
}

static struct part
part_of(const struct reader *reader, const char *name)
{
    const Elf32_Shdr *section = find_section(reader, name);
    if (section == NULL) {
        return (struct part) { 0, 0, NULL };
    }
    const uint8_t *bytes = section->sh_type == SHT_NOBITS ? NULL : reader->bytes + section->sh_offset;
    return (struct part) { section->sh_addr, section->sh_size, bytes };
}

static dpu_error_t
read_symbols(const struct reader *reader, struct dpu_program_t *program)
{
    const Elf32_Shdr *table = find_section(reader, ".symtab"), *texts = find_section(reader, ".strtab");
    if (table == NULL || texts == NULL) {
        return fail(DPU_ERR_ELF_NO_SUCH_SECTION, "%s has no symbols", reader->path);
    }
    const Elf32_Sym *entries = (const Elf32_Sym *)(reader->bytes + table->sh_offset);
    uint32_t count = table->sh_size / sizeof *entries;
    program->symbols = calloc(count + 1, sizeof *program->symbols);
    if (program->symbols == NULL) {
        return fail(DPU_ERR_SYSTEM, "no memory for symbols");
    }
    for (uint32_t each = 0; each < count; each++) {
        const char *name
            = text_at((const char *)reader->bytes + texts->sh_offset, texts->sh_size, entries[each].st_name);
        uint8_t type = ELF32_ST_TYPE(entries[each].st_info);
        if (*name != '\0' && type != STT_FILE && type != STT_SECTION) {
            program->symbols[program->nr_symbols++]
                = (struct symbol) { name, entries[each].st_value, entries[each].st_size, type };
        }
    }
    return DPU_OK;
}

static dpu_error_t
read_relocations(const struct reader *reader, struct dpu_program_t *program)
{
    const Elf32_Shdr *table = find_section(reader, ".symtab");
    const Elf32_Sym *symbols = (const Elf32_Sym *)(reader->bytes + table->sh_offset);
    uint32_t nr_symbols = table->sh_size / sizeof *symbols;
    for (uint32_t each = 0; each < reader->nr_sections; each++) {
        const Elf32_Shdr *section = &reader->sections[each];
        if (section->sh_type != SHT_RELA || section->sh_info >= reader->nr_sections
            || !(reader->sections[section->sh_info].sh_flags & SHF_ALLOC)) {
            continue;
        }
        const Elf32_Rela *entries = (const Elf32_Rela *)(reader->bytes + section->sh_offset);
        uint32_t count = section->sh_size / sizeof *entries;
        void *grown = realloc(program->relocations, (program->nr_relocations + count) * sizeof(struct relocation));
        if (grown == NULL) {
            return fail(DPU_ERR_SYSTEM, "no memory for relocations");
        }
        program->relocations = grown;
        for (uint32_t one = 0; one < count; one++) {
            uint32_t type = ELF32_R_TYPE(entries[one].r_info), of = ELF32_R_SYM(entries[one].r_info);
            bool absolute = type == R_X86_64_32 || type == R_X86_64_32S || type == R_X86_64_64;
            if (!absolute && type != R_X86_64_PC32 && type != R_X86_64_PLT32 && type != R_X86_64_NONE) {
                return fail(DPU_ERR_ELF_INVALID_FILE, "%s has a relocation of type %u", reader->path, type);
            }
            /* Absolute symbols are numbers, not places. */
            if (absolute && of < nr_symbols && symbols[of].st_shndx != SHN_ABS && symbols[of].st_shndx != SHN_UNDEF) {
                program->relocations[program->nr_relocations++]
                    = (struct relocation) { entries[one].r_offset, symbols[of].st_value + (uint32_t)entries[one].r_addend,
                          type == R_X86_64_64 ? 8 : 4 };
            }
        }
    }
    return DPU_OK;
}

static dpu_error_t
read_facts(const struct reader *reader, struct dpu_program_t *program)
{
    const struct {
        const char *name;
        uint32_t *value;
    } facts[] = {
        { "__hal_start", &program->start },
        { "__hal_runtime", &program->runtime },
        { "__hal_count", &program->count },
        { "__hal_tasklet", &program->tasklet },
        { "CLOCKS_PER_SEC", &program->clock },
        { "__hal_budget", &program->budget },
        { "NR_TASKLETS", &program->nr_tasklets },
        { "HAL_WRAM_END", &program->heap },
        { DPU_MRAM_HEAP_POINTER_NAME, &program->mram_end },
    };
    for (size_t each = 0; each < sizeof facts / sizeof *facts; each++) {
        const struct symbol *symbol = program_symbol(program, facts[each].name);
        if (symbol == NULL) {
            return fail(DPU_ERR_ELF_INVALID_FILE, "%s has no %s", reader->path, facts[each].name);
        }
        *facts[each].value = symbol->address;
    }
    if (program->nr_tasklets == 0 || program->nr_tasklets > MOST_TASKLETS) {
        return fail(DPU_ERR_TOO_MANY_TASKLETS, "%s uses %u tasklets", reader->path, program->nr_tasklets);
    }
    for (uint32_t tasklet = 0; tasklet < program->nr_tasklets; tasklet++) {
        char name[32];
        snprintf(name, sizeof name, "STACK_SIZE_TASKLET_%u", tasklet);
        const struct symbol *size = program_symbol(program, name);
        program->stacks[tasklet] = size == NULL ? 1024 : size->address & 0xffff;
        program->heap += program->stacks[tasklet];
    }
    program->text = part_of(reader, ".text");
    program->table = part_of(reader, ".hal");
    program->wram = part_of(reader, ".wram");
    program->mram = part_of(reader, ".mram");
    const struct symbol *log = program_symbol(program, "__stdout_buffer_size");
    program->log_bytes = 1u << 20;
    if (log != NULL && program->wram.bytes != NULL && log->address + 4 <= program->wram.size) {
        memcpy(&program->log_bytes, program->wram.bytes + log->address, 4);
    }
    bool sound = program->text.address == TEXT_ADDRESS && program->text.size <= (8u << 20) && program->wram.address == 0
        && program->heap <= 65536 && program->table.size <= 4096
        && (program->mram.size == 0 || program->mram.address >= MRAM_ADDRESS)
        && program->mram_end >= MRAM_ADDRESS && program->mram_end <= MRAM_ADDRESS + MRAM_SPAN;
    return sound ? DPU_OK : fail(DPU_ERR_ELF_INVALID_FILE, "%s does not fit into a DPU's memories", reader->path);
}

dpu_error_t
program_read(const uint8_t *file, size_t size, const char *path, bool with_points, struct dpu_program_t **made)
{
    static atomic_uint_fast64_t serial = 1;
    struct dpu_program_t *program = calloc(1, sizeof *program);
    struct reader reader = { .path = path };
    if (program == NULL || (program->file = malloc(size)) == NULL || (program->path = strdup(path)) == NULL) {
        dpu_free_program(program);
        return fail(DPU_ERR_SYSTEM, "no memory for %s", path);
    }
    memcpy(program->file, file, size);
    program->references = 1;
    program->serial = serial++;
    dpu_error_t status = open_half(&reader, program->file, size, with_points);
    if (status == DPU_OK) {
        status = open_sections(&reader);
    }
    if (status == DPU_OK) {
        status = read_symbols(&reader, program);
    }
    if (status == DPU_OK) {
        status = read_relocations(&reader, program);
    }
    if (status == DPU_OK) {
        status = read_facts(&reader, program);
    }
    if (status != DPU_OK) {
        dpu_free_program(program);
        return status;
    }
    *made = program;
    return DPU_OK;
}

PUBLIC void
dpu_take_program_ref(struct dpu_program_t *program)
{
    program->references++;
}

PUBLIC void
dpu_free_program(struct dpu_program_t *program)
{
    if (program == NULL || program->references-- > 1) {
        return;
    }
    free(program->relocations);
    free(program->symbols);
    free(program->path);
    free(program->file);
    free(program);
}

const struct symbol *
program_symbol(const struct dpu_program_t *program, const char *name)
{
    for (uint32_t each = 0; each < program->nr_symbols; each++) {
        if (strcmp(program->symbols[each].name, name) == 0) {
            return &program->symbols[each];
        }
    }
    return NULL;
}

const char *
program_place(const struct dpu_program_t *program, uint32_t address, char *text, size_t room)
{
    const struct symbol *best = NULL;
    for (uint32_t each = 0; each < program->nr_symbols; each++) {
        const struct symbol *symbol = &program->symbols[each];
        if ((symbol->type == STT_FUNC || symbol->type == STT_OBJECT) && symbol->address <= address
            && (address < symbol->address + symbol->size || address == symbol->address)
            && (best == NULL || symbol->address > best->address)) {
            best = symbol;
        }
    }
    if (best == NULL) {
        snprintf(text, room, "0x%08x", address);
    } else if (best->address == address) {
        snprintf(text, room, "%s", best->name);
    } else {
        snprintf(text, room, "%s+0x%x", best->name, address - best->address);
    }
    return text;
}
