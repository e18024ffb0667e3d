from libc.stdint cimport int64_t, uint64_t

from pyhub._abi cimport phb_cursor, phb_frame, phb_waiting
from pyhub._datablock cimport DataBlock


cdef class FrameRecord:
    cdef public object data
    cdef readonly uint64_t frame_id
    cdef readonly uint64_t timestamp_ns
    cdef readonly uint64_t version
    cdef readonly uint64_t flex_version
    cdef public uint64_t n_lost
    cdef public bint has_new_data
    cdef public bint has_new_flex
    cdef public bint is_restart
    cdef readonly int encoding
    cdef readonly bytes packed
    cdef public object _flex
    cdef public object _release
    cdef DataBlock block
    cdef uint64_t slot
    cdef uint64_t position


cdef class Cursor:
    cdef phb_cursor c
    cdef uint64_t flex_version
    cdef readonly DataBlock block
    cdef readonly uint64_t n_read
    cdef readonly uint64_t n_lost
    cdef bint is_restart
    cdef bint waits
    cdef phb_waiting waiting
    cdef int64_t began_ns
    cdef object table
    cdef uint64_t done_at  # there was nothing more for it as of this commit
    cdef bint has_looked   # ... which is only then one
    cdef int _take(self, bint in_order, void *data, void *flex, phb_frame *frame) noexcept nogil
    cdef bint _has_news(self, bint in_order, uint64_t *commit) noexcept
    cdef bint _wait(self, uint64_t seen, timeout_s, int64_t *deadline) except -1
    cdef int _check(self, int status) except -1
    cdef FrameRecord given(self, FrameRecord record, const phb_frame *frame,
                           const unsigned char *flex, data)


# An object of class `kind`, as type.__call__ begins to make it, and no __init__.
cdef FrameRecord make(type kind)
