from libc.stdint cimport int64_t

cpdef double left_until(double deadline) noexcept

# For sleeps, of which each is bounded: then it is looked again.
cdef enum:
    LONGEST_NS = 3_600_000_000_000

cdef int64_t end_of(double timeout_s) noexcept  # when a wait ends, ns
cdef int64_t ns_until(int64_t end) noexcept  # 0: it is over
cdef int ms_until(int64_t end) noexcept  # for poll: not too short
