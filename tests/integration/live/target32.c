/* A 32-bit process without a library: fills xmm0 to xmm7, st0 and MXCSR, says "ready" and sleeps. */
static unsigned char xmm[8][16];
static const unsigned mxcsr = 0x7f80;
static const long double st = 1.5L;

void _start(void)
{
    for (int r = 0; r < 8; r++)
        for (int b = 0; b < 16; b++)
            xmm[r][b] = (unsigned char)(11 * r + 3 * b + 1);
    __asm__ volatile("fninit\nfldt %1\nldmxcsr %2\n"
                     ".irp r,0,1,2,3,4,5,6,7\nmovdqu 16*\\r(%0), %%xmm\\r\n.endr\n"
                     "mov $4, %%eax\nmov $1, %%ebx\nmov %3, %%ecx\nmov $6, %%edx\nint $0x80\n"
                     "1: mov $29, %%eax\nint $0x80\njmp 1b\n"
                     :
                     : "S"(xmm), "m"(st), "m"(mxcsr), "D"("ready\n")
                     : "memory");
    __builtin_unreachable();
}
