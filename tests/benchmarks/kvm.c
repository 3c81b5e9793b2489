/* The ioctls of a guest switch in a loop, for comparison with the same from Python. Built by kvm.py as a shared object. */
#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Nanoseconds of `rounds` times one ioctl on one buffer; -1 where it fails. */
int64_t repeat(int file, unsigned long request, void *buffer, int rounds)
{
    int64_t start = now();
    for (int round = 0; round < rounds; round++)
        if (ioctl(file, request, buffer) < 0)
            return -1;
    return now() - start;
}

/* Nanoseconds of `rounds` switches between two guests that write to a port: registers and state in, run, finish the port
 * write, state out. `registers` and `images` hold the two guests, `size` bytes of registers each. -1 where one fails. */
int64_t switches(int file, struct kvm_run *run, const unsigned char *registers, size_t size, unsigned char *images,
                 size_t image_size, unsigned char *out, int rounds)
{
    int64_t start = now();
    for (int round = 0; round < rounds; round++) {
        int guest = round % 2;
        memcpy(&run->s, registers + guest * size, size);
        run->kvm_dirty_regs = KVM_SYNC_X86_VALID_FIELDS;
        if (ioctl(file, KVM_SET_XSAVE, images + guest * image_size) < 0)
            return -1;
        if (ioctl(file, KVM_RUN, 0) < 0 || run->exit_reason != KVM_EXIT_IO)
            return -1;
        run->immediate_exit = 1;
        if (ioctl(file, KVM_RUN, 0) == 0 || errno != EINTR)
            return -1;
        run->immediate_exit = 0;
        if (ioctl(file, KVM_GET_XSAVE2, out) < 0)
            return -1;
    }
    return now() - start;
}
