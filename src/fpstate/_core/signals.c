/* Ticks and faults.
 *
 * The handler only moves general registers and the instruction pointer. The guest's vector state stays in the
 * signal frame; sigreturn loads it back, exactly, and vcpu_save then puts it away as for a voluntary exit. So
 * nothing here depends on the frame's format, and XSTATE_BV, which the kernel forces to 3 in frames, is not read.
 *
 * Nothing here may use thread-local storage before the host's fs base is back (a guest may have changed it),
 * vector registers, locks or allocation. The file is compiled with -mgeneral-regs-only. */
#include "core.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { DEBUG = 1, GENERAL_PROTECTION = 13, PAGE_FAULT = 14, FLAGS_CLEAN = 2 };
enum { TRAP_FLAG = 0x100, ALIGNMENT_FLAG = 0x40000 };
enum { OUT_IMM8_EAX = 0xE7 };
#define FP_XSTATE_MAGIC1_VALUE 0x46505853u
#define SW_RESERVED_AT 464

/* The first of them are those that a restore, or a copy from memory that is missing, can raise. */
static const int fault_signals[] = {SIGSEGV, SIGILL, SIGBUS, SIGFPE, SIGTRAP};
enum { GUARD_SIGNALS = 3, FAULT_SIGNALS = sizeof fault_signals / sizeof *fault_signals };

static struct sigaction earlier[FAULT_SIGNALS];
static pthread_mutex_t users_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned users[FAULT_SIGNALS];
static atomic_bool unsettled[FAULT_SIGNALS]; /* our handler is in place, and `earlier` is not known yet */
static int tick;

static int number_of(int signal)
{
    int number = 0;
    while (fault_signals[number] != signal)
        number++;
    return number;
}

/* A fault that is not ours goes to whoever was there before us. Where nobody was, the default action
 * is put back: the instruction runs again and the process ends as it would have without us. */
static void chain(int signal, siginfo_t *info, void *context)
{
    const struct sigaction *action = &earlier[number_of(signal)];
    bool sent = info->si_code <= 0;
    if (!sent && atomic_load(&unsettled[number_of(signal)]))
        return; /* another thread is about to know: the instruction faults once more */
    if (action->sa_flags & SA_SIGINFO) {
        action->sa_sigaction(signal, info, context);
    } else if (action->sa_handler == SIG_IGN && sent) {
        return;
    } else if (action->sa_handler == SIG_DFL || action->sa_handler == SIG_IGN) {
        struct sigaction fallback = {.sa_handler = SIG_DFL};
        sigaction(signal, &fallback, NULL);
        if (sent)
            syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), signal);
    } else {
        action->sa_handler(signal);
    }
}

static bool within(uint64_t address, const char *start, const char *end)
{
    return address >= (uint64_t)start && address < (uint64_t)end;
}

extern const char __start_fpstate_switching[] __attribute__((visibility("hidden")));
extern const char __stop_fpstate_switching[] __attribute__((visibility("hidden")));

/* In the trampoline, or in the cores' functions that it calls. */
static bool in_trampoline(uint64_t address)
{
    return within(address, trampoline_start, trampoline_end) ||
           within(address, __start_fpstate_switching, __stop_fpstate_switching);
}

/* In one of the cores' functions, called from before ``label``: they have no stack of their own. */
static bool returns_to(const greg_t *registers, const char *label)
{
    return within((uint64_t)registers[REG_RIP], __start_fpstate_switching, __stop_fpstate_switching) &&
           *(const uint64_t *)registers[REG_RSP] == (uint64_t)label;
}

/* A fast core's load, as a guest is entered; no guest has this stack. */
static bool refused_moves(const struct vcpu *vcpu, const greg_t *registers)
{
    return (uint64_t)registers[REG_RSP] == vcpu->host_rsp - sizeof(uint64_t) && returns_to(registers, enter_moved);
}

/* A guest that sets TF and leaves by the exit call traps in the trampoline: it leaves all the same, without TF. */
static bool single_step(int signal, greg_t *registers)
{
    if (signal != SIGTRAP || registers[REG_TRAPNO] != DEBUG || !(registers[REG_EFL] & TRAP_FLAG))
        return false;
    registers[REG_EFL] &= ~(greg_t)TRAP_FLAG;
    return true;
}

/* Let sigreturn load initial values: what a refused XRSTOR left in the registers is nobody's. */
static void initialise_frame(ucontext_t *context)
{
    char *area = (char *)context->uc_mcontext.fpregs;
    const uint16_t fcw = FCW_INITIAL;
    const uint32_t mxcsr = MXCSR_INITIAL;
    uint32_t magic;
    if (!area)
        return;
    memset(area, 0, MXCSR_AT);
    memset(area + 32, 0, 416 - 32);
    memcpy(area, &fcw, sizeof fcw);
    memcpy(area + MXCSR_AT, &mxcsr, sizeof mxcsr);
    memcpy(&magic, area + SW_RESERVED_AT, sizeof magic);
    if (magic == FP_XSTATE_MAGIC1_VALUE) {
        uint64_t *xstate_bv = (uint64_t *)(area + HEADER_AT);
        *xstate_bv = LEGACY_MASK | (*xstate_bv & 1ull << PKRU_BIT);
    }
}

static void keep_general_registers(struct vcpu *vcpu, const greg_t *from)
{
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (int i = 0; i < 16; i++)
        vcpu->gpr[i] = (uint64_t)from[order[i]];
    vcpu->rip = (uint64_t)from[REG_RIP];
    vcpu->rflags = (uint64_t)from[REG_EFL];
}

/* OUT raises #GP in user mode (IOPL is 0). Only the one form of the guest convention counts. */
static bool port_write(struct vcpu *vcpu, const greg_t *registers)
{
    uint64_t at = (uint64_t)registers[REG_RIP];
    if (registers[REG_TRAPNO] != GENERAL_PROTECTION || at < vcpu->code_start || at + 2 > vcpu->code_end)
        return false;
    const unsigned char *code = (const unsigned char *)at;
    if (code[0] != OUT_IMM8_EAX || code[1] != FPSTATE_PORT)
        return false;
    vcpu->rip = at + 2;
    return true;
}

/* Linux leaves the trap number of the thread's last fault in place where it refuses a component that XFD holds back. */
static bool page_fault(int signal, const greg_t *registers)
{
    return registers[REG_TRAPNO] == PAGE_FAULT && (signal == SIGSEGV || signal == SIGBUS);
}

static void note_fault(struct vcpu *vcpu, int signal, const siginfo_t *info, const greg_t *registers)
{
    vcpu->exit_kind = EXIT_FAULT;
    vcpu->fault.signal = signal;
    vcpu->fault.code = info->si_code;
    vcpu->fault.trap = (uint64_t)registers[REG_TRAPNO];
    vcpu->fault.error = (uint64_t)registers[REG_ERR];
    vcpu->fault.address = (uint64_t)(page_fault(signal, registers) ? registers[REG_CR2] : registers[REG_RIP]);
}

/* struct refusal in the registers in which a function returns it */
static void return_refusal(int signal, const siginfo_t *info, greg_t *registers)
{
    registers[REG_RAX] = (greg_t)((uint64_t)(uint32_t)info->si_code << 32 | (uint32_t)signal);
    registers[REG_RDX] = (greg_t)info->si_addr;
    registers[REG_RIP] = (greg_t)guarded_failed;
}

/* sigreturn goes on in the trampoline, on the host's stack, with the guest's vector state loaded. */
static void continue_at(const char *label, struct vcpu *vcpu, greg_t *registers)
{
    registers[REG_RIP] = (greg_t)label;
    registers[REG_RSP] = (greg_t)vcpu->host_rsp;
    registers[REG_RBX] = (greg_t)vcpu;
    registers[REG_EFL] = FLAGS_CLEAN;
}

/* The kernel keeps a guest's AC flag for the handler: misaligned accesses would fault here. The other flags stay, as
 * sigreturn takes ID from here and not from the frame. A guest may also have changed the fs base. */
static struct carrier *interrupted_carrier(void)
{
    char here;
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(uint64_t)ALIGNMENT_FLAG);
    struct carrier *carrier = carrier_owning(&here);
    if (carrier && fsbase_read() != carrier->host_fs)
        fsbase_write(carrier->host_fs);
    return carrier;
}

static void on_tick(int signal, siginfo_t *info, void *raw)
{
    (void)signal;
    (void)info;
    greg_t *registers = ((ucontext_t *)raw)->uc_mcontext.gregs;
    struct carrier *carrier = interrupted_carrier();
    if (!carrier)
        return;
    struct vcpu *vcpu = carrier->vcpu;
    if (!vcpu || in_trampoline((uint64_t)registers[REG_RIP])) {
        carrier->ticks_in_host++;
        return;
    }
    keep_general_registers(vcpu, registers);
    vcpu->exit_kind = EXIT_PREEMPTED;
    continue_at(vcpu_save, vcpu, registers);
}

static void on_fault(int signal, siginfo_t *info, void *raw)
{
    ucontext_t *context = raw;
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];
    if (at == (uint64_t)guarded_xrstor || at == (uint64_t)guarded_exchange || at == (uint64_t)guarded_movs) {
        if (at != (uint64_t)guarded_movs)
            initialise_frame(context);
        return_refusal(signal, info, registers);
        return;
    }
    struct carrier *carrier = interrupted_carrier();
    struct vcpu *vcpu = carrier ? carrier->vcpu : NULL;
    if (!vcpu && info->si_code > 0 && returns_to(registers, guarded_loaded)) {
        initialise_frame(context);
        return_refusal(signal, info, registers);
        registers[REG_RBX] = 1;
    } else if (!vcpu || info->si_code <= 0) {
        chain(signal, info, raw);
    } else if (at == (uint64_t)enter_xrstor || refused_moves(vcpu, registers)) {
        initialise_frame(context);
        note_fault(vcpu, signal, info, registers);
        continue_at(vcpu_refused, vcpu, registers);
    } else if (within(at, enter_xrstor, enter_end)) { /* a jump to where no guest can be */
        note_fault(vcpu, signal, info, registers);
        continue_at(vcpu_save, vcpu, registers);
    } else if (in_trampoline(at) && single_step(signal, registers)) {
        return;
    } else if (in_trampoline(at) && at != (uint64_t)vcpu_exit) { /* there a guest's stack may not be one */
        chain(signal, info, raw);
    } else {
        keep_general_registers(vcpu, registers);
        if (port_write(vcpu, registers))
            vcpu->exit_kind = EXIT_PORT;
        else
            note_fault(vcpu, signal, info, registers);
        continue_at(vcpu_save, vcpu, registers);
    }
}

static struct sigaction action_of(void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigfillset(&action.sa_mask);
    return action;
}

/* The tick's handler stays for good: a late tick must never meet the default action, which ends the process. */
static int choose_tick_signal(void)
{
    struct sigaction action = action_of(on_tick);
    for (int signal = SIGRTMAX; signal >= SIGRTMIN; signal--) {
        struct sigaction present;
        if (sigaction(signal, NULL, &present) == 0 && !(present.sa_flags & SA_SIGINFO) &&
            present.sa_handler == SIG_DFL)
            return sigaction(signal, &action, NULL) == 0 ? signal : 0;
    }
    errno = EBUSY;
    return 0;
}

int tick_signal(void)
{
    return tick;
}

/* Let our handler take these signals, as often as it is let go. */
static void hold(int signals)
{
    struct sigaction action = action_of(on_fault);
    for (int i = 0; i < signals; i++) {
        if (users[i]++)
            continue;
        atomic_store(&unsettled[i], true);
        sigaction(fault_signals[i], &action, &earlier[i]);
        atomic_store(&unsettled[i], false);
    }
}

/* Whoever put a handler over ours meanwhile keeps it. */
static void let_go_of(int i)
{
    struct sigaction present;
    if (--users[i])
        return;
    sigaction(fault_signals[i], &earlier[i], &present);
    if (!(present.sa_flags & SA_SIGINFO) || present.sa_sigaction != on_fault)
        sigaction(fault_signals[i], &present, NULL);
}

static void let_go(int signals)
{
    for (int i = 0; i < signals; i++)
        let_go_of(i);
}

int signals_acquire(void)
{
    pthread_mutex_lock(&users_mutex);
    if (!tick)
        tick = choose_tick_signal();
    int result = tick ? 0 : -1;
    if (tick)
        hold(FAULT_SIGNALS);
    pthread_mutex_unlock(&users_mutex);
    return result;
}

void signals_release(void)
{
    pthread_mutex_lock(&users_mutex);
    let_go(FAULT_SIGNALS);
    pthread_mutex_unlock(&users_mutex);
}

void guard_acquire(void)
{
    pthread_mutex_lock(&users_mutex);
    hold(GUARD_SIGNALS);
    pthread_mutex_unlock(&users_mutex);
}

void guard_release(void)
{
    pthread_mutex_lock(&users_mutex);
    let_go(GUARD_SIGNALS);
    pthread_mutex_unlock(&users_mutex);
}

static void before_fork(void)
{
    pthread_mutex_lock(&users_mutex);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&users_mutex);
}

/* So that a child knows what was there before us. */
__attribute__((constructor)) static void survive_fork(void)
{
    pthread_atfork(before_fork, after_fork, NULL);
}

/* Other threads may have been running guests when this process forked: they are not here, nor is what they held. */
void signals_in_child(void)
{
    pthread_mutex_init(&users_mutex, NULL);
    for (int i = 0; i < FAULT_SIGNALS; i++) {
        if (users[i]) {
            users[i] = 1;
            let_go_of(i);
        }
    }
}
