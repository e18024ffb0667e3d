# cython: language_level=3
"""A ring in shared memory without any safety: what a hand-over costs at least.

No lock, no sequence, no time stamp, no parameters, no check of anything: a
second producer destroys everything, a reader that dies stops the producer for
ever. It exists to be compared with.

    line 0        published: counts frames, written by the producer
    line 1        sleeping: readers that sleep, written by them
    line 2 + i    done: frames that reader i is done with
    from 4096 on  the slots
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

import mmap

import numpy as np

cdef extern from * nogil:
    """
    #include <linux/futex.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static inline int64_t floor_now(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    static inline void floor_pause(void)
    {
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ volatile("yield");
    #endif
    }

    /* Until *published is not `seen`; 0: not in time. */
    static inline int floor_spin(uint64_t *published, uint64_t seen, int64_t deadline)
    {
        for (;;) {
            for (int i = 0; i < 64; i++) {
                if (__atomic_load_n(published, __ATOMIC_ACQUIRE) != seen) {
                    return 1;
                }
                floor_pause();
            }
            if (floor_now() >= deadline) {
                return 0;
            }
        }
    }

    static inline int floor_sleep(uint64_t *published, uint64_t seen, uint32_t *sleeping,
                                  int64_t deadline)
    {
        while (__atomic_load_n(published, __ATOMIC_ACQUIRE) == seen) {
            int64_t left = deadline - floor_now();
            struct timespec spec = {left / 1000000000, left % 1000000000};
            if (left <= 0) {
                return 0;
            }
            __atomic_fetch_add(sleeping, 1, __ATOMIC_SEQ_CST);
            syscall(SYS_futex, published, FUTEX_WAIT, (uint32_t)seen, &spec, NULL, 0);
            __atomic_fetch_sub(sleeping, 1, __ATOMIC_SEQ_CST);
        }
        return 1;
    }

    /* The least that any of `n` readers is done with. */
    static inline uint64_t floor_done(const uint64_t *done, int n)
    {
        uint64_t least = UINT64_MAX;
        for (int i = 0; i < n; i++) {
            uint64_t one = __atomic_load_n(done + 8 * i, __ATOMIC_ACQUIRE);
            least = one < least ? one : least;
        }
        return least;
    }

    static inline void floor_give_back(uint64_t *done, uint64_t n)
    {
        __atomic_store_n(done, n, __ATOMIC_RELEASE);
    }

    static inline void floor_publish(uint64_t *published, uint64_t n, uint32_t *sleeping)
    {
        __atomic_store_n(published, n, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(sleeping, __ATOMIC_SEQ_CST)) {
            syscall(SYS_futex, published, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
        }
    }
    """
    int64_t floor_now()
    int floor_spin(uint64_t *published, uint64_t seen, int64_t deadline)
    int floor_sleep(uint64_t *published, uint64_t seen, uint32_t *sleeping, int64_t deadline)
    uint64_t floor_done(const uint64_t *done, int n)
    void floor_give_back(uint64_t *done, uint64_t n)
    void floor_pause()
    void floor_publish(uint64_t *published, uint64_t n, uint32_t *sleeping)


cdef class Ring:
    """One end of the ring: the producer's, or a reader's.

    Parameters
    ----------
    readers
        How many there are; the producer waits for the slowest.
    reader
        Which of them this is; -1: the producer.
    sleeps
        Whether a reader sleeps on a futex until the next frame; else it spins.
    keeps_arrays
        Whether the array of a slot is made once; else anew for each frame.
    """

    cdef object pages
    cdef list views
    cdef unsigned char[::1] bytes
    cdef uint64_t *published
    cdef uint32_t *sleeping
    cdef uint64_t *done
    cdef uint64_t n_slots, n_words, stride
    cdef uint64_t number  # of the last frame written, or read
    cdef uint64_t limit   # the producer may go on to this number without asking
    cdef int readers, reader
    cdef bint sleeps, keeps_arrays

    def __init__(self, int descriptor, uint64_t n_slots, uint64_t n_bytes, *, int readers=1,
                 int reader=-1, bint sleeps=False, bint keeps_arrays=False):
        self.stride = (n_bytes + 63) // 64 * 64
        self.pages = mmap.mmap(descriptor, 4096 + n_slots * self.stride)
        self.bytes = self.pages
        self.published = <uint64_t *>&self.bytes[0]
        self.sleeping = <uint32_t *>&self.bytes[64]
        self.done = <uint64_t *>&self.bytes[128]
        self.n_slots = n_slots
        self.n_words = n_bytes // 8
        self.readers = readers
        self.reader = reader
        self.sleeps = sleeps
        self.keeps_arrays = keeps_arrays
        self.views = [self._view(i) for i in range(n_slots)]
        self.number = self.published[0] if reader < 0 else self.done[8 * reader]

    def _view(self, uint64_t slot):
        return np.frombuffer(self.pages, np.uint64, self.n_words, 4096 + slot * self.stride)

    def begin(self):
        """The next slot, to fill, as soon as all readers are done with it."""
        cdef uint64_t slot = (self.number + 1) % self.n_slots
        if self.number >= self.limit:
            with nogil:
                while True:
                    self.limit = floor_done(self.done, self.readers) + self.n_slots
                    if self.number < self.limit:
                        break
                    floor_pause()
        return self.views[slot] if self.keeps_arrays else self._view(slot)

    def end(self):
        """Publish it."""
        self.number += 1
        floor_publish(self.published, self.number, self.sleeping)

    def next(self, double timeout_s):
        """The next frame where it lies; None: not in time. The one before is given back."""
        cdef uint64_t slot
        cdef int came
        cdef int64_t deadline
        floor_give_back(self.done + 8 * self.reader, self.number)
        if self.published[0] == self.number:
            with nogil:
                deadline = floor_now() + <int64_t>(timeout_s * 1e9)
                if self.sleeps:
                    came = floor_sleep(self.published, self.number, self.sleeping, deadline)
                else:
                    came = floor_spin(self.published, self.number, deadline)
            if not came:
                return None
        self.number += 1
        slot = self.number % self.n_slots
        return self.views[slot] if self.keeps_arrays else self._view(slot)
