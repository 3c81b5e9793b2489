# Into a guest and out of it.
#
# enter: load the vector state (XRSTOR), then flags and the 16 general registers, then jump.
# exit:  the guest called through %gs:0; keep its registers, then fall into save.
# save:  the guest's vector state is still in the registers; put it away. Faults and ticks come here too:
#        the signal handler has kept the general registers and sigreturn has put the vector state back.
#
# The host's loop uses general registers alone, so the guest's vector state, once saved, may stay in the registers:
# the next guest's restore covers every component, and carrier_stop wipes what the last one left.
#
# Where the fast core is the chosen one, its functions take the place of XRSTOR and XSAVEC. CARRIER_LIVE is what may be
# in use in the registers when a guest is entered: what the last one had in use, or everything.
#
# Nothing on the way out takes a register of the guest's for granted. Flags, PKRU and the gs base are looked at in
# vcpu_exit; the handler puts flags, PKRU, CS and SS right in the frame; saved compares the selectors and the fs base.
#
# A tick anywhere between trampoline_start and trampoline_end is let pass, and in the cores' functions too: the timer is
# periodic.

#include "offsets.h"

#define V(field) field(%rbx)
#define G(field) %gs:field

    .text
    .globl trampoline_start, trampoline_end
    .globl vcpu_enter, enter_moved, enter_xrstor, enter_by_frame, enter_end, vcpu_exit, vcpu_save, vcpu_abandoned
    .hidden trampoline_start, trampoline_end
    .hidden vcpu_enter, enter_moved, enter_xrstor, enter_by_frame, enter_end, vcpu_exit, vcpu_save, vcpu_abandoned

    .p2align 6
trampoline_start:

# uint32_t vcpu_enter(struct vcpu *, struct carrier *): the exit kind
    .type vcpu_enter, @function
vcpu_enter:
    push    %rbx
    push    %rbp
    push    %r12
    push    %r13
    push    %r14
    push    %r15
    sub     $8, %rsp
    mov     %rdi, %rbx
    mov     %rsp, V(VCPU_HOST_RSP)
    mov     %rsi, V(VCPU_CARRIER)
    mov     V(VCPU_FPSTATE), %rcx
    mov     %rbx, CARRIER_VCPU(%rsi)    # from here on the signal handler knows whose guest is on
    mov     CARRIER_LOAD(%rsi), %rax
    test    %rax, %rax
    jz      load_all
    mov     V(VCPU_RESTORE_MASK), %rdx
    cmp     CARRIER_FULL_MASK(%rsi), %rdx
    jne     load_all                    # the fast core loads everything
    mov     %rcx, %rdi
    mov     CARRIER_LIVE(%rsi), %rdx
    lea     V(VCPU_ARRANGEMENT), %rsi
    call    *%rax
enter_moved:
    mov     V(VCPU_FPSTATE), %rcx
    mov     V(VCPU_CARRIER), %rsi
    test    %eax, %eax
    jz      loaded                      # else nothing was loaded: XRSTOR takes it, or refuses it
load_all:
    mov     V(VCPU_RESTORE_MASK), %eax
    mov     V(VCPU_RESTORE_MASK + 4), %edx
enter_xrstor:
    xrstor64 (%rcx)
loaded:
    wrgsbase %rbx
    testl   $CARRIER_TIMING, CARRIER_FLAGS(%rsi)
    jz      1f
    rdtsc
    mov     %eax, V(VCPU_TSC_ENTER)
    mov     %edx, V(VCPU_TSC_ENTER + 4)
1:  testl   $CARRIER_PKRU, CARRIER_FLAGS(%rsi)
    jnz     enter_pkru
enter_registers:
    lea     V(VCPU_RFLAGS), %rsp
    popfq
    mov     V(VCPU_REG(0)), %rax
    mov     V(VCPU_REG(1)), %rcx
    mov     V(VCPU_REG(2)), %rdx
    mov     V(VCPU_REG(5)), %rbp
    mov     V(VCPU_REG(6)), %rsi
    mov     V(VCPU_REG(7)), %rdi
    mov     V(VCPU_REG(8)), %r8
    mov     V(VCPU_REG(9)), %r9
    mov     V(VCPU_REG(10)), %r10
    mov     V(VCPU_REG(11)), %r11
    mov     V(VCPU_REG(12)), %r12
    mov     V(VCPU_REG(13)), %r13
    mov     V(VCPU_REG(14)), %r14
    mov     V(VCPU_REG(15)), %r15
    mov     V(VCPU_REG(4)), %rsp
    mov     V(VCPU_REG(3)), %rbx
    jmp     *G(VCPU_RIP)

# The guest's keys, before its registers: WRPKRU takes three of them, and no register is free to put them back from. So
# what is still to be read, the vCPU, has to be open to the guest. A guest that closed its key is entered by sigreturn.
enter_pkru:
    cmpl    $0, V(VCPU_BY_FRAME)
    jne     1f
    mov     V(VCPU_PKRU), %eax
    cmp     CARRIER_HOST_PKRU(%rsi), %eax
    je      enter_registers
    xor     %ecx, %ecx
    xor     %edx, %edx
    wrpkru
    jmp     enter_registers
1:  lea     V(VCPU_RFLAGS), %rsp        # for ID alone, which sigreturn leaves as it is
    popfq
enter_by_frame:
    ud2                                 # the handler puts the whole guest into the frame
enter_end:
    ud2

    .p2align 6
    .type vcpu_exit, @function
vcpu_exit:
    popq    G(VCPU_RIP)
    mov     %rsp, G(VCPU_REG(4))
    mov     G(VCPU_HOST_RSP), %rsp
    mov     %rax, G(VCPU_REG(0))
    mov     %rcx, G(VCPU_REG(1))
    mov     %rdx, G(VCPU_REG(2))
    mov     %rbx, G(VCPU_REG(3))
    mov     %rbp, G(VCPU_REG(5))
    mov     %rsi, G(VCPU_REG(6))
    mov     %rdi, G(VCPU_REG(7))
    mov     %r8, G(VCPU_REG(8))
    mov     %r9, G(VCPU_REG(9))
    mov     %r10, G(VCPU_REG(10))
    mov     %r11, G(VCPU_REG(11))
    mov     %r12, G(VCPU_REG(12))
    mov     %r13, G(VCPU_REG(13))
    mov     %r14, G(VCPU_REG(14))
    mov     %r15, G(VCPU_REG(15))
    pushfq
    popq    G(VCPU_RFLAGS)
    cld
    testl   $0x244000, G(VCPU_RFLAGS)   # ID, AC, which would fault host code, and NT, which sigreturn would keep
    jz      1f
    push    $2
    popfq
1:  rdgsbase %rbx
    mov     V(VCPU_CARRIER), %rsi
    cmp     %rbx, CARRIER_VCPU(%rsi)
    jne     exit_elsewhere
    movl    $EXIT_CALL, V(VCPU_EXIT_KIND)
    testl   $CARRIER_PKRU, CARRIER_FLAGS(%rsi)
    jnz     exit_pkru

# rbx = vcpu, rsp = the host's, flags clean; the guest's vector state is live
vcpu_save:
    mov     V(VCPU_CARRIER), %rsi
    testl   $CARRIER_TIMING, CARRIER_FLAGS(%rsi)
    jz      1f
    rdtsc
    mov     %eax, V(VCPU_TSC_LEAVE)
    mov     %edx, V(VCPU_TSC_LEAVE + 4)
1:  testl   $CARRIER_COMPACT, CARRIER_FLAGS(%rsi)
    jz      save_standard
    mov     $1, %ecx
    xgetbv
    shl     $32, %rdx
    or      %rdx, %rax
    and     CARRIER_FULL_MASK(%rsi), %rax
    mov     %rax, V(VCPU_IN_USE)
    mov     %rax, CARRIER_LIVE(%rsi)
    mov     V(VCPU_SAVE_MASK), %rdx
    mov     %rdx, %rcx
    not     %rcx
    test    %rcx, %rax
    jnz     save_spill                  # in use, and the buffer has no room for it
    mov     %edx, %eax
    shr     $32, %rdx
    mov     %eax, %ecx
    or      %edx, %ecx
    jz      saved                       # nothing in use and no buffer
    mov     CARRIER_STORE(%rsi), %rdi
    test    %rdi, %rdi
    jnz     save_moves
    mov     V(VCPU_FPSTATE), %rcx
    xsavec64 (%rcx)
saved:
    movq    $0, CARRIER_VCPU(%rsi)      # host code from here on
    mov     %ss, %eax
    xor     CARRIER_HOST_SS(%rsi), %eax
    mov     %ds, %ecx
    or      %ecx, %eax
    mov     %es, %ecx
    or      %ecx, %eax
    mov     %fs, %ecx
    or      %ecx, %eax
    mov     %gs, %ecx
    or      %ecx, %eax
    jnz     restore_selectors           # Linux starts 64-bit programs with 0 in the last four
check_fs:
    rdfsbase %rax
    cmp     CARRIER_HOST_FS(%rsi), %rax
    jne     restore_fs
2:  mov     V(VCPU_EXIT_KIND), %eax
    add     $8, %rsp
    pop     %r15
    pop     %r14
    pop     %r13
    pop     %r12
    pop     %rbp
    pop     %rbx
    ret

save_moves:
    mov     %rdi, %rax
    mov     V(VCPU_FPSTATE), %rdi
    lea     V(VCPU_ARRANGEMENT), %rsi
    mov     V(VCPU_IN_USE), %rdx
    call    *%rax
    mov     V(VCPU_CARRIER), %rsi
    jmp     saved

save_spill:
    mov     CARRIER_FULL_MASK(%rsi), %rax
    mov     %rax, %rdx
    shr     $32, %rdx
    mov     CARRIER_SPILL(%rsi), %rcx
    movl    $1, V(VCPU_SPILLED)
    xsavec64 (%rcx)
    jmp     saved

# Without XSAVEC or XGETBV(1): all of it into the spill area; C looks at XSTATE_BV and copies.
save_standard:
    mov     CARRIER_SPILL(%rsi), %rcx
    xor     %eax, %eax
    mov     %rax, 512(%rcx)
    mov     %rax, 520(%rcx)
    mov     %rax, 528(%rcx)
    mov     %rax, 536(%rcx)
    mov     %rax, 544(%rcx)
    mov     %rax, 552(%rcx)
    mov     %rax, 560(%rcx)
    mov     %rax, 568(%rcx)
    mov     CARRIER_FULL_MASK(%rsi), %rax
    mov     %rax, %rdx
    shr     $32, %rdx
    xsave64 (%rcx)
    mov     512(%rcx), %rdi
    mov     %rdi, V(VCPU_IN_USE)
    movl    $1, V(VCPU_SPILLED)
    jmp     saved

# Before the fs base: a selector brings its own, and 0 brings 0 on some processors. The gs base is nobody's here.
restore_selectors:
    mov     CARRIER_HOST_SS(%rsi), %eax
    mov     %eax, %ss
    mov     CARRIER_HOST_DS(%rsi), %eax
    mov     %eax, %ds
    mov     CARRIER_HOST_ES(%rsi), %eax
    mov     %eax, %es
    mov     CARRIER_HOST_FS_SELECTOR(%rsi), %eax
    mov     %eax, %fs
    mov     CARRIER_HOST_GS_SELECTOR(%rsi), %eax
    mov     %eax, %gs
    jmp     check_fs

restore_fs:
    mov     CARRIER_HOST_FS(%rsi), %rax
    wrfsbase %rax
    jmp     2b

# The gs base is not this thread's vCPU: whoever called here, it was not by the way that leads here.
exit_elsewhere:
    ud2

# The first store of vcpu_exit showed that the guest left the host's key open, or faulted as the guest.
exit_pkru:
    xor     %ecx, %ecx
    rdpkru
    mov     %eax, V(VCPU_PKRU)
    cmp     CARRIER_HOST_PKRU(%rsi), %eax
    je      vcpu_save
    mov     CARRIER_HOST_PKRU(%rsi), %eax
    wrpkru                              # rdpkru has left 0 in edx
    jmp     vcpu_save

# The handler sends us here where there is nothing to save; rbx = vcpu, rsp = the host's, state initial.
vcpu_abandoned:
    rdtsc
    mov     %eax, V(VCPU_TSC_LEAVE)
    mov     %edx, V(VCPU_TSC_LEAVE + 4)
    mov     V(VCPU_CARRIER), %rsi
    movq    $-1, CARRIER_LIVE(%rsi)
    jmp     saved

trampoline_end:
    .section .note.GNU-stack, "", @progbits
