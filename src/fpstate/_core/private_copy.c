/* Compiled with general registers only: a copy is wiped while its state is in the others. */
#include "private_copy.h"
#include "arrangement.h"
#include "shelf.h"

#include <errno.h>
#include <pthread.h>

/* A compacted image that states PKRU, which is not managed, may be longer than any of ours by as much. */
enum { SLACK = 128 };

static struct shelf copies;

static void size_copies(void)
{
    copies.stride = shelf_stride(processor()->area_size + SLACK);
}

/* Where the last component ends that the header, as copied, states; no more than there is. */
static size_t stated(const char *image, size_t size)
{
    const uint64_t *header = (const uint64_t *)(image + HEADER_AT);
    bool compact = header[1] & COMPACTED;
    uint64_t xcr0 = processor()->xcr0, room = compact ? header[1] & ~COMPACTED & xcr0 : xcr0;
    struct arrangement arrangement = arrangement_of(room, compact);
    size_t end = arrangement_extent(&arrangement, header[0] & room);
    end = end < copies.stride ? end : copies.stride;
    return end < size ? end : size;
}

static bool add(struct private_copy *copy, const char *image, size_t end, struct refusal *refusal)
{
    if (end <= copy->size)
        return true;
    size_t start = copy->size;
    copy->size = end; /* also where it is cut short: it is to be wiped */
    *refusal = guarded_copy(copy->image + start, image + start, end - start);
    refusal->address += (uint64_t)copy->image - (uint64_t)image;
    return !refusal->signal;
}

int private_copy_take(struct private_copy *copy, const void *image, size_t size, struct refusal *refusal)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, size_copies);
    *copy = (struct private_copy){.image = shelf_take(&copies)};
    if (!copy->image)
        return ENOMEM;
    if (!add(copy, image, size < LEGACY_AND_HEADER ? size : LEGACY_AND_HEADER, refusal))
        return REFUSED;
    if (size > LEGACY_AND_HEADER && !add(copy, image, stated(copy->image, size), refusal))
        return REFUSED;
    return 0;
}

void private_copy_wipe(struct private_copy *copy)
{
    if (copy->image)
        shelf_give_part(&copies, copy->image, copy->size);
    *copy = (struct private_copy){0};
}
