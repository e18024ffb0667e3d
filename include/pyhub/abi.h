/* abi.h: what every other header stands on: the ABI version, status codes,
 * and the atomic words through which processes talk to each other.
 *
 * The headers are the ABI, algorithms included (docs/decisions/0001). They
 * compile as C11 and as C++17, with gcc and clang, on x86-64 and ARM64.
 *
 * Shared words are wrapped in a struct (phb_u32, phb_u64) so that no line of
 * code can read or write one by accident: every access goes through a
 * function that names its memory order (docs/decisions/0002).
 */
#ifndef PYHUB_ABI_H
#define PYHUB_ABI_H

#include <stddef.h>
#include <stdint.h>

/* Raised with every change of a layout; then tests/c/golden gets a new file. */
#define PHB_ABI_VERSION 3u

#define PHB_CACHE_LINE 64u

/* A frame starts at a multiple of this, so that no two slots share a line. */
#define PHB_ZONE_ALIGN 64u

#ifdef __cplusplus
#define PHB_STATIC_ASSERT(condition, why) static_assert(condition, why)
#else
#define PHB_STATIC_ASSERT(condition, why) _Static_assert(condition, why)
#endif

/* The layout of a shared struct, field by field. */
#define PHB_ASSERT_OFFSET(type, field, offset) \
    PHB_STATIC_ASSERT(offsetof(type, field) == (offset), #type "." #field " moved")
#define PHB_ASSERT_SIZE(type, size) \
    PHB_STATIC_ASSERT(sizeof(type) == (size), #type " changed its size")

/* What a function of these headers answers. One code for each thing that a
 * caller can do about it; PHB_SYSTEM means that errno tells. */
typedef enum phb_status {
    PHB_OK = 0,
    PHB_TIMEOUT,     /* the deadline passed first */
    PHB_INTERRUPTED, /* a slice of a long wait ended: look at signals, call again */
    PHB_RECOVERED,   /* the lock is yours; its last owner died holding it */
    PHB_EMPTY,       /* what was asked for has not been published yet */
    PHB_BUSY,        /* the newest frame is being overwritten: wait for the next */
    PHB_OVERRUN,     /* the frame asked for has been overwritten */
    PHB_SKIPPED,     /* no frame has that position: its slot was pinned; ask for the next */
    PHB_FULL,        /* readers keep every slot; or the table of readers has no place */
    PHB_CLOSED,      /* the owner closed the segment */
    PHB_CAPACITY,    /* larger than the zone */
    PHB_MISUSE,      /* called out of order, or by a thread that did not begin */
    PHB_SYSTEM,      /* a system call failed: see errno */
    PHB_EXISTS,      /* the name belongs to a segment in use */
    PHB_IN_USE,      /* not removed: its owner lives */
    PHB_NOT_SEGMENT, /* the file is not a pyhub segment */
    PHB_BAD_ABI,     /* another ABI version, byte order, or pthread library */
    PHB_BAD_KIND,    /* a segment of another kind */
    PHB_BAD_BOOT,    /* written before the last reboot */
    PHB_BAD_PIDNS,   /* made in another PID namespace; no lock works across */
    PHB_BAD_OWNER,   /* the file belongs to another user */
    PHB_BAD_MODE,    /* others may write to the file, or it is no plain file */
    PHB_TRUNCATED,   /* the file's size is not what its header says */
    PHB_DAMAGED      /* the header contradicts itself */
} phb_status;

/* --- Atomic words -------------------------------------------------------- */

typedef struct phb_u32 {
    uint32_t word;
} phb_u32;

typedef struct phb_u64 {
    uint64_t word;
} phb_u64;

static inline uint32_t phb_load32(const phb_u32 *shared)
{
    return __atomic_load_n(&shared->word, __ATOMIC_RELAXED);
}

static inline void phb_store32(phb_u32 *shared, uint32_t value)
{
    __atomic_store_n(&shared->word, value, __ATOMIC_RELAXED);
}

static inline uint64_t phb_load64(const phb_u64 *shared)
{
    return __atomic_load_n(&shared->word, __ATOMIC_RELAXED);
}

static inline void phb_store64(phb_u64 *shared, uint64_t value)
{
    __atomic_store_n(&shared->word, value, __ATOMIC_RELAXED);
}

static inline uint64_t phb_load64_acquire(const phb_u64 *shared)
{
    return __atomic_load_n(&shared->word, __ATOMIC_ACQUIRE);
}

static inline void phb_store64_release(phb_u64 *shared, uint64_t value)
{
    __atomic_store_n(&shared->word, value, __ATOMIC_RELEASE);
}

static inline uint32_t phb_load32_acquire(const phb_u32 *shared)
{
    return __atomic_load_n(&shared->word, __ATOMIC_ACQUIRE);
}

static inline void phb_store32_release(phb_u32 *shared, uint32_t value)
{
    __atomic_store_n(&shared->word, value, __ATOMIC_RELEASE);
}

static inline void phb_add32(phb_u32 *shared, uint32_t n)
{
    __atomic_fetch_add(&shared->word, n, __ATOMIC_RELAXED);
}

/* Store `value` if the word is still *expected; else *expected is what it is. */
static inline int phb_swap32(phb_u32 *shared, uint32_t *expected, uint32_t value)
{
    return __atomic_compare_exchange_n(&shared->word, expected, value, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

static inline int phb_swap64(phb_u64 *shared, uint64_t *expected, uint64_t value)
{
    return __atomic_compare_exchange_n(&shared->word, expected, value, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* Between two looks at a word that another processor will change. */
static inline void phb_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* `yield` does nothing on most of them */
#endif
}

static inline void phb_fence_acquire(void)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

static inline void phb_fence_release(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* Between a store and a load, on both sides of a hand-over in which each side
 * stores its own word and then looks at the other's: at least one of the two
 * sees what the other stored. */
static inline void phb_fence_full(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Keeps the compiler, not the processor, from swapping what stands around it. */
static inline void phb_fence_compiler(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* --- Arithmetic on sizes that may come from a damaged header ------------- */

/* *sum += term * count; false if the result does not fit. */
static inline int phb_add_product(uint64_t *sum, uint64_t term, uint64_t count)
{
    uint64_t product;
    return !__builtin_mul_overflow(term, count, &product) &&
           !__builtin_add_overflow(*sum, product, sum);
}

/* Round *value up to a multiple of `align` (a power of two). */
static inline int phb_align_up(uint64_t *value, uint64_t align)
{
    if (__builtin_add_overflow(*value, align - 1, value)) {
        return 0;
    }
    *value &= ~(align - 1);
    return 1;
}

#endif
