/* A deadlock in words: who waits for what, and who could have helped. */
#include "worker.h"

#include <string.h>

static void
describe_one(struct worker *worker, const struct tasklet *tasklet, char *text, size_t room)
{
    const struct dpu_program_t *program = worker->running;
    uint32_t base = (uint32_t)(uintptr_t)worker->base;
    char name[96];
    program_place(program, tasklet->a - base, name, sizeof name);
    switch (tasklet->want) {
    case BARRIER: {
        const uint8_t *barrier = (const uint8_t *)(uintptr_t)tasklet->a;
        snprintf(text, room, "barrier %s (%d of %d have come)", name, (int8_t)(barrier[2] - barrier[1]), (int8_t)barrier[2]);
        break;
    }
    case ACQUIRE: {
        uint32_t owner = worker->owners[tasklet->a & 0xff];
        bool ended = owner != 0 && worker->tasklets[owner - 1].state == ENDED;
        const char *plain = strncmp(name, "__atomic_bit_", 13) == 0 ? name + 13 : name;
        plain = strncmp(plain, "mutex_", 6) == 0 ? plain + 6 : plain;
        snprintf(text, room, "mutex %s held by tasklet %u%s", plain, owner - 1,
            ended ? ", which ended without releasing it" : "");
        break;
    }
    case TAKE:
        snprintf(text, room, "semaphore %s", name);
        break;
    case NOTIFY:
        snprintf(text, room, "somebody to wait for its handshake");
        break;
    case WAIT_FOR: {
        bool ended = worker->tasklets[tasklet->a].state == ENDED;
        snprintf(text, room, "a handshake of tasklet %u%s", tasklet->a, ended ? ", which has ended" : "");
        break;
    }
    case VLOCK:
        snprintf(text, room, "virtual mutex in %s", name);
        break;
    default:
        snprintf(text, room, "nothing");
        break;
    }
}

void
describe_waiting(struct worker *worker, char *text, size_t room)
{
    size_t used = 0;
    text[0] = '\0';
    for (uint32_t each = 0; each < worker->running->nr_tasklets; each++) {
        char one[160];
        if (worker->tasklets[each].state == BLOCKED && used + sizeof one < room) {
            describe_one(worker, &worker->tasklets[each], one, sizeof one);
            used += (size_t)snprintf(text + used, room - used, "%stasklet %u waits for %s", used == 0 ? "" : "; ", each, one);
        } else if (worker->tasklets[each].state == BLOCKED) {
            used += (size_t)snprintf(text + used, room - used, "; ...");
            break;
        }
    }
}
