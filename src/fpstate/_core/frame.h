/* A signal frame as the way out of a guest and into one. The frame is written by the kernel and read by sigreturn. */
#ifndef FPSTATE_FRAME_H
#define FPSTATE_FRAME_H

#include "core.h"

#include <ucontext.h>

/* Keep the guest's general registers, flags and PKRU in its vCPU. */
void frame_keep_guest(struct vcpu *vcpu, const ucontext_t *context);
/* Let sigreturn enter the guest: all that frame_keep_guest keeps, at once. false: the frame has no place for PKRU. */
bool frame_enter_guest(const struct vcpu *vcpu, ucontext_t *context);
/* Let sigreturn go on at a label of the trampoline, as host code. */
void frame_continue_at(const char *label, struct vcpu *vcpu, ucontext_t *context);
/* Let sigreturn load initial vector state. PKRU stays as the frame has it. */
void frame_initialise(ucontext_t *context);
/* Whether the frame's code ran in the host's code segment: 64-bit code. */
bool frame_in_host_code(const ucontext_t *context);

#endif
