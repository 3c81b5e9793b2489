/* What a guest may have changed comes from the frame, and what the host needs goes into it: the code and stack
 * segments, the flags, PKRU. sigreturn takes all of them from there (Linux, restore_sigcontext and
 * fpu__restore_sig), so the way back does not depend on what the guest did to them.
 *
 * DS, ES, FS and GS and their bases are not in the frame: saved, in trampoline.S, puts those back. */
#include "frame.h"

#include <string.h>

enum { FLAGS_CLEAN = 2 };
#define FP_XSTATE_MAGIC1_VALUE 0x46505853u
#define SW_RESERVED_AT 464

/* struct sigcontext of Linux has four selectors where glibc has one number (REG_CSGSFS). */
struct segments {
    uint16_t cs, gs, fs, ss;
};
_Static_assert(sizeof(struct segments) == sizeof(greg_t), "REG_CSGSFS is four selectors");

static struct segments segments_of(const ucontext_t *context)
{
    struct segments segments;
    memcpy(&segments, &context->uc_mcontext.gregs[REG_CSGSFS], sizeof segments);
    return segments;
}

/* The handler's own are the host's: Linux enters a handler with them (setup_rt_frame). */
static struct segments host_segments(struct segments segments)
{
    __asm__("mov %%cs, %0" : "=r"(segments.cs));
    __asm__("mov %%ss, %0" : "=r"(segments.ss));
    return segments;
}

static void run_in_host_segments(ucontext_t *context)
{
    struct segments segments = host_segments(segments_of(context));
    memcpy(&context->uc_mcontext.gregs[REG_CSGSFS], &segments, sizeof segments);
}

bool frame_in_host_code(const ucontext_t *context)
{
    struct segments segments = segments_of(context);
    return segments.cs == host_segments(segments).cs;
}

/* NULL where the frame has no XSAVE image. */
static char *xsave_image(const ucontext_t *context)
{
    char *area = (char *)context->uc_mcontext.fpregs;
    uint32_t magic = 0;
    if (area)
        memcpy(&magic, area + SW_RESERVED_AT, sizeof magic);
    return magic == FP_XSTATE_MAGIC1_VALUE ? area : NULL;
}

void frame_initialise(ucontext_t *context)
{
    char *area = (char *)context->uc_mcontext.fpregs;
    const uint16_t fcw = FCW_INITIAL;
    const uint32_t mxcsr = MXCSR_INITIAL;
    if (!area)
        return;
    memset(area, 0, MXCSR_AT);
    memset(area + 32, 0, 416 - 32);
    memcpy(area, &fcw, sizeof fcw);
    memcpy(area + MXCSR_AT, &mxcsr, sizeof mxcsr);
    if (xsave_image(context)) {
        uint64_t *xstate_bv = (uint64_t *)(area + HEADER_AT);
        *xstate_bv = LEGACY_MASK | (*xstate_bv & 1ull << PKRU_BIT);
    }
}

/* Frames are in the standard format. Before Linux 6.12 a PKRU of 0 may be told by a clear bit alone. */
static uint32_t pkru_in(const ucontext_t *context)
{
    const char *area = xsave_image(context);
    uint64_t xstate_bv = 0;
    uint32_t pkru = 0;
    if (area)
        memcpy(&xstate_bv, area + HEADER_AT, sizeof xstate_bv);
    if (xstate_bv >> PKRU_BIT & 1)
        memcpy(&pkru, area + processor()->component[PKRU_BIT].offset, sizeof pkru);
    return pkru;
}

static bool set_pkru(ucontext_t *context, uint32_t pkru)
{
    char *area = xsave_image(context);
    uint64_t xstate_bv;
    if (!area)
        return false;
    memcpy(&xstate_bv, area + HEADER_AT, sizeof xstate_bv);
    xstate_bv |= 1ull << PKRU_BIT;
    memcpy(area + HEADER_AT, &xstate_bv, sizeof xstate_bv);
    memcpy(area + processor()->component[PKRU_BIT].offset, &pkru, sizeof pkru);
    return true;
}

static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

void frame_keep_guest(struct vcpu *vcpu, const ucontext_t *context)
{
    const greg_t *registers = context->uc_mcontext.gregs;
    for (int i = 0; i < 16; i++)
        vcpu->gpr[i] = (uint64_t)registers[order[i]];
    vcpu->rip = (uint64_t)registers[REG_RIP];
    vcpu->rflags = (uint64_t)registers[REG_EFL];
    if (processor()->pkru)
        vcpu->pkru = pkru_in(context);
}

bool frame_enter_guest(const struct vcpu *vcpu, ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    if (!set_pkru(context, vcpu->pkru))
        return false;
    for (int i = 0; i < 16; i++)
        registers[order[i]] = (greg_t)vcpu->gpr[i];
    registers[REG_RIP] = (greg_t)vcpu->rip;
    registers[REG_EFL] = (greg_t)vcpu->rflags;
    return true;
}

void frame_continue_at(const char *label, struct vcpu *vcpu, ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    registers[REG_RIP] = (greg_t)label;
    registers[REG_RSP] = (greg_t)vcpu->host_rsp;
    registers[REG_RBX] = (greg_t)vcpu;
    registers[REG_EFL] = FLAGS_CLEAN;
    run_in_host_segments(context);
    if (processor()->pkru)
        set_pkru(context, vcpu->carrier->host_pkru);
}
