/* The processor's side of the comparison with the model: it executes sequences of operations on its registers.
 *
 * executor FD SIZE AREA_SIZE COMPONENTS     FD is shared memory of SIZE bytes, laid out as struct batch says;
 *   COMPONENTS is the bitmap of what the sequences use: tiles (bit 18) are asked for and used once before
 *   a byte on standard input: run the batch that is there; a byte on standard output: done
 *
 * Each sequence starts from initial registers. Each operation leaves a record: what it returned, and the vector of
 * the exception that it raised, after which the registers are what the kernel saved of them and loaded again. Where
 * there are protection keys, and an operation closed key 0, under which all memory here is, key 0 is opened again
 * before memory is touched, and the record has what PKRU was.
 * Each save leaves a copy of its area. This file is compiled with -mgeneral-regs-only and -no-pie, and every instruction under
 * test is in a function of its own, in assembly, that uses no stack: so no other code touches the registers. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { PKRU = 9, TILEDATA = 18, ARCH_REQ_XCOMP_PERM = 0x1023, TILE_STRIDE = 64 };
enum { GIVE_UP = 3, STACK = 65536, SLOT = 16, CODE_OF_32_BITS = 0x23, CODE_OF_64_BITS = 0x33, SELECTOR = 0xFFFF };

struct batch {
    uint64_t operations, areas, records, copies; /* where they are, in bytes from the start */
    uint64_t data, count, reserved[2];
};
struct operation {
    uint8_t kind, index, length, skew;
    uint32_t where;
    uint64_t value;
    uint64_t area; /* its number */
};
struct record {
    uint64_t value;
    uint32_t vector;
    uint32_t pkru; /* where it closed key 0, else 0 */
};

/* In the order of Kind in model_sequences.py. */
enum {
    START, FXSAVE, FXSAVE64, XSAVE, XSAVE64, XSAVEC, XSAVEC64, XSAVEOPT, XSAVEOPT64, XSAVES64,
    FXRSTOR, FXRSTOR64, XRSTOR, XRSTOR64, XRSTORS64, XGETBV,
    XMM, VXMM, VYMM, VZMM, KMOV, MMX, VZEROUPPER, VZEROALL, FNINIT, FNCLEX, EMMS, FLDCW, LDMXCSR,
    STMXCSR, FNSTCW, FNSTSW, EDIT, COPY,
    FXSAVE32, XSAVE32, XSAVEC32, XSAVEOPT32, FXRSTOR32, XRSTOR32, ZERO,
    WRPKRU, RDPKRU, LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED
};

#define WITH_MASK(name, instruction)                                                                                   \
    ".balign 16\n" name ":\n    mov %esi, %eax\n    mov %rsi, %rdx\n    shr $32, %rdx\n    " instruction               \
    " (%rdi)\n    ret\n"
/* After an instruction that may have closed key 0: no memory is touched before it is open. EAX, ECX, EDX and R8 change. */
#define OPEN_KEY_0                                                                                                     \
    "    test %r9d, %r9d\n    jz 1f\n    xor %ecx, %ecx\n    rdpkru\n    test $3, %al\n    jz 1f\n"                    \
    "    mov %eax, %r8d\n    and $0xfffffffc, %eax\n    xor %edx, %edx\n    wrpkru\n    mov %r8d, closed(%rip)\n1:\n"
#define RESTORE(name, instruction)                                                                                     \
    ".balign 16\n" name ":\n    mov has_keys(%rip), %r9d\n    mov %esi, %eax\n    mov %rsi, %rdx\n"                   \
    "    shr $32, %rdx\n    " instruction " (%rdi)\n" OPEN_KEY_0 "    ret\n"
#define PLAIN(name, instruction) ".balign 16\n" name ":\n    " instruction "\n    ret\n"
#define IN_32_BITS(name, instruction)                                                                                  \
    ".balign 16\n" name ":\n    mov %esi, %eax\n    xor %edx, %edx\n    " instruction " (%edi)\n    lret\n"
#define RESTORE_IN_32_BITS(name, instruction)                                                                          \
    ".balign 16\n" name ":\n    mov has_keys, %ebx\n    mov %esi, %eax\n    xor %edx, %edx\n    " instruction            \
    " (%edi)\n    test %ebx, %ebx\n    jz 1f\n    xor %ecx, %ecx\n    rdpkru\n    test $3, %al\n    jz 1f\n"          \
    "    mov %eax, %ebp\n    and $0xfffffffc, %eax\n    xor %edx, %edx\n    wrpkru\n    mov %ebp, closed\n1:\n"           \
    "    lret\n"
#define TILES(name, instruction)                                                                                       \
    ".balign 16\n" name ":\n.set i, 0\n.rept 8\n    .balign 16\n    tile " instruction ", %i\n    ret\n"                \
    ".set i, i + 1\n.endr\n"
#define TABLE(name, count, instruction, register)                                                                      \
    ".balign 16\n" name ":\n.set i, 0\n.rept " count "\n    .balign 16\n    one " instruction ", " register            \
    ", %i\n    ret\n.set i, i + 1\n.endr\n"

__asm__(".text\n"
        ".altmacro\n"
        ".macro one instruction, register, number\n    \\instruction (%rdi), %\\register\\number\n.endm\n"
        ".macro zero_by instruction, register, number\n"
        "    \\instruction %\\register\\number, %\\register\\number, %\\register\\number\n.endm\n"
        ".macro tile instruction, number\n"
        ".ifc \\instruction, tilezero\n    tilezero %tmm\\number\n.endif\n"
        ".ifc \\instruction, tileloadd\n    tileloadd (%rdi,%rsi,1), %tmm\\number\n.endif\n"
        ".ifc \\instruction, tilestored\n    tilestored %tmm\\number, (%rdi,%rsi,1)\n.endif\n.endm\n"
        "first_under_test:\n"
        WITH_MASK("do_xsave", "xsave") WITH_MASK("do_xsave64", "xsave64")
        WITH_MASK("do_xsavec", "xsavec") WITH_MASK("do_xsavec64", "xsavec64")
        WITH_MASK("do_xsaveopt", "xsaveopt") WITH_MASK("do_xsaveopt64", "xsaveopt64")
        WITH_MASK("do_xsaves64", "xsaves64")
        RESTORE("do_xrstor", "xrstor") RESTORE("do_xrstor64", "xrstor64")
        WITH_MASK("do_xrstors64", "xrstors64")
        PLAIN("do_fxsave", "fxsave (%rdi)") PLAIN("do_fxsave64", "fxsave64 (%rdi)")
        PLAIN("do_fxrstor", "fxrstor (%rdi)") PLAIN("do_fxrstor64", "fxrstor64 (%rdi)")
        PLAIN("do_vzeroupper", "vzeroupper") PLAIN("do_vzeroall", "vzeroall")
        PLAIN("do_fninit", "fninit") PLAIN("do_fnclex", "fnclex") PLAIN("do_emms", "emms")
        PLAIN("do_fldcw", "fldcw (%rdi)") PLAIN("do_ldmxcsr", "ldmxcsr (%rdi)")
        PLAIN("do_stmxcsr", "stmxcsr (%rdi)") PLAIN("do_fnstcw", "fnstcw (%rdi)")
        PLAIN("do_fnstsw", "fnstsw (%rdi)")
        PLAIN("do_xgetbv", "mov (%rdi), %ecx\n    xgetbv\n    mov %eax, (%rdi)\n    mov %edx, 4(%rdi)")
        ".balign 16\ndo_wrpkru:\n    mov has_keys(%rip), %r9d\n    mov (%rdi), %eax\n    xor %ecx, %ecx\n"
        "    xor %edx, %edx\n    wrpkru\n" OPEN_KEY_0 "    ret\n"
        PLAIN("do_rdpkru", "xor %ecx, %ecx\n    rdpkru\n    mov %rax, (%rdi)")
        PLAIN("do_ldtilecfg", "ldtilecfg (%rdi)") PLAIN("do_sttilecfg", "sttilecfg (%rdi)")
        PLAIN("do_tilerelease", "tilerelease")
        TILES("tile_zero", "tilezero") TILES("tile_load", "tileloadd") TILES("tile_store", "tilestored")
        TABLE("move_xmm", "16", "movups", "xmm") TABLE("vmove_xmm", "16", "vmovups", "xmm")
        TABLE("vmove_ymm", "16", "vmovups", "ymm") TABLE("vmove_zmm", "32", "vmovups", "zmm")
        TABLE("kmove", "8", "kmovq", "k") TABLE("move_mmx", "8", "movq", "mm")
        ".balign 16\nzero:\n.set i, 0\n"
        ".rept 16\n    .balign 16\n    zero_by vpxor, xmm, %i\n    ret\n.set i, i + 1\n.endr\n"
        ".rept 16\n    .balign 16\n    zero_by vpxorq, zmm, %i\n    ret\n.set i, i + 1\n.endr\n"
        /* Outside 64-bit mode: through the code segment for 32-bit programs, on a stack below 4 GiB. */
        ".balign 16\ncall_in_32_bits:\n"
        "    push %rbx\n    push %rbp\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
        "    mov %rsp, stack_of_64_bits(%rip)\n    mov %edx, far_pointer(%rip)\n"
        "    mov $0x2b, %eax\n    mov %eax, %ds\n    lea low_stack + 4096(%rip), %rsp\n"
        "    lcall *far_pointer(%rip)\n"
        "return_to_64_bits:\n"
        "    mov stack_of_64_bits(%rip), %rsp\n"
        "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbp\n    pop %rbx\n    ret\n"
        ".code32\n"
        IN_32_BITS("fxsave_in_32_bits", "fxsave") IN_32_BITS("xsave_in_32_bits", "xsave")
        IN_32_BITS("xsavec_in_32_bits", "xsavec") IN_32_BITS("xsaveopt_in_32_bits", "xsaveopt")
        IN_32_BITS("fxrstor_in_32_bits", "fxrstor") RESTORE_IN_32_BITS("xrstor_in_32_bits", "xrstor")
        ".code64\n"
        "last_under_test:\n"
        ".noaltmacro\n");

extern char first_under_test[], last_under_test[], move_xmm[], vmove_xmm[], vmove_ymm[], vmove_zmm[], kmove[],
    move_mmx[], zero[], call_in_32_bits[], return_to_64_bits[], fxsave_in_32_bits[], xsave_in_32_bits[], xsavec_in_32_bits[],
    xsaveopt_in_32_bits[], fxrstor_in_32_bits[], xrstor_in_32_bits[], tile_zero[], tile_load[], tile_store[];
typedef void under_test(void *memory, uint64_t mask);
under_test do_xsave, do_xsave64, do_xsavec, do_xsavec64, do_xsaveopt, do_xsaveopt64, do_xsaves64, do_xrstor,
    do_xrstor64, do_xrstors64, do_fxsave, do_fxsave64, do_fxrstor, do_fxrstor64, do_vzeroupper, do_vzeroall, do_fninit,
    do_fnclex, do_emms, do_fldcw, do_ldmxcsr, do_stmxcsr, do_fnstcw, do_fnstsw, do_xgetbv,
    do_wrpkru, do_rdpkru, do_ldtilecfg, do_sttilecfg, do_tilerelease;

static under_test *const plain[] = {
    [FXSAVE] = do_fxsave, [FXSAVE64] = do_fxsave64, [XSAVE] = do_xsave, [XSAVE64] = do_xsave64,
    [XSAVEC] = do_xsavec, [XSAVEC64] = do_xsavec64, [XSAVEOPT] = do_xsaveopt, [XSAVEOPT64] = do_xsaveopt64,
    [XSAVES64] = do_xsaves64, [FXRSTOR] = do_fxrstor, [FXRSTOR64] = do_fxrstor64, [XRSTOR] = do_xrstor,
    [XRSTOR64] = do_xrstor64, [XRSTORS64] = do_xrstors64, [XGETBV] = do_xgetbv, [VZEROUPPER] = do_vzeroupper,
    [VZEROALL] = do_vzeroall, [FNINIT] = do_fninit, [FNCLEX] = do_fnclex, [EMMS] = do_emms, [FLDCW] = do_fldcw,
    [LDMXCSR] = do_ldmxcsr, [STMXCSR] = do_stmxcsr, [FNSTCW] = do_fnstcw, [FNSTSW] = do_fnstsw,
    [WRPKRU] = do_wrpkru, [RDPKRU] = do_rdpkru, [TILERELEASE] = do_tilerelease,
};
static char *const moves[] = {
    [XMM] = move_xmm, [VXMM] = vmove_xmm, [VYMM] = vmove_ymm, [VZMM] = vmove_zmm, [KMOV] = kmove, [MMX] = move_mmx,
    [ZERO] = zero, [TILEZERO] = tile_zero, [TILELOADD] = tile_load, [TILESTORED] = tile_store,
};

static char *const in_32_bits[] = {
    [FXSAVE32] = fxsave_in_32_bits, [XSAVE32] = xsave_in_32_bits, [XSAVEC32] = xsavec_in_32_bits,
    [XSAVEOPT32] = xsaveopt_in_32_bits, [FXRSTOR32] = fxrstor_in_32_bits, [XRSTOR32] = xrstor_in_32_bits,
};

char low_stack[4096] __attribute__((aligned(64)));
uint64_t stack_of_64_bits;
uint32_t has_keys, closed;
struct {
    uint32_t offset;
    uint16_t selector;
} far_pointer = {0, CODE_OF_32_BITS};

static volatile uint64_t vector;
static char initial[16384] __attribute__((aligned(64))); /* XRSTOR looks as far as the last component it is asked for */
static char stack[STACK];

static void copy(void *to, const void *from, uint64_t length)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(length) : : "memory");
}

/* Step over the instruction: it is in a function without a frame, so the return address is on top. */
static void on_exception(int signal, siginfo_t *info, void *raw)
{
    ucontext_t *context = raw;
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];
    (void)signal;
    (void)info;
    if (at < (uint64_t)first_under_test || at >= (uint64_t)last_under_test)
        _exit(GIVE_UP);
    vector = (uint64_t)registers[REG_TRAPNO];
    if (at >= (uint64_t)call_in_32_bits) {
        registers[REG_RIP] = (greg_t)return_to_64_bits;
        registers[REG_CSGSFS] = (registers[REG_CSGSFS] & ~(greg_t)SELECTOR) | CODE_OF_64_BITS;
        return;
    }
    registers[REG_RIP] = (greg_t) * (uint64_t *)registers[REG_RSP];
    registers[REG_RSP] += 8;
}

static uint64_t perform(char *memory, const struct batch *batch, const struct operation *operation, uint64_t area_size)
{
    char *area = memory + batch->areas + operation->area * area_size;
    uint64_t value = operation->value;

    switch (operation->kind) {
    case START:
        do_xrstor64(initial, value);
        break;
    case FXSAVE ... XRSTORS64:
        plain[operation->kind](area + operation->skew, value);
        break;
    case FXSAVE32 ... XRSTOR32: {
        void (*call)(void *, uint64_t, uint64_t) = (void (*)(void *, uint64_t, uint64_t))call_in_32_bits;
        call(area + operation->skew, value, (uint64_t)in_32_bits[operation->kind]);
        break;
    }
    case ZERO:
    case XMM ... MMX: {
        under_test *move = (under_test *)(moves[operation->kind] + SLOT * operation->index);
        move(memory + batch->data + operation->where, 0);
        break;
    }
    case LDTILECFG:
        do_ldtilecfg(memory + batch->data + operation->where, 0);
        break;
    case STTILECFG:
        do_sttilecfg(area + operation->where, 0);
        break;
    case TILEZERO ... TILELOADD: {
        under_test *tile = (under_test *)(moves[operation->kind] + SLOT * operation->index);
        tile(memory + batch->data + operation->where, TILE_STRIDE);
        break;
    }
    case TILESTORED: {
        under_test *tile = (under_test *)(tile_store + SLOT * operation->index);
        tile(area + operation->where, TILE_STRIDE);
        break;
    }
    case STMXCSR ... FNSTSW:
    case RDPKRU:
        value = 0;
        __attribute__((fallthrough));
    case WRPKRU:
    case TILERELEASE:
    case XGETBV:
    case VZEROUPPER ... LDMXCSR:
        plain[operation->kind](&value, 0);
        break;
    case EDIT:
        copy(area + operation->where, &value, operation->length);
        break;
    case COPY:
        copy(area + operation->where, memory + batch->data + value, 8 * (uint64_t)operation->length);
        break;
    default:
        _exit(GIVE_UP);
    }
    return value;
}

static int is_save(uint8_t kind)
{
    return (kind >= FXSAVE && kind <= XSAVES64) || (kind >= FXSAVE32 && kind <= XSAVEOPT32);
}

static void run(char *memory, uint64_t area_size)
{
    const struct batch *batch = (const struct batch *)memory;
    const struct operation *operation = (const struct operation *)(memory + batch->operations);
    struct record *record = (struct record *)(memory + batch->records);
    char *copies = memory + batch->copies;

    for (uint64_t left = batch->count; left; left--, operation++, record++) {
        vector = 0;
        closed = 0;
        record->value = perform(memory, batch, operation, area_size);
        record->vector = (uint32_t)vector;
        record->pkru = closed;
        if (is_save(operation->kind)) {
            copy(copies, memory + batch->areas + operation->area * area_size, area_size);
            copies += area_size;
        }
    }
}

static uint64_t number(const char *text)
{
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = 10 * value + (uint64_t)(*text - '0');
    return value;
}

/* Have the permission, and tiles used once, so that IA32_XFD holds nothing back from the first sequence on. */
static int use_tiles(void)
{
    static uint8_t configuration[64] __attribute__((aligned(64))) = {[0] = 1, [16] = 64, [48] = 16};
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA))
        return 0;
    vector = 0;
    do_ldtilecfg(configuration, 0);
    ((under_test *)tile_zero)(NULL, 0);
    do_tilerelease(NULL, 0);
    return !vector;
}

int main(int argc, char **argv)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction action = {.sa_sigaction = on_exception, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    uint32_t mxcsr = 0x1F80;
    char go;

    if (argc != 5 || sigaltstack(&alternate, NULL))
        return GIVE_UP;
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i], &action, NULL))
            return GIVE_UP;
    has_keys = number(argv[4]) >> PKRU & 1;
    if (number(argv[4]) >> TILEDATA & 1 && !use_tiles())
        return GIVE_UP;
    char *memory =
        mmap(NULL, number(argv[2]), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_32BIT, (int)number(argv[1]), 0);
    if (memory == MAP_FAILED)
        return GIVE_UP;
    copy(initial + 24, &mxcsr, sizeof mxcsr);
    while (read(0, &go, 1) == 1) {
        run(memory, number(argv[3]));
        do_fninit(NULL, 0);
        do_ldmxcsr(&mxcsr, 0);
        if (write(1, &go, 1) != 1)
            return GIVE_UP;
    }
    return 0;
}
