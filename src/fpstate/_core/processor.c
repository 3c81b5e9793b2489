/* What this processor and kernel have; asked once. */
#include "core.h"

#include <cpuid.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE (1 << 1)
#endif

enum { LEAF_FEATURES = 1, LEAF_STRUCTURED = 7, LEAF_XSTATE = 0xD };
enum { OSXSAVE_ECX1 = 1 << 27, OSPKE_ECX7 = 1 << 4, XSAVEC_EAX = 1 << 1, XGETBV1_EAX = 1 << 2 };
enum { ALIGN64_ECX = 1 << 1, XFD_ECX = 1 << 2 };
enum { AVX_ECX1 = 1 << 28, AVX512F_EBX7 = 1 << 16, AVX512BW_EBX7 = 1 << 30, LEAF_AMD_EXTENDED = 0x80000008u };
enum { SECOND_LEVEL_CACHE = 1 << 20 }; /* where the C library does not know */
enum { POINTERS_EBX = 1 << 2, INTEL_EBX0 = 0x756E6547 };
enum { MXCSR_MASK_AT = 28, MXCSR_MASK_DEFAULT = 0xFFBF };

static struct processor found;
static pthread_once_t found_once = PTHREAD_ONCE_INIT;

void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    if (__get_cpuid_max(leaf & 0x80000000u, NULL) < leaf) {
        memset(out, 0, 4 * sizeof *out);
        return;
    }
    __cpuid_count(leaf, subleaf, out[0], out[1], out[2], out[3]);
}

uint64_t xgetbv(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

/* SDM vol. 1, 11.6.6: FXSAVE tells which bits of MXCSR are defined; 0 stands for 0xFFBF. */
static uint32_t read_mxcsr_mask(void)
{
    _Alignas(16) unsigned char area[512] = {0};
    uint32_t mask;
    __asm__ volatile("fxsave64 %0" : "=m"(area));
    memcpy(&mask, area + MXCSR_MASK_AT, sizeof mask);
    return mask ? mask : MXCSR_MASK_DEFAULT;
}

/* Extents are maxima of offset + size: the highest component need not lie last (APX lies at 960). */
static void find_components(void)
{
    uint32_t leaf[4], standard = LEGACY_AND_HEADER, compact = LEGACY_AND_HEADER;
    for (uint32_t i = 2; i < 63; i++) {
        if (!(found.xcr0 >> i & 1))
            continue;
        cpuid(LEAF_XSTATE, i, leaf);
        if (leaf[2] & XFD_ECX)
            found.dynamic_mask |= 1ull << i;
        found.component[i].size = leaf[0];
        found.component[i].offset = leaf[1];
        if (leaf[0] + leaf[1] > standard)
            standard = leaf[0] + leaf[1];
        if (i == PKRU_BIT)
            continue;
        found.component[i].aligned = leaf[2] & ALIGN64_ECX;
        if (found.component[i].aligned)
            compact = (compact + 63) & ~63u;
        found.component[i].compact_offset = compact;
        compact += leaf[0];
    }
    found.dynamic_mask &= found.managed_mask;
    found.area_size = standard > compact ? standard : compact;
}

/* AMD before Zen keeps another context's FOP, FIP and FDP where no exception is pending (CVE-2006-1056). */
static bool pointers_restored(void)
{
    uint32_t leaf[4];
    cpuid(0, 0, leaf);
    if (leaf[1] == INTEL_EBX0)
        return true;
    cpuid(LEAF_AMD_EXTENDED, 0, leaf);
    return leaf[1] & POINTERS_EBX;
}

static void find(void)
{
    uint32_t leaf[4];
    found.pointers_restored = pointers_restored();
    long cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
    found.second_level_cache = cache > 0 ? (size_t)cache : SECOND_LEVEL_CACHE;
    found.mxcsr_mask = read_mxcsr_mask();
    found.fsgsbase = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
    cpuid(LEAF_FEATURES, 0, leaf);
    if (!(leaf[2] & OSXSAVE_ECX1))
        return;
    found.avx = leaf[2] & AVX_ECX1;
    found.xcr0 = xgetbv(0);
    found.managed_mask = found.xcr0 & ~(1ull << PKRU_BIT);
    find_components();
    cpuid(LEAF_STRUCTURED, 0, leaf);
    found.pkru = leaf[2] & OSPKE_ECX7;
    found.avx512 = (leaf[1] & AVX512F_EBX7) && (leaf[1] & AVX512BW_EBX7);
    cpuid(LEAF_XSTATE, 1, leaf);
    found.xsavec = leaf[0] & XSAVEC_EAX;
    found.xgetbv1 = leaf[0] & XGETBV1_EAX;
}

const struct processor *processor(void)
{
    pthread_once(&found_once, find);
    return &found;
}

enum { TRIES = 8 };
static uint64_t tsc_per_second;
static pthread_once_t tsc_once = PTHREAD_ONCE_INIT;

struct moment {
    uint64_t tsc, ns;
};

/* Both clocks at once: of some tries the closest, as the thread may lose its processor between the two. */
static struct moment now(void)
{
    struct moment found = {0, 0};
    uint64_t closest = UINT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        struct timespec time;
        uint64_t before = __builtin_ia32_rdtsc();
        clock_gettime(CLOCK_MONOTONIC, &time);
        uint64_t apart = __builtin_ia32_rdtsc() - before;
        if (apart >= closest)
            continue;
        closest = apart;
        found.tsc = before + apart / 2;
        found.ns = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
    }
    return found;
}

static void measure_tsc(void)
{
    struct timespec pause = {0, 5000000};
    struct moment start = now();
    nanosleep(&pause, NULL);
    struct moment end = now();
    tsc_per_second = (uint64_t)((unsigned __int128)(end.tsc - start.tsc) * 1000000000u / (end.ns - start.ns));
}

uint64_t tsc_hz(void)
{
    pthread_once(&tsc_once, measure_tsc);
    return tsc_per_second;
}

static void *initial;
static pthread_once_t initial_once = PTHREAD_ONCE_INIT;

/* Standard form with XSTATE_BV = 0: every component becomes initial, MXCSR comes from the image. */
static void make_initial(void)
{
    const uint16_t fcw = FCW_INITIAL;
    const uint32_t mxcsr = MXCSR_INITIAL;
    size_t size = (processor()->area_size + 4095) & ~4095ul;
    char *image = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (image == MAP_FAILED)
        return;
    memcpy(image, &fcw, sizeof fcw);
    memcpy(image + MXCSR_AT, &mxcsr, sizeof mxcsr);
    if (mprotect(image, size, PROT_READ) == 0)
        initial = image;
    else
        munmap(image, size);
}

void *initial_image(void)
{
    pthread_once(&initial_once, make_initial);
    return initial;
}
