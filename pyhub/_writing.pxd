from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhub._datablock cimport DataBlock


cdef class Writer:
    cdef readonly DataBlock _block
    cdef public object _notify
    cdef public bint _is_closed
    cdef readonly bint _is_dropped
    cdef object scratch
    cdef int _begin(self, timeout_s) except -1
    cdef int _wait_for_lock(self, int64_t deadline) except -1
    cdef bint _claim(self) except -1
    cdef object _take_data(self)
    cdef bint _copy_data(self, array) except -1
    cdef bint _is_whole(self, Py_buffer *data) noexcept
    cdef bint _copy_bytes(self, const Py_buffer *data) except -1
    cdef uint64_t _copy_flex(self, bytes packed) except? 0
    cdef bint _end(self, uint32_t zones, uint64_t size, uint64_t flex_size, int encoding,
                   frame_id, uint64_t timestamp_ns) except -1
    cdef object _misuse(self)
