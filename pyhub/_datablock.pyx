# cython: language_level=3, embedsignature=False
"""The DataBlock of one process: include/pyhub/datablock.h, called from Python."""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from pyhub._abi cimport (
    PHB_BAD_ABI,
    PHB_DTYPE_BYTES,
    PHB_FLEX_JSON,
    PHB_FLEX_MSGPACK,
    PHB_MAX_NDIM,
    PHB_MAX_READERS,
    PHB_MAX_SLOTS,
    PHB_OK,
    PHB_RECOVERED,
    PHB_TIMEOUT,
    PHB_ZONE_FLEX,
    PHB_ZONE_STRUCTURED,
    phb_datablock_abort,
    phb_datablock_attach,
    phb_datablock_close,
    phb_datablock_create,
    phb_datablock_is_mine,
    phb_datablock_recover,
    phb_datablock_snapshot,
    phb_load32,
    phb_load32_acquire,
    phb_load64,
    phb_load64_acquire,
    phb_waiting,
    phb_readers_reap,
    phb_segment_detach,
    phb_segment_join,
    phb_segment_leave,
    phb_snapshot,
    phb_wait_change,
)
from pyhub._core cimport Segment, deadline_after, error_for, fork_generation

import os

import numpy as np

from pyhub import errors
from pyhub._core import ABI_VERSION as _ABI_VERSION

cdef extern from "errno.h" nogil:
    int errno

ZONE_FLEX = PHB_ZONE_FLEX
ZONE_STRUCTURED = PHB_ZONE_STRUCTURED
FLEX_MSGPACK = PHB_FLEX_MSGPACK
FLEX_JSON = PHB_FLEX_JSON
MAX_SLOTS = PHB_MAX_SLOTS
MAX_READERS = PHB_MAX_READERS

cdef object _ALL = ...


cdef int open_buffer(FlexBuffer *buffer, uint64_t capacity) except -1:
    buffer.at = buffer.stack
    if capacity > STACK_BYTES:
        buffer.at = <unsigned char *>PyMem_RawMalloc(capacity)
        if buffer.at == NULL:
            raise MemoryError()
    return 0


cdef void close_buffer(FlexBuffer *buffer) noexcept nogil:
    if buffer.at != buffer.stack:
        PyMem_RawFree(buffer.at)


@cython.final
@cython.auto_pickle(False)
cdef class DataBlock:
    """One process's handle on a DataBlock. Channels wrap it: pyhub/datablock.

    Threads may share a handle: the lock belongs to the thread that began.
    """

    def __cinit__(self):
        self.db.readers.segment.fd = -1

    def __init__(self):
        raise TypeError("use DataBlock.create or DataBlock.attach")

    def __dealloc__(self):
        phb_segment_detach(&self.db.readers.segment)

    @staticmethod
    def create(path, str name, leases, uint64_t lease, *, uint64_t flex_zone_capacity,
               uint64_t structured_buffer_capacity, uint32_t n_slots, str dtype,
               uint64_t itemsize, tuple shape, uint32_t n_places, uint64_t patience_ns):
        """Make a segment and give it the name `path`."""
        cdef DataBlock self = DataBlock.__new__(DataBlock)
        cdef Segment segment = Segment.__new__(Segment)
        cdef bytes text = dtype.encode()
        if len(text) >= PHB_DTYPE_BYTES or len(shape) > PHB_MAX_NDIM:
            raise errors.LayoutError(f"dtype {dtype!r} or shape {shape!r} is too long")
        self.db.constants.flex_zone_capacity = flex_zone_capacity
        self.db.constants.structured_buffer_capacity = structured_buffer_capacity
        self.db.constants.n_slots = n_slots
        self.db.constants.itemsize = itemsize
        self.db.constants.ndim = len(shape)
        for i, n in enumerate(shape):
            self.db.constants.shape[i] = n
        memcpy(self.db.constants.dtype, <const char *>text, len(text))
        cdef bytes c_path = os.fsencode(path)
        cdef bytes c_directory = os.path.dirname(c_path)
        cdef bytes c_name = name.encode()
        cdef const char *path_chars = c_path
        cdef const char *directory_chars = c_directory
        cdef const char *name_chars = c_name
        cdef int status, error
        self.leases = os.fsencode(leases)
        self.lease = lease
        cdef const char *leases_chars = self.leases
        with nogil:
            status = phb_datablock_create(&self.db, &segment.c, directory_chars, path_chars,
                                          name_chars, n_places, patience_ns, leases_chars, lease)
            error = errno
        if status != PHB_OK:
            raise error_for(status, error, name, os.fsdecode(path))
        self.is_owner = True
        return self._bind(segment, name, os.fsdecode(path))

    @staticmethod
    def attach(path, str name, uint32_t owner_uid, leases=None):
        """Map the segment that `path` names: read-only, or, with `leases`, as a producer."""
        cdef DataBlock self = DataBlock.__new__(DataBlock)
        cdef Segment segment = Segment.__new__(Segment)
        cdef const char *leases_chars = NULL
        if leases is not None:
            self.leases = os.fsencode(leases)
            leases_chars = self.leases
        cdef int status = phb_datablock_attach(&self.db, &segment.c, os.fsencode(path),
                                               owner_uid, leases_chars)
        cdef int error = errno
        if status == PHB_BAD_ABI:
            raise errors.AbiMismatch(
                f"segment {name!r} has layout {self.db.constants.segment.abi_version}, this "
                f"pyhub reads layout {_ABI_VERSION} (or libc and byte order differ).\n"
                "  Producer and consumer run different versions of pyhub: bring both to the "
                "newer one (conda update pyhub)."
            )
        if status != PHB_OK:
            raise error_for(status, error, name, os.fsdecode(path))
        return self._bind(segment, name, os.fsdecode(path))

    cdef DataBlock _bind(self, Segment segment, str name, str path):
        segment.name = name
        segment.path = path
        self.segment = segment
        self.generation = fork_generation()
        return self

    cdef Segment _use(self):
        """The segment, held by the caller for as long as it runs without the GIL."""
        if self.generation != fork_generation():
            raise errors.ForkedHandle(
                f"channel {self.segment.name!r} was opened before a fork, and is used in the "
                "child.\n  Open it again in the child, or start processes with the spawn method."
            )
        return self.segment

    # --- Constants ---

    @property
    def n_slots(self):
        return self.db.constants.n_slots

    @property
    def flex_zone_capacity(self):
        return self.db.constants.flex_zone_capacity

    @property
    def structured_buffer_capacity(self):
        return self.db.constants.structured_buffer_capacity

    @property
    def dtype(self):
        return self.db.constants.dtype[:strlen(self.db.constants.dtype)].decode("utf-8", "replace")

    @property
    def shape(self):
        return tuple([self.db.constants.shape[i] for i in range(self.db.constants.ndim)])

    @property
    def itemsize(self):
        return self.db.constants.itemsize

    @property
    def created_ns(self):
        return self.db.constants.segment.created_ns

    @property
    def creator_pid(self):
        return self.db.constants.segment.creator_pid

    @property
    def segment_id(self):
        return PyBytes_FromStringAndSize(<char *>self.db.constants.segment.segment_id, 16)

    def slot_offset(self, uint32_t slot):
        """Where slot `slot` lies in the segment, bytes."""
        return (self.db.constants.structured_buffer_offset
                + slot * self.db.constants.structured_buffer_stride)

    def flex_offset(self, uint32_t entry):
        """Where flex entry `entry` lies in the segment, bytes."""
        return self.db.constants.flex_zone_offset + entry * self.db.constants.flex_zone_stride

    # --- State, without a lock ---

    @property
    def commit(self):
        """The publish counter: the word to wait on."""
        return phb_load64_acquire(&self.db.control.commit)

    @property
    def is_writing(self):
        return bool(phb_load32_acquire(&self.db.control.is_writing))

    @property
    def writer_pid(self):
        return phb_load32(&self.db.control.writer_pid)

    @property
    def owner_lease(self):
        """The lease of the process that keeps the channel, beside its guests."""
        return phb_load64_acquire(&self.segment.c.live.owner_lease)

    @property
    def n_recovered(self):
        return phb_load64(&self.db.control.n_recovered)

    @property
    def n_aborted(self):
        return phb_load64(&self.db.control.n_aborted)

    @property
    def n_dropped(self):
        return phb_load64(&self.db.control.n_dropped)

    def snapshot(self):
        """What is newest, as of one publish: see the fields of datablock.Header."""
        cdef phb_snapshot now
        phb_datablock_snapshot(&self.db, &now)
        return (now.commit, now.flex_zone_size, now.flex_zone_version,
                now.structured_buffer_size, now.structured_buffer_version,
                now.timestamp, now.n_filled, now.zones)

    def wait(self, uint64_t seen, timeout_s):
        """Wait, in naps, until `commit` is no longer `seen`; False: not in time, or closed."""
        cdef int64_t deadline = deadline_after(timeout_s)
        cdef Segment segment = self._use()
        cdef phb_waiting naps
        cdef int status
        naps.spin_ns = 0
        naps.awaited = NULL
        while True:
            with nogil:
                status = phb_wait_change(&self.db.control.commit, seen, deadline, &naps)
            PyErr_CheckSignals()
            if status == PHB_OK:
                return True
            if status == PHB_TIMEOUT or phb_load32_acquire(&segment.c.live.is_closed):
                return False

    # --- Frames where they lie ---

    def describe(self, dtype, tuple shape not None):
        """Say what its frames are, as arrays; before any is looked at."""
        self.dtype_ = dtype
        self.full_shape = shape
        self.views = [None] * self.db.constants.n_slots

    cdef object view(self, uint64_t slot, uint64_t size):
        """The frame of `size` bytes in slot `slot`; writable if a producer mapped it.

        An array of the caller's own, who may change its shape: a view of one that
        is made once for each slot. It keeps the mapping alive.
        """
        array = self.views[slot]
        if array is None:
            array = self.views[slot] = np.ndarray(self.full_shape, self.dtype_, self.segment,
                                                  self.slot_offset(slot))
        if size == self.db.constants.structured_buffer_capacity:
            return array[_ALL]
        return self.first_rows(array, size)

    cdef object first_rows(self, array, uint64_t size):
        """What `size` valid bytes are of a whole frame `array`."""
        if size == self.db.constants.structured_buffer_capacity or self.db.constants.ndim == 0:
            return array
        return array[: size // (self.db.constants.structured_buffer_capacity
                                // self.db.constants.shape[0])]

    # --- Coming and going, as a producer ---

    def join(self, uint64_t lease):
        """Become a producer that keeps the channel alive; its owner, if that one died."""
        self.lease = lease
        if phb_segment_join(&self.segment.c, os.fsencode(self.segment.path), self.leases, lease):
            self.is_owner = True

    cpdef int abort(self) except -1:
        """Give this thread's open publication up, if there is one, and let the lock go."""
        if self.generation == fork_generation() and phb_datablock_is_mine(&self.db):
            phb_datablock_abort(&self.db)
            Py_DECREF(self.segment)  # which Writer._begin held
        return 0

    def leave(self):
        """Close the channel as its owner, or leave it as a guest."""
        if self.is_owner:
            phb_datablock_close(&self.db, &self.segment.c, os.fsencode(self.segment.path))
        else:
            phb_segment_leave(self.segment.c.live, self.lease)

    def recover(self):
        """Make good what the dead left: (publications rolled back, readers' places emptied).

        None instead of the first number: a living producer is publishing.
        """
        self._use()
        cdef int status = phb_datablock_recover(&self.db)
        cdef uint32_t n_readers = phb_readers_reap(&self.db.readers)
        if status == PHB_TIMEOUT:
            return None, n_readers
        if status != PHB_OK and status != PHB_RECOVERED:
            raise error_for(status, errno, self.segment.name, self.segment.path)
        return int(status == PHB_RECOVERED), n_readers
