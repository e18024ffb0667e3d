# cython: language_level=3, embedsignature=False
"""How a reader is given frames: include/pyhub/datablock_read.h, called from Python."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyTypeObject
from libc.stdint cimport int64_t, uint64_t

from pyhub._abi cimport (
    PHB_BUSY,
    PHB_EMPTY,
    PHB_OK,
    PHB_OVERRUN,
    PHB_SPIN_FOREVER,
    phb_cursor_n_lost,
    phb_cursor_pass,
    phb_cursor_start,
    phb_datablock,
    phb_datablock_is_valid,
    phb_datablock_read,
    phb_datablock_read_following,
    phb_datablock_read_next,
    phb_datablock_snapshot,
    phb_frame,
    phb_load32_acquire,
    phb_load64_acquire,
    phb_monotonic_ns,
    phb_snapshot,
    phb_wait_change,
)
from pyhub._core cimport error_for
from pyhub._datablock cimport NOGIL_BYTES, DataBlock, FlexBuffer, close_buffer, open_buffer

import numpy as np

from pyhub import errors

cdef extern from "errno.h" nogil:
    int errno

cdef extern from *:
    # What type.__call__ starts with, without the rest of it.
    """
    static PyObject *phb_make(PyTypeObject *kind, PyObject *no_arguments)
    {
        return kind->tp_new(kind, no_arguments, NULL);
    }
    """
    object phb_make(PyTypeObject *kind, tuple no_arguments)

# A sleeping consumer looks this often whether its producer still lives: a death
# is seen after twice that.
cdef double SLICE_S = 0.02
SLICE = SLICE_S

cdef tuple _NOTHING = ()
cdef object _empty = np.empty


cdef FrameRecord make(type kind):
    return phb_make(<PyTypeObject *>kind, _NOTHING)


@cython.auto_pickle(False)
cdef class FrameRecord:
    """A frame's description, and its data; datablock.Frame adds the parameters' meaning."""

    def __init__(self, data, uint64_t frame_id, uint64_t timestamp_ns, uint64_t version,
                 uint64_t flex_version, int encoding, bytes packed):
        self.data = data
        self.frame_id = frame_id
        self.timestamp_ns = timestamp_ns
        self.version = version
        self.flex_version = flex_version
        self.encoding = encoding
        self.packed = packed
        self.has_new_data = True
        self.has_new_flex = True

    @property
    def timestamp(self):
        """When the frame was published: seconds since 1970."""
        return self.timestamp_ns * 1e-9

    @property
    def channel(self):
        """Where it lies; None: it is a copy."""
        return None if self.block is None else self.block.segment.name

    def is_in_place(self):
        """Whether it lies where it was found, whole; False for a copy's record."""
        cdef phb_frame frame
        if self.block is None:
            return False
        frame.has_data = 1
        frame.slot = self.slot
        frame.position = self.position
        return bool(phb_datablock_is_valid(&self.block.db, &frame))


@cython.final
@cython.auto_pickle(False)
cdef class Cursor:
    """One reader's place in a channel: the last frame, and parameters, that it was given.

    Used by one thread at a time.

    Attributes
    ----------
    n_read, n_lost
        Frames given to it, and those that it will not get any more.
    """

    def __init__(self, DataBlock block not None, *, bint from_first, Cursor former=None,
                 bint is_restart=False):
        """Begin before the newest frame, or before the first; with `former`'s counts."""
        cdef phb_snapshot now
        self.block = block
        if not from_first:
            phb_datablock_snapshot(&block.db, &now)
            self.c = phb_cursor_start(&now)
        if former is not None:
            self.n_read = former.n_read
            self.n_lost = former.n_lost
        self.is_restart = is_restart

    def wait_by(self, spin_s):
        """Let `read` and `look` wait: spin for `spin_s` (None: all the time), then nap.

        With ReaderTable.let_sleep it sleeps instead of napping.
        """
        self.waiting.spin_ns = PHB_SPIN_FOREVER if spin_s is None else <int64_t>(spin_s * 1e9)
        self.waits = True

    @property
    def began_s(self):
        """When the last call began to wait (CLOCK_MONOTONIC); 0.0: it did not."""
        return self.began_ns * 1e-9

    @property
    def position(self):
        """Of the frame, in the order of the ring."""
        return self.c.position

    @property
    def lag_frames(self):
        """Frames that were published after the cursor's."""
        cdef phb_snapshot now
        phb_datablock_snapshot(&self.block.db, &now)
        return <uint64_t>(now.structured_buffer_version - self.c.version)

    cdef bint _has_news(self, bint in_order, uint64_t *commit) noexcept:
        """Whether there may be something for this reader; as of which commit."""
        if in_order and <int64_t>(self.c.newest - self.c.position) > 0:
            commit[0] = self.c.commit
            return True
        commit[0] = phb_load64_acquire(&self.block.db.control.commit)
        return commit[0] != self.done_at or not self.has_looked

    cdef int _take(self, bint in_order, void *data, void *flex, phb_frame *frame) noexcept nogil:
        """Find and copy a frame, the short way if it goes; PHB_EMPTY: there is nothing new."""
        cdef const phb_datablock *db = &self.block.db
        cdef phb_snapshot now
        cdef int status
        if in_order:
            status = phb_datablock_read_next(db, &self.c, data, flex, frame)
            if status != PHB_EMPTY:
                return status
        elif phb_datablock_read_following(db, &self.c, 0, data, flex, frame) == PHB_OK:
            return PHB_OK
        phb_datablock_snapshot(db, &now)
        if now.position == self.c.position and (
            in_order or now.flex_zone_version == self.flex_version
        ):
            self.done_at = now.commit
            self.has_looked = True
            return PHB_EMPTY
        if in_order:
            return PHB_EMPTY
        status = phb_datablock_read(db, NULL, data, flex, frame)
        if status == PHB_OK and not frame.has_data and now.n_filled:
            return PHB_BUSY
        return status

    cdef bint _wait(self, uint64_t seen, timeout_s, int64_t *deadline) except -1:
        """Until another commit than `seen`; False: not in time, or a slice ended.

        `deadline` is that of several waits, and 0 before the first.
        """
        cdef int status
        cdef double wait_s = SLICE_S
        if not self.waits or phb_load32_acquire(&self.block.segment.c.live.is_closed):
            return False
        if deadline[0] == 0:
            if timeout_s is not None:
                wait_s = min(<double>timeout_s, wait_s)
            if not wait_s > 0:
                return False
            self.began_ns = phb_monotonic_ns()
            deadline[0] = self.began_ns + <int64_t>(wait_s * 1e9)
        elif phb_monotonic_ns() >= deadline[0]:
            return False  # something is published all the time, but nothing for this reader
        with nogil:
            status = phb_wait_change(&self.block.db.control.commit, seen, deadline[0],
                                     &self.waiting)
        PyErr_CheckSignals()
        return status == PHB_OK

    # --- Taking: None if there is nothing, also after waiting for `timeout_s` (None: for
    # --- ever), but at most SLICE_S: then the caller looks whether the producer lives ---

    def read(self, type kind not None, bint in_order, out, timeout_s=0.0):
        """Copy the newest frame, or the one after the cursor; into `out`, or a new array.

        A channel of parameters only has no order: each newest object.
        """
        cdef DataBlock block = self.block
        cdef uint64_t capacity = block.db.constants.structured_buffer_capacity
        cdef uint64_t commit
        cdef int64_t deadline = 0
        cdef FlexBuffer flex
        cdef phb_frame frame
        cdef Py_buffer data
        cdef FrameRecord record
        cdef int status
        in_order = in_order and capacity > 0
        self.began_ns = 0
        block._use()
        while not self._has_news(in_order, &commit):
            if not self._wait(commit, timeout_s, &deadline):
                return None
        if out is None:
            out = _empty(block.full_shape, block.dtype_)
        PyObject_GetBuffer(out, &data, PyBUF_SIMPLE)
        try:
            if <uint64_t>data.len < capacity or data.readonly:
                raise errors.CapacityError(
                    f"out has {data.len} writable bytes; a frame of channel "
                    f"{block.segment.name!r} takes {capacity}.\n"
                    "  Use an array of the channel's dtype and full shape."
                )
            open_buffer(&flex, block.db.constants.flex_zone_capacity)
            try:
                while True:
                    if capacity >= NOGIL_BYTES:
                        with nogil:
                            status = self._take(in_order, data.buf, flex.at, &frame)
                    else:
                        status = self._take(in_order, data.buf, flex.at, &frame)
                    if status == PHB_OK:
                        record = make(kind)
                        return self.given(record, &frame, flex.at, out)
                    self._check(status)
                    if not self._wait(commit, timeout_s, &deadline):
                        return None
                    self._has_news(in_order, &commit)
            finally:
                close_buffer(&flex)
        finally:
            PyBuffer_Release(&data)

    def look(self, type kind not None, bint in_order, timeout_s=0.0):
        """Do the same without copying: `data` is where the frame lies."""
        cdef DataBlock block = self.block
        cdef uint64_t commit
        cdef int64_t deadline = 0
        cdef FlexBuffer flex
        cdef phb_frame frame
        cdef FrameRecord record = None
        cdef int status
        in_order = in_order and block.db.constants.structured_buffer_capacity > 0
        self.began_ns = 0
        block._use()
        open_buffer(&flex, block.db.constants.flex_zone_capacity)
        try:
            while True:
                if self._has_news(in_order, &commit):
                    status = self._take(in_order, NULL, flex.at, &frame)
                    if status == PHB_OK:
                        if record is None:
                            record = make(kind)
                        return self.given(record, &frame, flex.at, None)
                    self._check(status)
                if record is None and self.waits:
                    # Not when the frame is there: then every instruction delays it.
                    record = make(kind)
                    record.slot = (self.c.slot + 1) % block.db.constants.n_slots
                    record.data = block.view(record.slot,
                                             block.db.constants.structured_buffer_capacity)
                if not self._wait(commit, timeout_s, &deadline):
                    return None
        finally:
            close_buffer(&flex)

    cdef FrameRecord given(self, FrameRecord record, const phb_frame *frame,
                           const unsigned char *flex, data):
        """Make `record` what the reader gets; the cursor goes on to it."""
        _describe(record, self.block, frame, flex, data, True)
        record.n_lost = phb_cursor_n_lost(&self.c, frame)
        record.has_new_data = frame.has_data and frame.position != self.c.position
        record.has_new_flex = frame.flex_version != self.flex_version
        record.is_restart = self.is_restart
        self.is_restart = False
        phb_cursor_pass(&self.c, frame)
        if frame.position == frame.newest or not frame.has_data:
            self.done_at = frame.commit
            self.has_looked = True
        self.flex_version = frame.flex_version
        self.n_lost += record.n_lost
        self.n_read += record.has_new_data or not frame.has_data  # new parameters are no frame
        return record

    cdef int _check(self, int status) except -1:
        """After a look in vain: whether that is no error, but for a wait to mend."""
        self.c.newest = self.c.position  # what was seen to be there is not; look at the commit
        if status != PHB_EMPTY and status != PHB_BUSY and status != PHB_OVERRUN:
            raise error_for(status, errno, self.block.segment.name, self.block.segment.path)
        return 0


def newest(DataBlock block not None, type kind not None, bint with_data=True):
    """The newest frame where it lies, as nobody's; None: there is none, or not now.

    Without `with_data` the parameters do, also while the frame is being overwritten;
    `data` is None.
    """
    cdef FlexBuffer flex
    cdef phb_frame frame
    cdef phb_snapshot now
    cdef FrameRecord record
    cdef int status
    block._use()
    open_buffer(&flex, block.db.constants.flex_zone_capacity)
    try:
        status = phb_datablock_read(&block.db, NULL, NULL, flex.at, &frame)
        if status == PHB_OK and with_data and not frame.has_data:
            phb_datablock_snapshot(&block.db, &now)
            if now.n_filled:
                return None
        if status == PHB_OK:
            record = make(kind)
            _describe(record, block, &frame, flex.at, None, with_data)
            return record
    finally:
        close_buffer(&flex)
    if status != PHB_EMPTY and status != PHB_BUSY:
        raise error_for(status, errno, block.segment.name, block.segment.path)
    return None


cdef int _describe(FrameRecord record, DataBlock block, const phb_frame *frame,
                   const unsigned char *flex, data, bint with_data) except -1:
    """Fill `record` in; `data` None: with the frame where it lies."""
    if not with_data:
        pass
    elif not frame.has_data:
        record.data = _empty(0, block.dtype_)
    elif data is None:
        if (record.data is None or record.slot != frame.slot
                or frame.size != block.db.constants.structured_buffer_capacity):
            record.data = block.view(frame.slot, frame.size)
        record.block = block
        record.slot = frame.slot
        record.position = frame.position
    else:
        record.data = block.first_rows(data, frame.size)
    record.frame_id = frame.frame_id
    record.timestamp_ns = frame.timestamp_ns
    record.version = frame.version
    record.flex_version = frame.flex_version
    record.encoding = frame.flex_encoding
    if frame.has_flex:
        record.packed = PyBytes_FromStringAndSize(<const char *>flex, frame.flex_size)
    record.has_new_data = True
    record.has_new_flex = True
    return 0
