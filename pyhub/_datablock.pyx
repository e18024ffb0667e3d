# cython: language_level=3, embedsignature=False
"""The DataBlock of one process: include/pyhub/datablock.h, called from Python."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from pyhub._abi cimport (
    PHB_BAD_ABI,
    PHB_BUSY,
    PHB_CAPACITY,
    PHB_DTYPE_BYTES,
    PHB_EMPTY,
    PHB_FLEX_JSON,
    PHB_FLEX_MSGPACK,
    PHB_INTERRUPTED,
    PHB_MAX_NDIM,
    PHB_MAX_READERS,
    PHB_MAX_SLOTS,
    PHB_MISUSE,
    PHB_OK,
    PHB_OVERRUN,
    PHB_RECOVERED,
    PHB_TIMEOUT,
    PHB_ZONE_FLEX,
    PHB_ZONE_STRUCTURED,
    phb_copy_to_shared,
    phb_cursor_n_lost,
    phb_cursor_pass,
    phb_cursor_start,
    phb_datablock_abort,
    phb_datablock_attach,
    phb_datablock_begin,
    phb_datablock_claim,
    phb_datablock_close,
    phb_datablock_create,
    phb_datablock_data,
    phb_datablock_drop,
    phb_datablock_end,
    phb_datablock_flex,
    phb_datablock_is_mine,
    phb_datablock_is_valid,
    phb_datablock_read,
    phb_datablock_read_next,
    phb_datablock_recover,
    phb_datablock_snapshot,
    phb_datablock_try_begin,
    phb_frame,
    phb_load32,
    phb_load32_acquire,
    phb_load64,
    phb_load64_acquire,
    phb_readers_reap,
    phb_segment_detach,
    phb_segment_join,
    phb_segment_leave,
    phb_snapshot,
    phb_update,
    phb_wait_change,
)
from pyhub._core cimport Segment, deadline_after, error_for, fork_generation

import os

from pyhub import errors
from pyhub._core import ABI_VERSION as _ABI_VERSION
from pyhub.process import process_state

cdef extern from "errno.h" nogil:
    int errno

ZONE_FLEX = PHB_ZONE_FLEX
ZONE_STRUCTURED = PHB_ZONE_STRUCTURED
FLEX_MSGPACK = PHB_FLEX_MSGPACK
FLEX_JSON = PHB_FLEX_JSON
MAX_SLOTS = PHB_MAX_SLOTS
MAX_READERS = PHB_MAX_READERS

# What `read` answers beside a frame.
EMPTY = PHB_EMPTY
BUSY = PHB_BUSY
OVERRUN = PHB_OVERRUN

# A copy of fewer bytes takes less time than letting the GIL go and getting it back.
cdef enum:
    NOGIL_BYTES = 32768


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


cdef tuple given(const phb_frame *frame, const unsigned char *flex, Cursor cursor):
    """What `read` returns for a frame; the cursor goes on to it."""
    cdef uint64_t n_lost = 0
    cdef bint is_new = True, is_new_flex = True
    if cursor is not None:
        n_lost = phb_cursor_n_lost(&cursor.c, frame)
        is_new = frame.has_data and frame.position != cursor.c.position
        is_new_flex = frame.flex_version != cursor.flex_version
        phb_cursor_pass(&cursor.c, frame)
        cursor.flex_version = frame.flex_version
    return (0, frame.version, frame.frame_id, frame.timestamp_ns,
            frame.size if frame.has_data else None, frame.slot, frame.position,
            frame.flex_version, frame.flex_encoding,
            PyBytes_FromStringAndSize(<const char *>flex, frame.flex_size)
            if frame.has_flex else None,
            n_lost, is_new, is_new_flex)


cdef tuple not_given(int status):
    return (status, 0, 0, 0, None, 0, 0, 0, 0, None, 0, False, False)


@cython.final
@cython.auto_pickle(False)
cdef class Cursor:
    """The last frame, and the last parameters, that a reader was given.

    Numbers are those of the channel, in 64 bits that may wrap.
    """

    @property
    def position(self):
        """Of the frame, in the order of the ring."""
        return self.c.position


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

    # --- Reading ---

    def wait(self, uint64_t seen, timeout_s):
        """Wait until `commit` is no longer `seen`; False at the deadline or once closed."""
        cdef int64_t deadline = deadline_after(timeout_s)
        cdef Segment segment = self._use()
        cdef int status
        while True:
            with nogil:
                status = phb_wait_change(&self.db.control.commit, seen, deadline)
            PyErr_CheckSignals()
            if status == PHB_OK:
                return True
            if status == PHB_TIMEOUT or phb_load32_acquire(&segment.c.live.is_closed):
                return False

    def start(self, bint from_first):
        """A cursor before the newest frame, or before the first that there ever was."""
        cdef Cursor cursor = Cursor.__new__(Cursor)
        cdef phb_snapshot now
        if not from_first:
            phb_datablock_snapshot(&self.db, &now)
            cursor.c = phb_cursor_start(&now)
        return cursor

    def has_news(self, Cursor cursor not None):
        """Whether there is a frame, or parameters, newer than the cursor's."""
        cdef phb_snapshot now
        phb_datablock_snapshot(&self.db, &now)
        return (now.position != cursor.c.position
                or now.flex_zone_version != cursor.flex_version)

    def lag(self, Cursor cursor not None):
        """Frames that were published after the cursor's."""
        cdef phb_snapshot now
        phb_datablock_snapshot(&self.db, &now)
        return <uint64_t>(now.structured_buffer_version - cursor.c.version)

    def read(self, Cursor cursor, bint in_order, out):
        """Copy the newest frame, or the one after the cursor, into `out` (None: leave it).

        Returns (status, version, frame_id, timestamp_ns, size, slot, position,
        flex_version, encoding, flex, n_lost, has_new_data, has_new_flex); the
        last three compare with the cursor, which goes on to the frame. `status`
        is 0, EMPTY, BUSY or OVERRUN. `size` None: there is no frame, or it
        cannot be looked at now; `flex` None: there are no parameters.
        """
        cdef Segment segment = self._use()
        cdef FlexBuffer flex
        cdef phb_frame frame
        cdef Py_buffer data
        cdef void *to = NULL
        cdef bint has_out = out is not None
        cdef int status
        if has_out:
            PyObject_GetBuffer(out, &data, PyBUF_SIMPLE)
            to = data.buf
        try:
            if has_out and (<uint64_t>data.len < self.db.constants.structured_buffer_capacity
                            or data.readonly):
                raise errors.CapacityError(
                    f"out has {data.len} writable bytes; a frame of channel "
                    f"{segment.name!r} takes {self.db.constants.structured_buffer_capacity}.\n"
                    "  Use an array of the channel's dtype and full shape."
                )
            open_buffer(&flex, self.db.constants.flex_zone_capacity)
            try:
                if has_out and self.db.constants.structured_buffer_capacity >= NOGIL_BYTES:
                    with nogil:
                        status = (phb_datablock_read_next(&self.db, &cursor.c, to, flex.at, &frame)
                                  if in_order
                                  else phb_datablock_read(&self.db, NULL, to, flex.at, &frame))
                elif in_order:
                    status = phb_datablock_read_next(&self.db, &cursor.c, to, flex.at, &frame)
                else:
                    status = phb_datablock_read(&self.db, NULL, to, flex.at, &frame)
                if status == PHB_OK:
                    return given(&frame, flex.at, cursor)
            finally:
                close_buffer(&flex)
            if status == PHB_EMPTY or status == PHB_BUSY or status == PHB_OVERRUN:
                return not_given(status)
            raise error_for(status, errno, segment.name, segment.path)
        finally:
            if has_out:
                PyBuffer_Release(&data)

    def is_valid(self, uint64_t slot, uint64_t position):
        """Whether slot `slot` still holds the frame of `position`, whole."""
        cdef phb_frame frame
        frame.has_data = 1
        frame.slot = slot
        frame.position = position
        return bool(phb_datablock_is_valid(&self.db, &frame))

    # --- Writing ---

    def join(self, uint64_t lease):
        """Become a producer that keeps the channel alive; its owner, if that one died."""
        self.lease = lease
        if phb_segment_join(&self.segment.c, os.fsencode(self.segment.path), self.leases, lease):
            self.is_owner = True

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

    def begin(self, timeout_s):
        """Take the lock and open a publication; True if its last owner died in it."""
        cdef Segment segment = self._use()
        # Nobody else's: then no clock is read and the GIL is kept.
        cdef int status = phb_datablock_try_begin(&self.db)
        if status == PHB_TIMEOUT:
            status = self._wait_for_lock(deadline_after(timeout_s))
        if status == PHB_OK or status == PHB_RECOVERED:
            # Mapped until the lock is let go, even if the handle is forgotten
            # in between: the lock is on this thread's list of robust locks.
            Py_INCREF(segment)
            return status == PHB_RECOVERED
        if status == PHB_TIMEOUT:
            raise _writer_stalled(segment.name, phb_load32(&self.db.control.writer_pid), timeout_s)
        raise error_for(status, errno, segment.name, segment.path)

    cdef int _wait_for_lock(self, int64_t deadline) except -1:
        cdef int status = PHB_INTERRUPTED
        while status == PHB_INTERRUPTED:
            with nogil:
                status = phb_datablock_begin(&self.db, deadline)
            if status == PHB_OK or status == PHB_RECOVERED:
                return status
            PyErr_CheckSignals()
        return status

    cdef bint _claim(self) except -1:
        """Ask the admitted readers for a slot; False if they keep all of them."""
        cdef int status = PHB_INTERRUPTED
        while status == PHB_INTERRUPTED:
            with nogil:
                status = phb_datablock_claim(&self.db)
            PyErr_CheckSignals()
        if status == PHB_MISUSE:
            raise self._misuse()
        return status == PHB_OK

    def take_data(self):
        """Open the next slot for writing; its index, or None: readers keep every slot."""
        self._use()
        if self.db.gate and not self._claim():
            return None
        if phb_datablock_data(&self.db) == NULL:
            raise self._misuse()
        return self.db.slot

    def take_flex(self):
        """Open the free flex entry for writing; its index."""
        self._use()
        if phb_datablock_flex(&self.db) == NULL:
            raise self._misuse()
        return self.db.entry

    def write_data(self, source):
        """Copy the contiguous buffer `source` into the next slot; False as in `take_data`."""
        cdef Segment segment = self._use()
        cdef Py_buffer data
        cdef void *slot
        PyObject_GetBuffer(source, &data, PyBUF_SIMPLE)
        try:
            if <uint64_t>data.len > self.db.constants.structured_buffer_capacity:
                raise errors.CapacityError(
                    f"the frame takes {data.len} bytes, channel {segment.name!r} has room for "
                    f"{self.db.constants.structured_buffer_capacity}.\n"
                    "  Create the channel with the largest shape that will come."
                )
            if self.db.gate and not self._claim():
                return False
            slot = phb_datablock_data(&self.db)
            if slot == NULL:
                raise self._misuse()
            if <uint64_t>data.len >= NOGIL_BYTES:
                with nogil:
                    phb_copy_to_shared(slot, data.buf, data.len)
            else:
                phb_copy_to_shared(slot, data.buf, data.len)
            return True
        finally:
            PyBuffer_Release(&data)

    def write_flex(self, bytes packed not None):
        """Copy `packed` into the free flex entry; its bytes."""
        cdef Segment segment = self._use()
        cdef Py_ssize_t size = len(packed)
        cdef void *entry
        if <uint64_t>size > self.db.constants.flex_zone_capacity:
            raise errors.CapacityError(
                f"the flex object takes {size} bytes, the flex zone of channel "
                f"{segment.name!r} has room for {self.db.constants.flex_zone_capacity}.\n"
                "  Publish less, or create the channel with a larger flexible_zone_size."
            )
        entry = phb_datablock_flex(&self.db)
        if entry == NULL:
            raise self._misuse()
        phb_copy_to_shared(entry, <const char *>packed, size)
        return size

    def end(self, uint32_t zones, uint64_t structured_size, uint64_t flex_size,
            uint32_t encoding, frame_id, uint64_t timestamp_ns):
        """Publish `zones` and let the lock go.

        Returns (commit, flex_zone_version, structured_buffer_version, n_dropped).
        """
        cdef Segment segment = self._use()
        cdef uint64_t number = 0
        cdef phb_update update
        cdef phb_snapshot published
        cdef int status
        update.zones = zones
        update.flex_encoding = encoding
        update.flex_size = flex_size
        update.structured_size = structured_size
        update.frame_id = NULL
        update.timestamp_ns = timestamp_ns
        if frame_id is not None:
            number = frame_id
            update.frame_id = &number
        status = phb_datablock_end(&self.db, &update, &published)
        if status == PHB_OK:
            Py_DECREF(segment)
            return (published.commit, published.flex_zone_version,
                    published.structured_buffer_version, published.n_dropped)
        if status == PHB_MISUSE:
            raise self._misuse()
        if status == PHB_CAPACITY:
            raise errors.CapacityError(
                f"channel {segment.name!r}: end_publish names {structured_size} bytes of "
                f"{self.db.constants.structured_buffer_capacity} and {flex_size} bytes of flex "
                f"of {self.db.constants.flex_zone_capacity}.\n  Name the bytes that are valid."
            )
        raise error_for(status, errno, segment.name, segment.path)

    def drop(self):
        """Count the frame as one for which readers left no slot, and let the lock go."""
        cdef Segment segment = self._use()
        if phb_datablock_drop(&self.db) != PHB_OK:
            raise self._misuse()
        Py_DECREF(segment)

    def abort(self):
        """Publish nothing and let the lock go; False if nothing was open."""
        if self.generation != fork_generation() or not phb_datablock_is_mine(&self.db):
            return False
        phb_datablock_abort(&self.db)
        Py_DECREF(self.segment)
        return True

    @property
    def is_open(self):
        """Whether this thread has a publication open."""
        return bool(phb_datablock_is_mine(&self.db))

    cdef object _misuse(self):
        return error_for(PHB_MISUSE, 0, self.segment.name, self.segment.path)


cdef object _writer_stalled(str name, uint32_t pid, timeout_s):
    """The error for a lock that was not let go in time, with its holder's state."""
    state = process_state(pid)
    return errors.WriterStalled(
        f"channel {name!r}: another producer (pid {pid}, {state}) holds the lock since more "
        f"than {timeout_s} s.\n"
        f"  It fills a frame, or waits for a reader. If stopped, let it go on "
        f"(kill -CONT {pid}),\n"
        f"  or end it (kill {pid}): what it had not published is rolled back.\n"
        f"  Its readers: pyhub info {name}"
    )
