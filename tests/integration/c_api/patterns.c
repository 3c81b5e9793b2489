/* Fibers with a pattern in every register, compared after each switch; and switches that forget something.
 *
 * Compiled with -mgeneral-regs-only: only the assembly below touches the registers under test. */
#include "fibers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum width { LEGACY, AVX, AVX512 };
enum wrong { ST = 1, FCW = 2, MXCSR = 4, XMM = 8, YMM_HIGH = 16, OPMASK = 32, ZMM_HIGH = 64, ZMM_16_31 = 128 };
enum { FIBERS = 6, STACK_BYTES = 64 << 10, STATUS_WORDS = 0x7F00 /* TOP and condition codes; no exception */ };

/* zmm repeats xmm, so that stores at any width can be compared */
struct registers {
    unsigned char legacy[512]; /* an FXSAVE image */
    unsigned char zmm[32][64];
    uint64_t k[8];
} __attribute__((aligned(16)));

struct report {
    uint64_t switches, mismatches, wrong;
    int error;
};

/* Load, call(first, second), store, and leave the registers initial. */
int through(const struct registers *in, struct registers *out, uint64_t width, int (*call)(void *, void *),
            void *first, void *second);
int forget_opmask(fpstate_context *from, fpstate_context *to);
int forget_mxcsr(fpstate_context *from, fpstate_context *to);
int forget_fcw(fpstate_context *from, fpstate_context *to);
static int (*real_switch)(fpstate_context *, fpstate_context *) __asm__("real_switch") __attribute__((used));

__asm__(".macro load_ymm n, at\n vmovdqu \\at(%rdi), %ymm\\n\n.endm\n"
        ".macro load_zmm n, at\n vmovdqu64 \\at(%rdi), %zmm\\n\n.endm\n"
        ".macro load_k n, at\n kmovq \\at(%rdi), %k\\n\n.endm\n"
        ".macro store_ymm n, at\n vmovdqu %ymm\\n, \\at(%rbx)\n.endm\n"
        ".macro store_zmm n, at\n vmovdqu64 %zmm\\n, \\at(%rbx)\n.endm\n"
        ".macro store_k n, at\n kmovq %k\\n, \\at(%rbx)\n.endm\n"
        ".altmacro\n"
        ".macro each what, count, step, base\n"
        "n = 0\n"
        ".rept \\count\n"
        "    \\what %n, %(n * \\step + \\base)\n"
        "    n = n + 1\n"
        ".endr\n"
        ".endm\n"
        ".text\n"
        "through:\n"
        "    push %rbx\n"
        "    push %rbp\n"
        "    push %r12\n"
        "    mov  %rsi, %rbx\n"
        "    mov  %rdx, %rbp\n"
        "    fxrstor64 (%rdi)\n"
        "    cmp  $1, %rbp\n"
        "    jb   2f\n"
        "    ja   1f\n"
        "    each load_ymm, 16, 64, 512\n"
        "    jmp  2f\n"
        "1:  each load_zmm, 32, 64, 512\n"
        "    each load_k, 8, 8, 2560\n"
        "2:  mov  %r8, %rdi\n"
        "    mov  %r9, %rsi\n"
        "    call *%rcx\n"
        "    mov  %eax, %r12d\n"
        "    fxsave64 (%rbx)\n"
        "    cmp  $1, %rbp\n"
        "    jb   4f\n"
        "    ja   3f\n"
        "    each store_ymm, 16, 64, 512\n"
        "    vzeroall\n"
        "    jmp  4f\n"
        "3:  each store_zmm, 32, 64, 512\n"
        "    each store_k, 8, 8, 2560\n"
        "    vzeroall\n"
        "4:  fxrstor64 initial_image(%rip)\n"
        "    mov  %r12d, %eax\n"
        "    pop  %r12\n"
        "    pop  %rbp\n"
        "    pop  %rbx\n"
        "    ret\n"
        "forget_opmask:\n"
        "    sub  $72, %rsp\n"
        "    kmovq %k1, (%rsp)\n"
        "    kmovq %k2, 8(%rsp)\n"
        "    kmovq %k3, 16(%rsp)\n"
        "    kmovq %k4, 24(%rsp)\n"
        "    kmovq %k5, 32(%rsp)\n"
        "    kmovq %k6, 40(%rsp)\n"
        "    kmovq %k7, 48(%rsp)\n"
        "    call *real_switch(%rip)\n"
        "    kmovq (%rsp), %k1\n"
        "    kmovq 8(%rsp), %k2\n"
        "    kmovq 16(%rsp), %k3\n"
        "    kmovq 24(%rsp), %k4\n"
        "    kmovq 32(%rsp), %k5\n"
        "    kmovq 40(%rsp), %k6\n"
        "    kmovq 48(%rsp), %k7\n"
        "    add  $72, %rsp\n"
        "    ret\n"
        "forget_mxcsr:\n"
        "    sub  $8, %rsp\n"
        "    stmxcsr (%rsp)\n"
        "    call *real_switch(%rip)\n"
        "    ldmxcsr (%rsp)\n"
        "    add  $8, %rsp\n"
        "    ret\n"
        "forget_fcw:\n"
        "    sub  $8, %rsp\n"
        "    fnstcw (%rsp)\n"
        "    call *real_switch(%rip)\n"
        "    fldcw (%rsp)\n"
        "    add  $8, %rsp\n"
        "    ret\n"
        ".noaltmacro\n"
        ".section .rodata\n"
        ".balign 16\n"
        "initial_image:\n"
        "    .short 0x37F\n"
        "    .zero 22\n"
        "    .long 0x1F80\n"
        "    .zero 484\n"
        ".text\n");

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void random_fill(void *at, size_t size, uint64_t *state)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t word = random_next(state);
        memcpy((char *)at + i, &word, size - i < 8 ? size - i : 8);
    }
}

static void put(unsigned char *at, uint64_t value, size_t size)
{
    memcpy(at, &value, size);
}

/* Some of the components are live, the others initial: over many rounds every pair of classes meets. */
static void choose(struct registers *registers, uint64_t width, uint64_t *state)
{
    uint64_t live = random_next(state), words = random_next(state);
    memset(registers, 0, sizeof *registers);
    put(registers->legacy, FPSTATE_FCW_INITIAL, 2);
    put(registers->legacy + 24, FPSTATE_MXCSR_INITIAL, 4);
    if (live & ST) {
        put(registers->legacy, (words & 0x0F3F) | 0x40, 2);
        put(registers->legacy + 2, words >> 16 & STATUS_WORDS, 2);
        registers->legacy[4] = (unsigned char)(words >> 32);
        for (int i = 0; i < 8; i++)
            random_fill(registers->legacy + 32 + 16 * i, 10, state);
    }
    if (live & MXCSR)
        put(registers->legacy + 24, words >> 40 & 0xFFBF, 4);
    for (int i = 0; i < (width == AVX512 ? 32 : 16); i++) {
        if (i < 16 ? live & XMM : live & ZMM_16_31)
            random_fill(registers->zmm[i], 16, state);
        if (width >= AVX && (i < 16 ? live & YMM_HIGH : live & ZMM_16_31))
            random_fill(registers->zmm[i] + 16, 16, state);
        if (width == AVX512 && (i < 16 ? live & ZMM_HIGH : live & ZMM_16_31))
            random_fill(registers->zmm[i] + 32, 32, state);
        if (i < 16)
            memcpy(registers->legacy + 160 + 16 * i, registers->zmm[i], 16);
    }
    if (width == AVX512 && live & OPMASK)
        random_fill(registers->k, sizeof registers->k, state);
}

static uint64_t differences(const struct registers *a, const struct registers *b, uint64_t width)
{
    uint64_t wrong = 0;
    for (int i = 0; i < 8; i++)
        if (memcmp(a->legacy + 32 + 16 * i, b->legacy + 32 + 16 * i, 10))
            wrong |= ST;
    if (memcmp(a->legacy + 2, b->legacy + 2, 3))
        wrong |= ST;
    if (memcmp(a->legacy, b->legacy, 2))
        wrong |= FCW;
    if (memcmp(a->legacy + 24, b->legacy + 24, 4))
        wrong |= MXCSR;
    if (memcmp(a->legacy + 160, b->legacy + 160, 256))
        wrong |= XMM;
    for (int i = 0; i < 16 && width >= AVX; i++) {
        if (memcmp(a->zmm[i] + 16, b->zmm[i] + 16, 16))
            wrong |= YMM_HIGH;
        if (width == AVX512 && memcmp(a->zmm[i] + 32, b->zmm[i] + 32, 32))
            wrong |= ZMM_HIGH;
        if (width == AVX512 && memcmp(a->zmm[i + 16], b->zmm[i + 16], 64))
            wrong |= ZMM_16_31;
    }
    if (width == AVX512 && memcmp(a->k, b->k, sizeof a->k))
        wrong |= OPMASK;
    return wrong;
}

struct set;
struct member {
    struct registers in, out;
    struct fiber fiber;
    struct set *set;
};
struct set {
    struct member members[FIBERS];
    struct fiber home;
    const fpstate_api *api;
    uint64_t width, seed, rounds, park;
    struct report *report;
    char *stacks, *states;
};

static int switch_to(void *self, void *next)
{
    struct member *member = (struct member *)self;
    return fiber_switch(member->set->api, &member->fiber, (struct fiber *)next);
}

static void run(void *argument)
{
    struct member *self = (struct member *)argument;
    struct set *set = self->set;
    for (;;) {
        struct fiber *next = &set->members[random_next(&set->seed) % FIBERS].fiber;
        if (set->report->switches++ == set->rounds || set->report->error)
            next = &set->home;
        if (set->park && next->state && next != &self->fiber && random_next(&set->seed) % 4 == 0)
            set->api->park(next->state);
        choose(&self->in, set->width, &set->seed);
        if (through(&self->in, &self->out, set->width, switch_to, self, next)) {
            set->report->error = 1;
            continue;
        }
        uint64_t wrong = differences(&self->in, &self->out, set->width);
        set->report->mismatches += wrong != 0;
        set->report->wrong |= wrong;
    }
}

/* A context in our storage, or in the library's: every second one of each. */
static int make_state(struct set *set, int i, fpstate_context **state)
{
    if (i % 2)
        return set->api->create(state);
    size_t size = set->api->context_size();
    return set->api->create_in(set->states + (size_t)i * size, size, state);
}

static int make_set(struct set *set)
{
    set->stacks = (char *)malloc(FIBERS * STACK_BYTES);
    set->states = (char *)aligned_alloc(set->api->context_alignment(), (FIBERS + 1) * set->api->context_size());
    if (!set->stacks || !set->states || make_state(set, FIBERS, &set->home.state))
        return ENOMEM;
    for (int i = 0; i < FIBERS; i++) {
        struct member *member = &set->members[i];
        fpstate_context *state;
        int error = make_state(set, i, &state);
        if (error)
            return error;
        fiber_init(&member->fiber, state, set->stacks + i * STACK_BYTES, STACK_BYTES, run, member);
        member->set = set;
    }
    return 0;
}

/* `rounds` switches between fibers picked at random. The report says what did not come back as it was left. */
int check_switches(const fpstate_api *api, uint64_t width, uint64_t seed, uint64_t rounds, uint64_t park,
                   struct report *report)
{
    struct set *set = (struct set *)aligned_alloc(64, (sizeof *set + 63) & ~(size_t)63);
    if (!set)
        return ENOMEM;
    memset(set, 0, sizeof *set);
    memset(report, 0, sizeof *report);
    set->api = api;
    set->width = width;
    set->seed = seed;
    set->rounds = rounds;
    set->park = park;
    set->report = report;
    int error = make_set(set);
    if (!error)
        error = fiber_switch(api, &set->home, &set->members[0].fiber);
    for (int i = 0; i < FIBERS; i++)
        api->destroy(set->members[i].fiber.state);
    api->destroy(set->home.state);
    free(set->stacks);
    free(set->states);
    free(set);
    return error;
}

static int save(void *api, void *context)
{
    return ((const fpstate_api *)api)->save((fpstate_context *)context);
}

static int restore(void *api, void *context)
{
    return ((const fpstate_api *)api)->restore((fpstate_context *)context);
}

static int nothing(void *api, void *context)
{
    (void)api;
    (void)context;
    return 0;
}

/* Save one pattern, which stays in the registers, and restore it over another; `broken`: nothing is restored. */
int check_save_and_restore(const fpstate_api *api, uint64_t width, uint64_t seed, uint64_t rounds, uint64_t broken,
                           struct report *report)
{
    struct registers first, second, out;
    fpstate_context *context = NULL;
    memset(report, 0, sizeof *report);
    int error = api->create(&context);
    for (uint64_t i = 0; i < rounds && !error; i++) {
        choose(&first, width, &seed);
        choose(&second, width, &seed);
        error = through(&first, &out, width, save, (void *)api, context);
        uint64_t wrong = differences(&first, &out, width);
        error = error ? error : through(&second, &out, width, broken ? nothing : restore, (void *)api, context);
        wrong |= differences(&first, &out, width);
        report->mismatches += wrong != 0;
        report->wrong |= wrong;
        report->switches++;
    }
    api->destroy(context);
    return error;
}

/* The same as check_switches with a switch that forgets something. */
int check_sabotaged(const fpstate_api *api, uint64_t what, uint64_t width, uint64_t seed, uint64_t rounds,
                    struct report *report)
{
    fpstate_api broken = *api;
    real_switch = api->switch_state;
    broken.switch_state = what == OPMASK ? forget_opmask : what == MXCSR ? forget_mxcsr : forget_fcw;
    return check_switches(&broken, width, seed, rounds, 0, report);
}

#ifdef __cplusplus
}
#endif
