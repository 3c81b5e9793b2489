/* Offsets that C and assembly share. core.h asserts each of them against the structs. */
#ifndef FPSTATE_OFFSETS_H
#define FPSTATE_OFFSETS_H

/* struct vcpu; the gs base points at it while its guest runs */
#define VCPU_EXIT_ROUTINE 0
#define VCPU_GPR          8 /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15: the order of the ModRM encoding */
#define VCPU_RIP          136
#define VCPU_RFLAGS       144
#define VCPU_HOST_RSP     152
#define VCPU_CARRIER      160
#define VCPU_FPSTATE      168
#define VCPU_SAVE_MASK    176
#define VCPU_RESTORE_MASK 184
#define VCPU_IN_USE       192
#define VCPU_SPILLED      200
#define VCPU_EXIT_KIND    204
#define VCPU_TSC_ENTER    208
#define VCPU_TSC_LEAVE    216
#define VCPU_PKRU         224
#define VCPU_BY_FRAME     228
#define VCPU_ARRANGEMENT  232

#define VCPU_REG(n) (VCPU_GPR + 8 * (n))
#define REG_N_RAX 0
#define REG_N_RCX 1
#define REG_N_RDX 2
#define REG_N_RBX 3
#define REG_N_RSP 4
#define REG_N_RBP 5
#define REG_N_RSI 6
#define REG_N_RDI 7

/* struct carrier */
#define CARRIER_VCPU       0
#define CARRIER_SPILL      8
#define CARRIER_FULL_MASK  16
#define CARRIER_HOST_FS    24
#define CARRIER_FLAGS      32
#define CARRIER_STORE      40
#define CARRIER_LOAD       48
#define CARRIER_LIVE       56
#define CARRIER_HOST_PKRU  64
#define CARRIER_HOST_SS    68
#define CARRIER_HOST_DS    72
#define CARRIER_HOST_ES    76
#define CARRIER_HOST_FS_SELECTOR 80
#define CARRIER_HOST_GS_SELECTOR 84

/* carrier flags */
#define CARRIER_COMPACT 1 /* XSAVEC and XGETBV(1) are there; else XSAVE into the spill area */
#define CARRIER_TIMING  2 /* note the time stamp counter around the guest */
#define CARRIER_PKRU    4 /* the kernel has protection keys on */

/* struct arrangement: where an area has its components */
#define ARRANGEMENT_XCOMP_BV        0
#define ARRANGEMENT_ROOM            8
#define ARRANGEMENT_MANAGED        16
#define ARRANGEMENT_MOVES          24
#define ARRANGEMENT_AVX            32
#define ARRANGEMENT_OPMASK         36
#define ARRANGEMENT_ZMM_HI256      40
#define ARRANGEMENT_HI16_ZMM       44
#define ARRANGEMENT_MXCSR_MASK     48
#define ARRANGEMENT_MXCSR_RESERVED 52

/* why a guest left (vcpu.exit_kind) */
#define EXIT_NONE      0
#define EXIT_CALL      1 /* call *%gs:0; eax holds the operation */
#define EXIT_PORT      2 /* a port write; eax holds the operation */
#define EXIT_FAULT     3
#define EXIT_PREEMPTED 4
#define EXIT_REFUSED   5 /* XRSTOR was refused, and the fault says how: the guest was not entered */
#define EXIT_EXPIRED   6 /* its processor time is used up */
#define EXIT_SEGMENT   7 /* a tick found it in another code segment, which no vCPU keeps */

#endif
