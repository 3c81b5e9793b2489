/* What the kernel permits: arch_prctl(2), fpu_xstate_prctl in arch/x86/kernel/fpu/xstate.c. */
#include "core.h"

#include <sys/syscall.h>
#include <unistd.h>

enum { GET_XCOMP_PERM = 0x1022 }; /* Linux 5.16; asm/prctl.h of older systems lacks it */

bool kernel_permission(uint64_t *permitted)
{
    return syscall(SYS_arch_prctl, GET_XCOMP_PERM, permitted) == 0;
}
