/* sync.h: clocks, the robust mutex that producers share, and the copy that
 * readers validate.
 *
 * Facts behind the choices: docs/decisions/0003 (lock) and 0004 (commit by
 * one word).
 */
#ifndef PYHUB_SYNC_H
#define PYHUB_SYNC_H

/* pthread_mutex_clocklock and the robust mutex are outside strict C11. */
#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE (g++ defines it by itself)"
#endif

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

/* A wait that a person may interrupt is cut into slices of this length. */
#define PHB_WAIT_SLICE_NS 50000000ll

/* --- Clocks -------------------------------------------------------------- */

/* For deadlines: never steps. */
static inline int64_t phb_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* For time stamps: nanoseconds since 1970-01-01 UTC; may step. */
static inline uint64_t phb_wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline struct timespec phb_timespec(int64_t ns)
{
    struct timespec spec;
    ns = ns > 0 ? ns : 0;
    spec.tv_sec = (time_t)(ns / 1000000000ll);
    spec.tv_nsec = (long)(ns % 1000000000ll);
    return spec;
}

/* --- The producers' lock ------------------------------------------------- */

/* Room for any libc's mutex; the real size is compared at attach. */
typedef union phb_mutex {
    pthread_mutex_t mutex;
    unsigned char reserved[128];
} phb_mutex;

PHB_ASSERT_SIZE(phb_mutex, 128);
PHB_STATIC_ASSERT(sizeof(pthread_mutex_t) <= 128, "no room for this libc's mutex");

/* Robust: the next locker learns of an owner's death. Error-checking: a
 * second lock by the same thread is refused instead of waiting for itself.
 * No priority inheritance: with it a garbage owner word aborts the locker. */
static inline int phb_mutex_init(phb_mutex *shared)
{
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (!error) {
        error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    }
    if (!error) {
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    if (!error) {
        error = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    }
    if (!error) {
        error = pthread_mutex_init(&shared->mutex, &attributes);
    }
    pthread_mutexattr_destroy(&attributes);
    errno = error;
    return error ? PHB_SYSTEM : PHB_OK;
}

static inline int phb_mutex_status(int error)
{
    switch (error) {
    case 0: return PHB_OK;
    case EOWNERDEAD: return PHB_RECOVERED;
    case ETIMEDOUT:
    case EBUSY: return PHB_TIMEOUT;
    case EDEADLK: return PHB_MISUSE;
    default: errno = error; return PHB_SYSTEM;
    }
}

static inline int phb_mutex_trylock(phb_mutex *shared)
{
    return phb_mutex_status(pthread_mutex_trylock(&shared->mutex));
}

/* Wait until `deadline_ns` (phb_monotonic_ns), at most one slice: then
 * PHB_INTERRUPTED, so that the caller can look at its signals.
 * PHB_RECOVERED: the caller owns the lock, must repair what it guards, and
 * then call phb_mutex_consistent. */
static inline int phb_mutex_lock(phb_mutex *shared, int64_t deadline_ns)
{
    int64_t slice = phb_monotonic_ns() + PHB_WAIT_SLICE_NS;
    int64_t until = deadline_ns < slice ? deadline_ns : slice;
    int status;
#if defined(__SANITIZE_THREAD__)
    /* gcc 12's ThreadSanitizer does not know clocklock and reports two races
     * that are not there. Drop this branch when it does. */
    struct timespec wall = phb_timespec((int64_t)phb_wall_ns() + until - phb_monotonic_ns());
    status = phb_mutex_status(pthread_mutex_timedlock(&shared->mutex, &wall));
#else
    struct timespec spec = phb_timespec(until);
    status = phb_mutex_status(
        pthread_mutex_clocklock(&shared->mutex, CLOCK_MONOTONIC, &spec));
#endif
    if (status == PHB_TIMEOUT && until < deadline_ns) {
        return PHB_INTERRUPTED;
    }
    return status;
}

static inline int phb_mutex_consistent(phb_mutex *shared)
{
    return phb_mutex_status(pthread_mutex_consistent(&shared->mutex));
}

static inline int phb_mutex_unlock(phb_mutex *shared)
{
    int error = pthread_mutex_unlock(&shared->mutex);
    return error == EPERM ? PHB_MISUSE : phb_mutex_status(error);
}

/* --- Copies that may race, legally --------------------------------------- */

/* One side of these copies is shared memory that another process may be
 * changing. The words of that side are relaxed atomics, so that the race is
 * defined by C11 (and silent under ThreadSanitizer); whether the bytes belong
 * together is decided afterwards, by a sequence word. `shared` is aligned to
 * 8 bytes; the private side may be unaligned. */
static inline void phb_copy_from_shared(void *private_, const void *shared, uint64_t size)
{
    unsigned char *to = (unsigned char *)private_;
    const uint64_t *from = (const uint64_t *)shared;
    /* One word at a time through a register: an array in between goes through
     * the stack and costs four times as much (benchmarks, 9 MB). */
#define PHB_COPY_WORD(i)                                            \
    do {                                                            \
        const uint64_t word = __atomic_load_n(from + (i), __ATOMIC_RELAXED); \
        memcpy(to + 8 * (i), &word, 8);                             \
    } while (0)
    for (; size >= 64; size -= 64, to += 64, from += 8) {
        PHB_COPY_WORD(0);
        PHB_COPY_WORD(1);
        PHB_COPY_WORD(2);
        PHB_COPY_WORD(3);
        PHB_COPY_WORD(4);
        PHB_COPY_WORD(5);
        PHB_COPY_WORD(6);
        PHB_COPY_WORD(7);
    }
    for (; size >= 8; size -= 8, to += 8, from += 1) {
        PHB_COPY_WORD(0);
    }
#undef PHB_COPY_WORD
    for (const unsigned char *rest = (const unsigned char *)from; size; size--) {
        *to++ = __atomic_load_n(rest++, __ATOMIC_RELAXED);
    }
}

static inline void phb_copy_to_shared(void *shared, const void *private_, uint64_t size)
{
    uint64_t *to = (uint64_t *)shared;
    const unsigned char *from = (const unsigned char *)private_;
#define PHB_COPY_WORD(i)                                      \
    do {                                                      \
        uint64_t word;                                        \
        memcpy(&word, from + 8 * (i), 8);                     \
        __atomic_store_n(to + (i), word, __ATOMIC_RELAXED);   \
    } while (0)
    for (; size >= 64; size -= 64, to += 8, from += 64) {
        PHB_COPY_WORD(0);
        PHB_COPY_WORD(1);
        PHB_COPY_WORD(2);
        PHB_COPY_WORD(3);
        PHB_COPY_WORD(4);
        PHB_COPY_WORD(5);
        PHB_COPY_WORD(6);
        PHB_COPY_WORD(7);
    }
    for (; size >= 8; size -= 8, to += 1, from += 8) {
        PHB_COPY_WORD(0);
    }
#undef PHB_COPY_WORD
    for (unsigned char *rest = (unsigned char *)to; size; size--) {
        __atomic_store_n(rest++, *from++, __ATOMIC_RELAXED);
    }
}

/* --- Waiting without a lock ---------------------------------------------- */

/* Sleep while *word is `seen`, at most `timeout_ns`; may also return early. Who
 * changes the word must call phb_futex_wake, if somebody may sleep. False: a
 * signal came. Works on memory that is mapped read-only. */
static inline int phb_futex_wait(const uint32_t *word, uint32_t seen, int64_t timeout_ns)
{
    struct timespec spec = phb_timespec(timeout_ns);
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &spec, NULL, 0) == 0 || errno != EINTR;
}

static inline void phb_futex_wake(const uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* The half of a counter that changes with every step: futexes have 32 bits. */
static inline const uint32_t *phb_low_half(const phb_u64 *word)
{
    return (const uint32_t *)&word->word + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

/* How a reader waits: it looks again and again for `spin_ns`, and then sleeps.
 * A SLEEPER SAYS what it has seen, and looks once more:
 *
 *   sleeper                                producer
 *     awaited = seen, if that is newer       commit = c + 1
 *     full fence                             full fence
 *     commit is still `seen`? sleep          awaited is c, or newer? wake all
 *
 * Whoever comes second sees the first, so no wake is missed. Newer: somebody has
 * seen c + 1 and sleeps already; whoever said c before may sleep still. Nobody
 * has to take the word back: it means nothing any more once commit has gone on,
 * also if its sleeper was killed. `awaited` NULL: this reader may not write. Then it
 * naps, 50 us to 1 ms long, and is woken early only if others sleep as well. */
typedef struct phb_waiting {
    int64_t spin_ns;
    phb_u64 *awaited;
} phb_waiting;

#define PHB_SPIN_FOREVER INT64_MAX
#define PHB_NAP_NS 50000ll
#define PHB_LONGEST_NAP_NS 1000000ll

static inline void phb_await(phb_u64 *awaited, uint64_t seen)
{
    uint64_t said = phb_load64(awaited);
    while ((int64_t)(seen - said) > 0 && !phb_swap64(awaited, &said, seen)) {
    }
}

/* Wait until *commit differs from `seen`, or until `deadline_ns`, at most one
 * slice: then PHB_INTERRUPTED, so that the caller can look at its signals. */
static inline int phb_wait_change(const phb_u64 *commit, uint64_t seen, int64_t deadline_ns,
                                  const phb_waiting *waiting)
{
    if (phb_load64_acquire(commit) != seen) {
        return PHB_OK;
    }
    const int64_t start = phb_monotonic_ns();
    const int64_t slice = start + PHB_WAIT_SLICE_NS;
    const int64_t end = deadline_ns < slice ? deadline_ns : slice;
    const int64_t spin_end = waiting->spin_ns < end - start ? start + waiting->spin_ns : end;
    int64_t now = start, nap = PHB_NAP_NS;
    while (now < spin_end) {
        for (int i = 0; i < 32; i++) { /* 1 to 2 us on the processors of today */
            if (phb_load64_acquire(commit) != seen) {
                return PHB_OK;
            }
            phb_relax();
        }
        now = phb_monotonic_ns();
    }
    while (now < end) {
        int64_t longest = end - now;
        if (waiting->awaited) {
            phb_await(waiting->awaited, seen);
            phb_fence_full(); /* partner: the fence in phb_datablock_wake */
        } else {
            longest = nap < longest ? nap : longest;
            nap = nap * 2 < PHB_LONGEST_NAP_NS ? nap * 2 : PHB_LONGEST_NAP_NS;
        }
        if (phb_load64_acquire(commit) != seen) {
            return PHB_OK;
        }
        const int was_quiet = phb_futex_wait(phb_low_half(commit), (uint32_t)seen, longest);
        if (phb_load64_acquire(commit) != seen) {
            return PHB_OK;
        }
        if (!was_quiet) {
            return PHB_INTERRUPTED;
        }
        now = phb_monotonic_ns();
    }
    return now < deadline_ns ? PHB_INTERRUPTED : PHB_TIMEOUT;
}

/* A full fence in every thread of the machine: what they stored before it is
 * visible to us, what we stored before it is visible to them. Takes some
 * milliseconds and spares the others a fence each time. False where the kernel
 * refuses it. */
static inline int phb_fence_everybody(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) == 0;
}

#endif
