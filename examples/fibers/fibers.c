/* The switcher. Compile it with -mgeneral-regs-only: around fpstate's switch the vector registers are not the compiler's.
 *
 *   gcc -std=c11 -O2 -Wall -Wextra -fPIC -mgeneral-regs-only -I"$(fpstate include)" -c fibers.c
 *
 * Not made for shadow stacks (CET), nor for exceptions that leave a fiber. */
#include "fibers.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef void (*any_function)(void);

/* exchange(from_state, to_state) switches the registers; the stacks follow where it returns 0. */
int fiber_swap(void **from_stack, void *const *to_stack, any_function exchange, void *from_state, void *to_state);
void fiber_begin(void);

__asm__(".text\n"
        ".p2align 4\n"
        "fiber_swap:\n"
        "    push %rbp\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    sub  $8, %rsp\n" /* calls want rsp % 16 == 0 */
        "    mov  %rdi, %rbx\n"
        "    mov  %rsi, %r12\n"
        "    mov  %rcx, %rdi\n"
        "    mov  %r8, %rsi\n"
        "    call *%rdx\n"
        "    test %eax, %eax\n"
        "    jnz  1f\n"
        "    mov  %rsp, (%rbx)\n"
        "    mov  (%r12), %rsp\n"
        "1:  add  $8, %rsp\n"
        "    pop  %r15\n"
        "    pop  %r14\n"
        "    pop  %r13\n"
        "    pop  %r12\n"
        "    pop  %rbx\n"
        "    pop  %rbp\n"
        "    ret\n"
        "fiber_begin:\n"
        "    mov  %r13, %rdi\n"
        "    call *%r12\n"
        "    ud2\n");

/* What fiber_swap pops at the first switch. */
struct first_frame {
    uint64_t padding, r15, r14, r13, r12, rbx, rbp, return_address;
};

void fiber_init(struct fiber *fiber, fpstate_context *state, void *stack, size_t size, void (*run)(void *),
                void *argument)
{
    uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
    struct first_frame *frame = (struct first_frame *)top - 1;
    frame->r12 = (uint64_t)(uintptr_t)run;
    frame->r13 = (uint64_t)(uintptr_t)argument;
    frame->rbp = 0;
    frame->return_address = (uint64_t)(uintptr_t)fiber_begin;
    fiber->stack_pointer = frame;
    fiber->state = state;
    fiber->control.mxcsr = FPSTATE_MXCSR_INITIAL;
    fiber->control.fcw = FPSTATE_FCW_INITIAL;
}

int fiber_switch(const fpstate_api *api, struct fiber *from, struct fiber *to)
{
    return fiber_swap(&from->stack_pointer, &to->stack_pointer, (any_function)api->switch_state, from->state,
                      to->state);
}

int fiber_switch_control(const fpstate_api *api, struct fiber *from, struct fiber *to)
{
    return fiber_swap(&from->stack_pointer, &to->stack_pointer, (any_function)api->switch_control, &from->control,
                      &to->control);
}

#ifdef __cplusplus
}
#endif
