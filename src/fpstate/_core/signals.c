/* Ticks and faults.
 *
 * The handler moves general registers, the instruction pointer, the segments and PKRU. The guest's vector state stays in
 * the signal frame; sigreturn loads it back, exactly, and vcpu_save then puts it away as for a voluntary exit. So of the
 * frame's image PKRU alone is read, and XSTATE_BV's lowest bits, which the kernel forces to 3 in frames, are not.
 *
 * Nothing here may use thread-local storage before the host's fs base is back (a guest may have changed it),
 * vector registers, locks or allocation. The file is compiled with -mgeneral-regs-only. */
#include "frame.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DEBUG = 1, GENERAL_PROTECTION = 13, PAGE_FAULT = 14 };
enum { TRAP_FLAG = 0x100, NESTED_TASK_FLAG = 0x4000, ALIGNMENT_FLAG = 0x40000 };
/* The trampoline is left within a tick or two. Where ticks are faster than it can be left, it goes on between them. */
enum { TICKS_TO_COME_OUT = 4096 };
enum { OUT_IMM8_EAX = 0xE7 };

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

/* The guest's code may have a key that is closed in a handler. */
static void read_code(uint64_t at, unsigned char code[2])
{
    uint32_t pkru = processor()->pkru ? pkru_read() : 0;
    if (pkru)
        pkru_write(0);
    memcpy(code, (const void *)at, 2);
    if (pkru)
        pkru_write(pkru);
}

/* OUT raises #GP in user mode (IOPL is 0). Only the one form of the guest convention counts. */
static bool port_write(struct vcpu *vcpu, const ucontext_t *context)
{
    const greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];
    unsigned char code[2];
    if (registers[REG_TRAPNO] != GENERAL_PROTECTION || !frame_in_host_code(context) || at < vcpu->code_start ||
        at + 2 > vcpu->code_end)
        return false;
    read_code(at, code);
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

/* The kernel keeps a guest's AC and NT flags for the handler, and sigreturn takes NT from here and not from the frame:
 * with AC, misaligned accesses would fault here, and NT would stay on in the host. ID, which sigreturn takes from here
 * too, is a guest's to keep. A guest may also have changed the fs base. */
static struct carrier *interrupted_carrier(void)
{
    char here;
    __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(uint64_t)(ALIGNMENT_FLAG | NESTED_TASK_FLAG));
    struct carrier *carrier = carrier_owning(&here);
    if (carrier && fsbase_read() != carrier->host_fs)
        fsbase_write(carrier->host_fs);
    return carrier;
}

/* Only in the host's code segment is RIP the address of what runs. */
static bool at_trampoline(const ucontext_t *context)
{
    return frame_in_host_code(context) && in_trampoline((uint64_t)context->uc_mcontext.gregs[REG_RIP]);
}

/* A guest that ends without a save: its vector state is dropped. */
static void abandon(struct vcpu *vcpu, uint32_t kind, ucontext_t *context)
{
    frame_initialise(context);
    vcpu->exit_kind = kind;
    vcpu->spilled = 0;
    frame_continue_at(vcpu_abandoned, vcpu, context);
}

static void on_tick(int signal, siginfo_t *info, void *raw)
{
    (void)signal;
    (void)info;
    ucontext_t *context = raw;
    struct carrier *carrier = interrupted_carrier();
    if (!carrier)
        return;
    struct vcpu *vcpu = carrier->vcpu;
    if (!vcpu) {
        carrier->ticks_in_host++;
    } else if (at_trampoline(context)) { /* a guest that jumped there may never come out */
        carrier->ticks_in_host++;
        if (++carrier->stuck > TICKS_TO_COME_OUT)
            abandon(vcpu, EXIT_EXPIRED, context);
    } else {
        frame_keep_guest(vcpu, context);
        vcpu->exit_kind = frame_in_host_code(context) ? EXIT_PREEMPTED : EXIT_SEGMENT;
        frame_continue_at(vcpu_save, vcpu, context);
    }
}

/* A fault where no guest's code is, while a guest is on: it jumped there, or gave the way out what that cannot use. The
 * guest ends. A second fault before the host is reached is not a guest's. */
static void on_trampoline_fault(int signal, siginfo_t *info, ucontext_t *context, struct vcpu *vcpu)
{
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];
    if (at == (uint64_t)enter_by_frame && signal == SIGILL && frame_enter_guest(vcpu, context))
        return;
    if (vcpu->carrier->rescues++) {
        chain(signal, info, context);
        return;
    }
    note_fault(vcpu, signal, info, registers);
    bool refused = at == (uint64_t)enter_xrstor || refused_moves(vcpu, registers);
    abandon(vcpu, refused ? EXIT_REFUSED : EXIT_FAULT, context);
}

static void on_fault(int signal, siginfo_t *info, void *raw)
{
    ucontext_t *context = raw;
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];
    if (at == (uint64_t)guarded_xrstor || at == (uint64_t)guarded_exchange || at == (uint64_t)guarded_movs) {
        if (at != (uint64_t)guarded_movs)
            frame_initialise(context);
        return_refusal(signal, info, registers);
        return;
    }
    struct carrier *carrier = interrupted_carrier();
    struct vcpu *vcpu = carrier ? carrier->vcpu : NULL;
    if (!vcpu && info->si_code > 0 && returns_to(registers, guarded_loaded)) {
        frame_initialise(context);
        return_refusal(signal, info, registers);
        registers[REG_RBX] = 1;
    } else if (!vcpu || info->si_code <= 0) {
        chain(signal, info, raw);
    } else if (at_trampoline(context) && single_step(signal, registers)) {
        return;
    } else if (at_trampoline(context) && at != (uint64_t)vcpu_exit) { /* there a guest's stack may not be one */
        on_trampoline_fault(signal, info, context, vcpu);
    } else {
        frame_keep_guest(vcpu, context);
        if (port_write(vcpu, context))
            vcpu->exit_kind = EXIT_PORT;
        else
            note_fault(vcpu, signal, info, registers);
        frame_continue_at(vcpu_save, vcpu, context);
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
