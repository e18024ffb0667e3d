from libc.stdint cimport int64_t, uint64_t

from pyhub._abi cimport phb_cursor, phb_datablock, phb_frame
from pyhub._core cimport Segment


cdef class Cursor:
    cdef phb_cursor c
    cdef uint64_t flex_version


cdef class DataBlock:
    cdef phb_datablock db
    cdef readonly Segment segment
    cdef readonly bint is_owner
    cdef int generation
    cdef uint64_t lease
    cdef bytes leases
    cdef Segment _use(self)
    cdef DataBlock _bind(self, Segment segment, str name, str path)
    cdef int _wait_for_lock(self, int64_t deadline) except -1
    cdef bint _claim(self) except -1
    cdef object _misuse(self)


# Where a flex object is copied to on its way: the stack, or memory of its own.
cdef enum:
    STACK_BYTES = 8192

cdef struct FlexBuffer:
    unsigned char *at
    unsigned char stack[STACK_BYTES]

cdef int open_buffer(FlexBuffer *buffer, uint64_t capacity) except -1
cdef void close_buffer(FlexBuffer *buffer) noexcept nogil
cdef tuple given(const phb_frame *frame, const unsigned char *flex, Cursor cursor)
cdef tuple not_given(int status)
