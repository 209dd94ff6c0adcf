/* Signals: what a program does wrong stops its DPU, not the host's process; and a tasklet that waits busily for another
 * is interrupted, so that the other can run. A signal that no program caused goes to whoever had it before. */
#include "worker.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define TICK SIGURG /* ignored by those who do not know it */

static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
static struct sigaction before[NSIG];

void preempted(uint64_t count);

static void
pass_on(int signal, siginfo_t *info, void *context)
{
    struct sigaction *old = &before[signal];
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(signal, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(signal);
    } else if (old->sa_handler == SIG_DFL && signal != TICK) {
        sigaction(signal, old, NULL); /* and the instruction is tried again, as if we were not there */
    }
}

static bool
in_text(const struct worker *worker, uint64_t at)
{
    uint64_t first = (uint64_t)(uintptr_t)worker->base + TEXT_ADDRESS;
    return at >= first && at < first + worker->running->text.size;
}

static void
describe(struct worker *worker, int signal, const siginfo_t *info, uint64_t at, char *text, size_t room)
{
    uint64_t base = (uint64_t)(uintptr_t)worker->base, address = (uint64_t)(uintptr_t)info->si_addr;
    char name[96] = "the library";
    if (in_text(worker, at)) {
        program_place(worker->running, (uint32_t)(at - base), name, sizeof name);
    }
    uint64_t stacks = base + STACKS_ADDRESS;
    uint64_t span = (uint64_t)STACK_SPAN * worker->running->nr_tasklets;
    if (signal == SIGFPE) {
        snprintf(text, room, "division by zero in %s", name);
    } else if (signal == SIGILL) {
        snprintf(text, room, "halt: an instruction that traps, in %s", name);
    } else if (address >= stacks && address < stacks + span) {
        uint32_t whose = (uint32_t)((address - stacks) / STACK_SPAN);
        snprintf(text, room, "stack overflow of tasklet %u, whose stack has %u bytes, in %s", whose,
            worker->running->stacks[whose], name);
    } else if (address >= base && address < base + ARENA_BYTES) {
        uint32_t local = (uint32_t)(address - base);
        const char *where = local < TEXT_ADDRESS ? "beyond the end of WRAM" : "in no memory of the DPU";
        snprintf(text, room, "invalid access at 0x%08x, %s, in %s", local, where, name);
    } else if (address < 65536) {
        snprintf(text, room, "null pointer (address 0x%llx) in %s", (unsigned long long)address, name);
    } else {
        snprintf(text, room, "invalid access at 0x%llx, in no memory of the DPU, in %s", (unsigned long long)address, name);
    }
}

static void
on_fault(int signal, siginfo_t *info, void *context)
{
    struct worker *worker = self;
    if (worker == NULL || !worker->in_tasklet) {
        pass_on(signal, info, context);
        return;
    }
    const ucontext_t *where = context;
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
    uint64_t window = (uint64_t)(uintptr_t)worker->base + MRAM_ADDRESS;
    if (signal == SIGSEGV && address >= window && address < window + worker->dpu->rank->mram_bytes
        && worker->mram == worker->dpu->mram) {
        arena_mram_in(worker);
        if (worker->mram != worker->dpu->mram) {
            return;
        }
    }
    char text[320];
    describe(worker, signal, info, (uint64_t)where->uc_mcontext.gregs[REG_RIP], text, sizeof text);
    fault(worker, (int)(worker->current - worker->tasklets), "%s", text);
    siglongjmp(worker->landing, 1);
}

/* Every 20 ms of a run: nothing, unless the same tasklet has run all the while without a call. */
static void
on_tick(int signal, siginfo_t *info, void *context)
{
    struct worker *worker = self;
    if (worker == NULL) {
        pass_on(signal, info, context);
        return;
    }
    ucontext_t *where = context;
    bool stuck = worker->in_tasklet && worker->steps == worker->steps_at_tick;
    worker->steps_at_tick = worker->steps;
    if (stuck && in_text(worker, (uint64_t)where->uc_mcontext.gregs[REG_RIP])) {
        uint64_t sp = (uint64_t)where->uc_mcontext.gregs[REG_RSP] - 128;
        sp -= 8;
        *(uint64_t *)(uintptr_t)sp = (uint64_t)where->uc_mcontext.gregs[REG_RIP];
        where->uc_mcontext.gregs[REG_RSP] = (greg_t)sp;
        where->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)hal_preempt;
    }
}

/* Called by hal_preempt, on the tasklet's stack. */
__attribute__((used)) void
preempted(uint64_t count)
{
    struct worker *worker = self;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long limit = environment_number("HAL_UPMEM_TIMEOUT_SECONDS", 0);
    if (limit > 0 && now.tv_sec - worker->started.tv_sec > limit) {
        fault_here("it has run for %ld s without an end (HAL_UPMEM_TIMEOUT_SECONDS)", limit);
    }
    *(uint64_t *)(void *)(worker->base + worker->running->count) = count;
    (void)wait_for(NOTHING, 0, 0, 0, 0);
}

static void
install(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction now, ours = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | flags };
    sigemptyset(&ours.sa_mask);
    if (sigaction(signal, NULL, &now) == 0 && (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != handler)) {
        before[signal] = now;
        sigaction(signal, &ours, NULL);
    }
}

void
signals_install(void)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    for (size_t each = 0; each < sizeof faults / sizeof *faults; each++) {
        install(faults[each], on_fault, SA_NODEFER);
    }
    install(TICK, on_tick, 0);
    pthread_mutex_unlock(&mutex);
}

void
signals_for_thread(struct worker *worker)
{
    stack_t alternative = { .ss_sp = worker->signal_stack, .ss_size = sizeof worker->signal_stack };
    sigaltstack(&alternative, NULL);
    sigset_t all;
    sigfillset(&all);
    for (size_t each = 0; each < sizeof faults / sizeof *faults; each++) {
        sigdelset(&all, faults[each]);
    }
    sigdelset(&all, TICK);
    pthread_sigmask(SIG_SETMASK, &all, NULL); /* the process's signals are for its other threads */
    struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = TICK };
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    timer_create(CLOCK_MONOTONIC, &event, &worker->timer);
}
