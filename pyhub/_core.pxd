from libc.stdint cimport int64_t

from pyhub._abi cimport phb_segment


cdef class Segment:
    cdef phb_segment c
    cdef readonly str name
    cdef readonly str path


cdef int fork_generation() noexcept nogil
cdef int64_t deadline_after(object timeout_s) except? -1
cdef object error_for(int status, int error, str name, str path)
