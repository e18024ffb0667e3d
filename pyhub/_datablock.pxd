from libc.stdint cimport int64_t, uint64_t

from pyhub._abi cimport phb_datablock
from pyhub._core cimport Segment


cdef class DataBlock:
    cdef phb_datablock db
    cdef readonly Segment segment
    cdef readonly bint is_owner
    cdef int generation
    cdef uint64_t lease
    cdef bytes leases
    cdef list views
    cdef tuple full_shape
    cdef object dtype_
    cdef Segment _use(self)
    cdef DataBlock _bind(self, Segment segment, str name, str path)
    cpdef int abort(self) except -1
    cdef object view(self, uint64_t slot, uint64_t size)
    cdef object first_rows(self, array, uint64_t size)


# Where a flex object is copied to on its way: the stack, or memory of its own.
cdef enum:
    STACK_BYTES = 8192
    # A copy of fewer bytes takes less time than letting the GIL go and getting it back.
    NOGIL_BYTES = 32768

cdef struct FlexBuffer:
    unsigned char *at
    unsigned char stack[STACK_BYTES]

cdef int open_buffer(FlexBuffer *buffer, uint64_t capacity) except -1
cdef void close_buffer(FlexBuffer *buffer) noexcept nogil
