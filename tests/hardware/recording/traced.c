/* A process whose registers are set from outside: it stops by INT3 for ever, and between the stops it saves its own
 * registers, as it has them, to `seen`. Compiled for 64-bit and for 32-bit mode, without a C library.
 *
 * traced WORDS    x: there is XGETBV(1); k: there is PKRU; p: ask for permission for TILEDATA; u: use a tile */
#include <stdint.h>

#define HAS_XGETBV1 1
#define HAS_PKRU 2

enum { GIVE_UP = 3, ARCH_REQ_XCOMP_PERM = 0x1023, TILEDATA = 18, TRACEME = 0 };
#ifdef __x86_64__
enum { ARCH_PRCTL = 158, EXIT = 60, PTRACE = 101 };
#else
enum { ARCH_PRCTL = 384, EXIT = 1, PTRACE = 26 };
#endif

/* At the start of .bss, which the linker puts where the tracer reads. */
struct {
    uint32_t in_use, pkru, reserved[14];
    char registers[12288] __attribute__((aligned(64)));
} seen __attribute__((aligned(4096)));

static long call(long number, long first, long second)
{
    long result = number;
#ifdef __x86_64__
    __asm__ volatile("syscall" : "+a"(result) : "D"(first), "S"(second) : "rcx", "r11", "memory");
#else
    __asm__ volatile("int $0x80" : "+a"(result) : "b"(first), "c"(second) : "memory");
#endif
    return result;
}

/* Key 0 may be closed when this runs on: no memory is touched before it is open again. */
static _Noreturn void save_and_stop(long has)
{
    for (;;)
        __asm__ volatile("int3\n"
                         "    xor %%esi, %%esi\n"
                         "    test %[xgetbv1], %%ebx\n"
                         "    jz 1f\n"
                         "    mov $1, %%ecx\n"
                         "    xgetbv\n"
                         "    mov %%eax, %%esi\n"
                         "1:  xor %%edi, %%edi\n"
                         "    test %[pkru], %%ebx\n"
                         "    jz 2f\n"
                         "    xor %%ecx, %%ecx\n"
                         "    rdpkru\n"
                         "    mov %%eax, %%edi\n"
                         "    test $3, %%al\n"
                         "    jz 2f\n"
                         "    and $-4, %%eax\n"
                         "    wrpkru\n"
                         "2:  mov %%esi, seen\n"
                         "    mov %%edi, seen + 4\n"
                         "    mov $-1, %%eax\n"
                         "    mov $-1, %%edx\n"
#ifdef __x86_64__
                         "    xsave64 seen + 64\n"
#else
                         "    xsave seen + 64\n"
#endif
                         : : "b"(has), [xgetbv1] "i"(HAS_XGETBV1), [pkru] "i"(HAS_PKRU)
                         : "eax", "ecx", "edx", "esi", "edi", "memory");
}

static void use_a_tile(void)
{
#ifdef __x86_64__
    static const char one_tile[64] __attribute__((aligned(64))) = {[0] = 1, [16] = 64, [48] = 16};
    __asm__ volatile("ldtilecfg %0; tilezero %%tmm0; tilerelease" : : "m"(one_tile));
#endif
}

__attribute__((used)) static _Noreturn void traced_main(const char *words)
{
    long has = 0;
    for (; *words; words++) {
        if (*words == 'x')
            has |= HAS_XGETBV1;
        if (*words == 'k')
            has |= HAS_PKRU;
        if (*words == 'p' && call(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILEDATA))
            call(EXIT, GIVE_UP, 0);
        if (*words == 'u')
            use_a_tile();
    }
    if (call(PTRACE, TRACEME, 0))
        call(EXIT, GIVE_UP, 0);
    save_and_stop(has);
}

/* What the kernel leaves on the stack: argc, argv[0], argv[1]. */
__asm__(".globl _start\n"
        "_start:\n"
#ifdef __x86_64__
        "    mov 16(%rsp), %rdi\n"
        "    and $-16, %rsp\n"
        "    call traced_main\n"
#else
        "    mov 8(%esp), %eax\n"
        "    and $-16, %esp\n"
        "    sub $12, %esp\n"
        "    push %eax\n"
        "    call traced_main\n"
#endif
);
