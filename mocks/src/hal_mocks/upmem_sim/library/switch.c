/* Going from one stack to another: the registers that a call preserves, and no more.
 *
 * For another processor this file is what has to be written (or ucontext used), beside the compiler's flags. */
#ifndef __x86_64__
#error "the simulator runs on x86-64 only: its DPU programs are compiled to x32"
#endif

__asm__(".text\n"
        ".p2align 4\n"
        ".globl hal_switch\n"
        ".hidden hal_switch\n"
        ".type hal_switch, @function\n"
        "hal_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size hal_switch, . - hal_switch\n");

/* Entered from a signal in the middle of a tasklet's code, with the address of that place pushed below its red zone:
 * keeps everything, lets others run, and goes back as if nothing had been. */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl hal_preempt\n"
        ".hidden hal_preempt\n"
        ".type hal_preempt, @function\n"
        "hal_preempt:\n"
        "  pushfq\n"
        "  pushq %rax\n  pushq %rcx\n  pushq %rdx\n  pushq %rsi\n  pushq %rdi\n"
        "  pushq %r8\n  pushq %r9\n  pushq %r10\n  pushq %r11\n  pushq %rbp\n"
        "  movq %rsp, %rbp\n"
        "  subq $528, %rsp\n"
        "  andq $-16, %rsp\n"
        "  fxsave64 (%rsp)\n"
        "  cld\n"
        "  movq %r15, %rdi\n"
        "  call preempted\n"
        "  fxrstor64 (%rsp)\n"
        "  movq %rbp, %rsp\n"
        "  popq %rbp\n  popq %r11\n  popq %r10\n  popq %r9\n  popq %r8\n"
        "  popq %rdi\n  popq %rsi\n  popq %rdx\n  popq %rcx\n  popq %rax\n"
        "  popfq\n"
        "  ret $128\n"
        ".size hal_preempt, . - hal_preempt\n");
