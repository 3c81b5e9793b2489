/* Numbers that operations.S and child.c share; BASE is in memory.py, the HAS_ bits in child.py too. */
#ifndef RECORDING_CHILD_H
#define RECORDING_CHILD_H

#define BASE 0x10000000 /* where the memory that is shared begins: below 4 GiB, for 32-bit code */
#define HAS_XGETBV1 1
#define HAS_PKRU 2

#define CODE_OF_32_BITS 0x23 /* Linux's __USER32_CS, __USER_CS, __USER_DS */
#define CODE_OF_64_BITS 0x33
#define DATA 0x2b
#define SYSCALL_RT_SIGRETURN 15
#define SYSCALL32_SIGRETURN 119

/* struct rt_sigframe: pretcode, struct ucontext (flags, link, stack, mcontext: struct sigcontext_64). */
#define CONTEXT_64 8
#define STACK_64 (CONTEXT_64 + 16)
#define REGISTERS_64 (CONTEXT_64 + 40)
#define BX_64 (REGISTERS_64 + 88)
#define SP_64 (REGISTERS_64 + 120)
#define IP_64 (REGISTERS_64 + 128)
#define FLAGS_64 (REGISTERS_64 + 136)
#define CS_64 (REGISTERS_64 + 144)
#define SS_64 (REGISTERS_64 + 150)
#define FPSTATE_64 (REGISTERS_64 + 184)
/* struct sigframe_ia32: pretcode, sig, struct sigcontext_32. */
#define CONTEXT_32 8
#define ES_32 (CONTEXT_32 + 8)
#define DS_32 (CONTEXT_32 + 12)
#define SP_32 (CONTEXT_32 + 28)
#define BX_32 (CONTEXT_32 + 32)
#define IP_32 (CONTEXT_32 + 56)
#define CS_32 (CONTEXT_32 + 60)
#define FLAGS_32 (CONTEXT_32 + 64)
#define SS_32 (CONTEXT_32 + 72)
#define FPSTATE_32 (CONTEXT_32 + 76)
#define FRAME_SIZE 1024

#endif
