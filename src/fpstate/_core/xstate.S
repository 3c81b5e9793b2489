# Restore, and restore and save at once, as functions, each under the fault guard: the signal handler knows the labels
# guarded_* and continues at guarded_failed with the register file initialised and the struct refusal in rax and rdx.
# Likewise a core's load, and the copy of an image from memory that somebody else may take away.

    .text
    .globl xstate_restore, xstate_exchange
    .globl guarded_load, guarded_copy
    .globl guarded_xrstor, guarded_exchange, guarded_failed, guarded_loaded, guarded_movs
    .globl fsbase_read, gsbase_read, fsbase_write, gsbase_write, pkru_read, pkru_write
    .globl mxcsr_read, fcw_read, control_words_write
    .hidden xstate_restore, xstate_exchange
    .hidden guarded_load, guarded_copy
    .hidden guarded_xrstor, guarded_exchange, guarded_failed, guarded_loaded, guarded_movs
    .hidden fsbase_read, gsbase_read, fsbase_write, gsbase_write, pkru_read, pkru_write
    .hidden mxcsr_read, fcw_read, control_words_write

# struct refusal xstate_restore(const void *area, uint64_t mask)
xstate_restore:
    mov     %esi, %eax
    mov     %rsi, %rdx
    shr     $32, %rdx
guarded_xrstor:
    xrstor64 (%rdi)
    xor     %eax, %eax
    ret

# struct refusal xstate_exchange(const void *from, void *to, uint64_t load, uint64_t save, int compact):
# load one image and save it at once, before any other code can touch a register
xstate_exchange:
    mov     %rcx, %r9
    mov     %edx, %eax
    shr     $32, %rdx
guarded_exchange:
    xrstor64 (%rdi)
    mov     %r9d, %eax
    mov     %r9, %rdx
    shr     $32, %rdx
    test    %r8d, %r8d
    jz      1f
    xsavec64 (%rsi)
    xor     %eax, %eax
    ret
1:  xsave64 (%rsi)
    xor     %eax, %eax
    ret

guarded_failed:
    ret

# struct refusal guarded_load(const void *area, const struct arrangement *, void (*load)(const void *, const struct arrangement *)):
# a core's load, which has no stack of its own. Where it faults the handler lets it return with ebx set.
guarded_load:
    push    %rbx
    xor     %ebx, %ebx
    call    *%rdx
guarded_loaded:
    test    %ebx, %ebx
    pop     %rbx
    jnz     1f
    xor     %eax, %eax
1:  ret

# struct refusal guarded_copy(void *to, const void *from, size_t size)
guarded_copy:
    mov     %rdx, %rcx
guarded_movs:
    rep movsb
    xor     %eax, %eax
    xor     %edx, %edx
    ret

fsbase_read:
    rdfsbase %rax
    ret
gsbase_read:
    rdgsbase %rax
    ret
fsbase_write:
    wrfsbase %rdi
    ret
gsbase_write:
    wrgsbase %rdi
    ret
pkru_read:
    xor     %ecx, %ecx
    rdpkru
    ret
pkru_write:
    mov     %edi, %eax
    xor     %ecx, %ecx
    xor     %edx, %edx
    wrpkru
    ret
mxcsr_read:
    stmxcsr -4(%rsp)
    mov     -4(%rsp), %eax
    ret
fcw_read:
    fnstcw  -4(%rsp)
    movzwl  -4(%rsp), %eax
    ret
control_words_write:
    mov     %edi, -4(%rsp)
    mov     %si, -8(%rsp)
    ldmxcsr -4(%rsp)
    fldcw   -8(%rsp)
    ret

    .section .note.GNU-stack, "", @progbits
