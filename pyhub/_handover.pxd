from libc.stdint cimport uint32_t
from posix.unistd cimport pid_t


cdef class Bell:
    cdef readonly uint32_t n_strokes  # how often it was rung
    cdef readonly uint32_t n_waiting  # how many wait now; for tests

    cpdef void ring(self)
    cpdef bint wait(self, uint32_t seen, double timeout_s) except -1


cdef class Wake:
    cdef readonly int fd

    cpdef void wake(self)
    cpdef void quiet(self)
    cpdef void close(self)


cdef class Lock:
    cdef Bell _bell
    cdef unsigned long _holder
    cdef int _depth
    cdef pid_t _pid

    cdef bint try_take(self) noexcept  # also for who has it already: no
    cdef void give(self)
    cdef bint wait_for_change(self, double timeout_s) except -1  # as Bell.wait
