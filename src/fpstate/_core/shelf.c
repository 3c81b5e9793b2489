/* A region is two megabytes, aligned to as much, with its own free list: one huge page where the kernel has it. */
#include "shelf.h"
#include "dumps.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ALIGNMENT = 64, PAGE = 4096 };
#define REGION_BYTES (2ul << 20)

struct region {
    struct region *next, *previous;
    void *free;  /* blocks that came back; each holds the address of the next */
    char *fresh; /* from here on no block was ever taken */
    size_t taken;
};

/* A futex, 2 where somebody may wait: the C library's mutex may use vector registers, and to spin for the time of an
 * munmap, or of a holder that does not run, may take for ever under real-time priorities. */
enum { FREE, HELD, AWAITED };
static atomic_int lock;

static void acquire(void)
{
    int found = FREE;
    if (atomic_compare_exchange_strong_explicit(&lock, &found, HELD, memory_order_acquire, memory_order_relaxed))
        return;
    while (atomic_exchange_explicit(&lock, AWAITED, memory_order_acquire) != FREE)
        syscall(SYS_futex, &lock, FUTEX_WAIT_PRIVATE, AWAITED, NULL);
}

static void release(void)
{
    if (atomic_exchange_explicit(&lock, FREE, memory_order_release) == AWAITED)
        syscall(SYS_futex, &lock, FUTEX_WAKE_PRIVATE, 1);
}

static void in_child(void)
{
    atomic_store(&lock, FREE); /* the threads that waited are not here */
}

/* A child has the memory as it was at the fork, and none of the other threads: nobody may be in the midst of it. */
__attribute__((constructor)) static void survive_fork(void)
{
    pthread_atfork(acquire, release, in_child);
}

void bytes_copy(void *to, const void *from, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

void bytes_clear(void *at, size_t size)
{
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(0) : "memory");
}

uint32_t shelf_stride(uint32_t size)
{
    uint32_t stride = (size + ALIGNMENT - 1) & ~(uint32_t)(ALIGNMENT - 1);
    return stride % PAGE ? stride : stride + ALIGNMENT;
}

static void link_in(struct shelf *shelf, struct region *region)
{
    region->previous = NULL;
    region->next = shelf->room;
    if (region->next)
        region->next->previous = region;
    shelf->room = region;
}

static void link_out(struct shelf *shelf, struct region *region)
{
    if (region->next)
        region->next->previous = region->previous;
    if (region->previous)
        region->previous->next = region->next;
    else
        shelf->room = region->next;
    region->next = region->previous = NULL;
}

static bool full(const struct shelf *shelf, const struct region *region)
{
    return !region->free && region->fresh + shelf->stride > (const char *)region + REGION_BYTES;
}

static struct region *map_region(struct shelf *shelf)
{
    char *start = mmap(NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    char *aligned = (char *)(((uintptr_t)start + REGION_BYTES - 1) & ~(REGION_BYTES - 1));
    if (aligned > start)
        munmap(start, (size_t)(aligned - start));
    munmap(aligned + REGION_BYTES, (size_t)(start + REGION_BYTES - aligned));
    if (!keep_from_dumps(aligned, REGION_BYTES)) {
        munmap(aligned, REGION_BYTES);
        return NULL;
    }
    madvise(aligned, REGION_BYTES, shelf->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    struct region *region = (struct region *)aligned;
    region->fresh = aligned + ALIGNMENT;
    shelf->regions++;
    link_in(shelf, region);
    return region;
}

static void *take_from(struct shelf *shelf, struct region *region)
{
    void **block = region->free;
    if (block) {
        region->free = *block;
        *block = NULL;
    } else {
        block = (void **)region->fresh;
        region->fresh += shelf->stride;
    }
    region->taken++;
    shelf->taken++;
    if (full(shelf, region))
        link_out(shelf, region);
    return block;
}

void *shelf_take(struct shelf *shelf)
{
    acquire();
    struct region *region = shelf->room ? shelf->room : map_region(shelf);
    void *block = region ? take_from(shelf, region) : NULL;
    release();
    return block;
}

/* A region without blocks goes back to the kernel, unless it is the only one with room. */
void shelf_give_part(struct shelf *shelf, void *block, size_t used)
{
    struct region *region = (struct region *)((uintptr_t)block & ~(REGION_BYTES - 1));
    bytes_clear(block, used);
    acquire();
    if (full(shelf, region))
        link_in(shelf, region);
    *(void **)block = region->free;
    region->free = block;
    region->taken--;
    shelf->taken--;
    if (!region->taken && (region->next || region->previous)) {
        link_out(shelf, region);
        shelf->regions--;
        munmap(region, REGION_BYTES);
    }
    release();
}

void shelf_give(struct shelf *shelf, void *block)
{
    shelf_give_part(shelf, block, shelf->stride);
}
