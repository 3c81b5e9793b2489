/* A child of the oracle tests: it lets this processor and this kernel judge one image after the other.
 *
 * restorer             requests on standard input, answers on standard output
 *   request  struct request, then `length` bytes: the image, placed so that it ends `slack` bytes before
 *            an unmapped page
 *   answer   struct answer, then AREA bytes: the registers afterwards, by XSAVE with every component
 * restorer traced FILE  stops by INT3 for ever; between the stops it saves its registers to FILE
 *
 * Every restore runs after one of the pattern sent first (kind PATTERN), so that a component that becomes
 * initial can be told from one that is kept. XRSTOR runs under a handler for SIGSEGV; a refused signal frame
 * gives SIGSEGV too. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { PATTERN = 0, XRSTOR = 1, SIGRETURN = 2, NO_FRAME = 3 };
enum { AREA = 12288, ARENA = 65536, PAGE = 4096, GIVE_UP = 3 };

struct request {
    uint32_t kind, length, slack, reserved;
    uint64_t mask;
};
struct answer {
    uint32_t signal;
    int32_t code;
};

static char pattern[AREA] __attribute__((aligned(64)));
static char saved[AREA] __attribute__((aligned(64)));
static char *arena;
static void *frame_state; /* what sigreturn is to load */
static sigjmp_buf refused;
static volatile struct answer answer;

int restore_by_xrstor(const void *image, void *saved, uint64_t mask, const void *pattern);
int restore_by_sigreturn(void *saved, const void *pattern);
void save_and_stop(void *saved);
__asm__(".text\n"
        "restore_by_xrstor:\n"
        "    mov %rdx, %r8\n"
        "    mov $-1, %eax\n"
        "    mov %eax, %edx\n"
        "    xrstor64 (%rcx)\n"
        "    mov %r8d, %eax\n"
        "    mov %r8, %rdx\n"
        "    shr $32, %rdx\n"
        "    xrstor64 (%rdi)\n"
        "    mov $-1, %eax\n"
        "    mov %eax, %edx\n"
        "    xsave64 (%rsi)\n"
        "    xor %eax, %eax\n"
        "    ret\n"
        "restore_by_sigreturn:\n"
        "    mov $-1, %eax\n"
        "    mov %eax, %edx\n"
        "    xrstor64 (%rsi)\n"
        "    ud2\n" /* the handler goes on behind it, with the registers that sigreturn gives */
        "    mov $-1, %eax\n"
        "    mov %eax, %edx\n"
        "    xsave64 (%rdi)\n"
        "    xor %eax, %eax\n"
        "    ret\n"
        "save_and_stop:\n"
        "1:  int3\n"
        "    mov $-1, %eax\n"
        "    mov %eax, %edx\n"
        "    xsave64 (%rdi)\n"
        "    jmp 1b\n");

static void control_words(void)
{
    uint32_t mxcsr = 0x1F80;
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
}

static void on_segv(int signal, siginfo_t *info, void *context)
{
    (void)context;
    answer.signal = (uint32_t)signal;
    answer.code = info->si_code;
    siglongjmp(refused, 1);
}

static void on_ud2(int signal, siginfo_t *info, void *raw)
{
    (void)signal;
    (void)info;
    ucontext_t *context = raw;
    context->uc_mcontext.gregs[REG_RIP] += 2;
    context->uc_mcontext.fpregs = frame_state;
}

static void receive(void *to, size_t length)
{
    char *at = to;
    while (length) {
        ssize_t got = read(0, at, length);
        if (got <= 0)
            _exit(0);
        at += got;
        length -= (size_t)got;
    }
}

static void reply(const void *from, size_t length)
{
    const char *at = from;
    while (length) {
        ssize_t put = write(1, at, length);
        if (put <= 0)
            _exit(GIVE_UP);
        at += put;
        length -= (size_t)put;
    }
}

static void judge(const struct request *request, void *image)
{
    answer.signal = 0;
    answer.code = 0;
    memset(saved, 0, sizeof saved);
    if (sigsetjmp(refused, 1) == 0) {
        if (request->kind == XRSTOR) {
            restore_by_xrstor(image, saved, request->mask, pattern);
        } else {
            frame_state = request->kind == NO_FRAME ? NULL : image;
            restore_by_sigreturn(saved, pattern);
        }
    }
    control_words();
}

static void traced(const char *path)
{
    int file = open(path, O_RDWR);
    void *area = file < 0 ? MAP_FAILED : mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char go;
    if (area == MAP_FAILED)
        _exit(GIVE_UP);
    receive(&go, 1); /* until somebody traces this */
    save_and_stop(area);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaction(signal, &action, NULL))
        _exit(GIVE_UP);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        traced(argv[2]);
    stack_t stack = {.ss_sp = malloc(ARENA), .ss_size = ARENA};
    arena = mmap(NULL, ARENA + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!stack.ss_sp || arena == MAP_FAILED || sigaltstack(&stack, NULL) || mprotect(arena + ARENA, PAGE, PROT_NONE))
        return GIVE_UP;
    handle(SIGSEGV, on_segv);
    handle(SIGBUS, on_segv);
    handle(SIGILL, on_ud2);
    for (;;) {
        struct request request;
        receive(&request, sizeof request);
        if ((size_t)request.length + request.slack > ARENA || (request.kind == PATTERN && request.length > AREA))
            return GIVE_UP;
        char *image = arena + ARENA - request.slack - request.length;
        memset(arena, 0, ARENA);
        receive(request.kind == PATTERN ? pattern : image, request.length);
        if (request.kind == PATTERN)
            continue;
        judge(&request, image);
        reply((const void *)&answer, sizeof answer);
        reply(saved, sizeof saved);
    }
}
