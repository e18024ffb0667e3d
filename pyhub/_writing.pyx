# cython: language_level=3, embedsignature=False
"""What a producer does to its block: include/pyhub/datablock_write.h, called from Python."""

cimport cython
from cpython.buffer cimport PyBUF_ND, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhub._abi cimport (
    PHB_CAPACITY,
    PHB_INTERRUPTED,
    PHB_MISUSE,
    PHB_OK,
    PHB_RECOVERED,
    PHB_TIMEOUT,
    PHB_ZONE_FLEX,
    PHB_ZONE_STRUCTURED,
    phb_copy_to_shared,
    phb_datablock_begin,
    phb_datablock_claim,
    phb_datablock_data,
    phb_datablock_drop,
    phb_datablock_end,
    phb_datablock_flex,
    phb_datablock_is_awaited,
    phb_datablock_is_mine,
    phb_datablock_try_begin,
    phb_load32,
    phb_snapshot,
    phb_update,
)
from pyhub._core cimport Segment, deadline_after, error_for
from pyhub._datablock cimport NOGIL_BYTES, DataBlock

import operator

import numpy as np

from pyhub import errors
from pyhub._datablock import FLEX_JSON, FLEX_MSGPACK
from pyhub.process import process_state

cdef tuple _ENCODINGS = (FLEX_MSGPACK, FLEX_JSON)

# How long a producer waits for another one to end its publication.
DEFAULT_TIMEOUT_S = 5.0

cdef extern from "errno.h" nogil:
    int errno


@cython.auto_pickle(False)
cdef class Writer:
    """Opens, fills and ends publications; datablock.Publisher adds what they mean.

    It supplies `_before_begin` (called if this producer was closed, or is not the
    owner of its channel), `_note_recovery`, `_tell` (of a publish, if `_notify`
    is set), `_encode`, `_encoding` and `_layout`. Threads may share it: the lock
    belongs to the thread that began.
    """

    def __cinit__(self, DataBlock block not None, notify=None):
        self._block = block
        self._notify = notify

    def publish(self, *, timeout_s=DEFAULT_TIMEOUT_S):
        """Return a context that publishes, at its end, what was filled in.

        ::

            with producer.publish() as slot:
                slot.data[...] = image
                slot.flex = {"exposure_s": 0.01}

        If the block is left by an exception nothing is published. Entering
        waits up to `timeout_s` for another producer (`WriterStalled`).
        """
        cdef Publication publication = Publication.__new__(Publication)
        publication.writer = self
        publication.timeout_s = timeout_s
        publication.flex_encoding = FLEX_MSGPACK
        publication.flex_size = -1
        return publication

    cdef int _begin(self, timeout_s) except -1:
        """Take the lock and open a publication."""
        cdef DataBlock block = self._block
        cdef Segment segment = block._use()
        cdef int status
        if self._is_closed or not block.is_owner:
            self._before_begin()
        # Nobody else's: then no clock is read and the GIL is kept.
        status = phb_datablock_try_begin(&block.db)
        if status == PHB_TIMEOUT:
            status = self._wait_for_lock(deadline_after(timeout_s))
        if status == PHB_OK or status == PHB_RECOVERED:
            # Mapped until the lock is let go, even if the handle is forgotten
            # in between: the lock is on this thread's list of robust locks.
            Py_INCREF(segment)
            self._is_dropped = False
            if status == PHB_RECOVERED:
                try:
                    self._note_recovery()
                except BaseException:
                    block.abort()
                    raise
            return 0
        if status == PHB_TIMEOUT:
            raise _writer_stalled(segment.name, phb_load32(&block.db.control.writer_pid),
                                  timeout_s)
        raise error_for(status, errno, segment.name, segment.path)

    cdef int _wait_for_lock(self, int64_t deadline) except -1:
        cdef int status = PHB_INTERRUPTED
        while status == PHB_INTERRUPTED:
            with nogil:
                status = phb_datablock_begin(&self._block.db, deadline)
            if status == PHB_OK or status == PHB_RECOVERED:
                return status
            PyErr_CheckSignals()
        return status

    cdef bint _claim(self) except -1:
        """See that a slot is free; False: admitted readers keep all of them.

        What is dropped stays so until its end, also if a slot comes free.
        """
        cdef int status = PHB_INTERRUPTED
        if self._is_dropped and phb_datablock_is_mine(&self._block.db):
            return False
        if self._block.db.gate == 0:
            return True
        while status == PHB_INTERRUPTED:
            with nogil:
                status = phb_datablock_claim(&self._block.db)
            PyErr_CheckSignals()
        if status == PHB_MISUSE:
            raise self._misuse()
        self._is_dropped = status != PHB_OK
        return not self._is_dropped

    cdef object _take_data(self):
        """The next slot as an array; without one, an array of the producer's own."""
        cdef DataBlock block = self._block
        block._use()
        if not self._claim():
            if self.scratch is None:
                self.scratch = np.empty(block.full_shape, block.dtype_)
            return self.scratch
        if phb_datablock_data(&block.db) == NULL:
            raise self._misuse()
        return block.view(block.db.slot, block.db.constants.structured_buffer_capacity)

    def _take_flex(self):
        """Open the free flex entry for writing; where it lies in the segment, bytes."""
        self._block._use()
        if phb_datablock_flex(&self._block.db) == NULL:
            raise self._misuse()
        return self._block.flex_offset(self._block.db.entry)

    cdef bint _copy_data(self, array) except -1:
        """Copy the contiguous buffer `array` into the next slot; False if there is none."""
        cdef DataBlock block = self._block
        cdef Py_buffer data
        block._use()
        PyObject_GetBuffer(array, &data, PyBUF_SIMPLE)
        try:
            if <uint64_t>data.len > block.db.constants.structured_buffer_capacity:
                raise errors.CapacityError(
                    f"the frame takes {data.len} bytes, channel {block.segment.name!r} has room "
                    f"for {block.db.constants.structured_buffer_capacity}.\n"
                    "  Create the channel with the largest shape that will come."
                )
            return self._copy_bytes(&data)
        finally:
            PyBuffer_Release(&data)

    cdef bint _copy_bytes(self, const Py_buffer *data) except -1:
        cdef DataBlock block = self._block
        cdef void *slot
        if not self._claim():
            return False
        slot = phb_datablock_data(&block.db)
        if slot == NULL:
            raise self._misuse()
        if <uint64_t>data.len >= NOGIL_BYTES:
            with nogil:
                phb_copy_to_shared(slot, data.buf, data.len)
        else:
            phb_copy_to_shared(slot, data.buf, data.len)
        return True

    cdef uint64_t _copy_flex(self, bytes packed) except? 0:
        """Copy `packed` into the free flex entry; its bytes."""
        cdef DataBlock block = self._block
        cdef uint64_t size = len(packed)
        cdef void *entry
        block._use()
        if size > block.db.constants.flex_zone_capacity:
            raise errors.CapacityError(
                f"the flex object takes {size} bytes, the flex zone of channel "
                f"{block.segment.name!r} has room for {block.db.constants.flex_zone_capacity}.\n"
                "  Publish less, or create the channel with a larger flexible_zone_size."
            )
        entry = phb_datablock_flex(&block.db)
        if entry == NULL:
            raise self._misuse()
        phb_copy_to_shared(entry, <const char *>packed, size)
        return size

    cdef bint _end(self, uint32_t zones, uint64_t size, uint64_t flex_size, int encoding,
                   frame_id, uint64_t timestamp_ns) except -1:
        """Publish `zones`, let the lock go, notify; False: dropped instead, and counted."""
        cdef DataBlock block = self._block
        cdef Segment segment = block._use()
        cdef uint64_t number = 0
        cdef phb_update update
        cdef phb_snapshot published
        cdef int status
        if self._is_dropped and zones & PHB_ZONE_STRUCTURED:
            if phb_datablock_drop(&block.db) != PHB_OK:
                raise self._misuse()
            Py_DECREF(segment)
            return False
        update.zones = zones
        update.flex_encoding = encoding
        update.flex_size = flex_size
        update.structured_size = size
        update.frame_id = NULL
        update.timestamp_ns = timestamp_ns
        if frame_id is not None:
            number = frame_id
            update.frame_id = &number
        if phb_datablock_is_awaited(&block.db, block.db.base.commit):
            with nogil:  # waking takes longer than all the rest
                status = phb_datablock_end(&block.db, &update, &published)
        else:
            status = phb_datablock_end(&block.db, &update, &published)
        if status == PHB_OK:
            Py_DECREF(segment)
            if self._notify is not None:
                if not zones & PHB_ZONE_STRUCTURED:
                    frame_id = -1
                elif frame_id is None:
                    frame_id = published.structured_buffer_version - 1 + published.n_dropped
                self._tell(published.commit, published.flex_zone_version,
                           published.structured_buffer_version, zones, frame_id)
            return True
        if status == PHB_MISUSE:
            raise self._misuse()
        if status == PHB_CAPACITY:
            raise errors.CapacityError(
                f"channel {segment.name!r}: end_publish names {size} bytes of "
                f"{block.db.constants.structured_buffer_capacity} and {flex_size} bytes of flex "
                f"of {block.db.constants.flex_zone_capacity}.\n  Name the bytes that are valid."
            )
        raise error_for(status, errno, segment.name, segment.path)

    # --- The same, step by step, for Publisher ---

    def _open(self, timeout_s):
        self._begin(timeout_s)

    def _data(self):
        return self._take_data()

    def _publish(self, uint32_t zones, uint64_t size, uint64_t flex_size, int encoding, frame_id,
                 uint64_t timestamp_ns):
        return bool(self._end(zones, size, flex_size, encoding, frame_id, timestamp_ns))

    def _put(self, array, bytes packed, frame_id, uint64_t timestamp_ns, int encoding, timeout_s):
        """Publish `array` (or None) and `packed`; False: dropped.

        None: this way is for whole frames in C order only; nothing was done.
        """
        cdef DataBlock block = self._block
        cdef uint32_t zones = 0
        cdef uint64_t flex_size = 0
        cdef Py_buffer data
        cdef bint has_data = array is not None
        if has_data:
            if array.dtype is not block.dtype_ and array.dtype != block.dtype_:
                return None
            try:
                PyObject_GetBuffer(array, &data, PyBUF_ND)
            except (ValueError, BufferError):  # not in C order
                return None
        try:
            if has_data and not self._is_whole(&data):
                return None
            if not has_data and packed is None:
                raise errors.LayoutError(
                    f"put() was given nothing to publish on channel {block.segment.name!r}.\n"
                    "  Give it data, flex, or both."
                )
            self._begin(timeout_s)
            try:
                if packed is not None:
                    flex_size = self._copy_flex(packed)
                    zones |= PHB_ZONE_FLEX
                if has_data:
                    self._copy_bytes(&data)
                    zones |= PHB_ZONE_STRUCTURED
                return bool(self._end(zones, block.db.constants.structured_buffer_capacity,
                                      flex_size, encoding, frame_id, timestamp_ns))
            except BaseException:
                block.abort()
                raise
        finally:
            if has_data:
                PyBuffer_Release(&data)

    cdef bint _is_whole(self, Py_buffer *data) noexcept:
        cdef uint32_t i
        if <uint32_t>data.ndim != self._block.db.constants.ndim:
            return False
        for i in range(<uint32_t>data.ndim):
            if <uint64_t>data.shape[i] != self._block.db.constants.shape[i]:
                return False
        return True

    cdef object _misuse(self):
        return error_for(PHB_MISUSE, 0, self._block.segment.name, self._block.segment.path)


@cython.final
@cython.auto_pickle(False)
@cython.freelist(8)
cdef class Publication:
    """The slot that a `publish` block fills.

    Attributes
    ----------
    frame_id
        Your own number for the frame; None: counted from 0.
    timestamp_ns
        Wall clock, ns since 1970; 0: the moment of publishing.
    encoding
        How `flex` is written. Set it before `flex`.
    n_rows
        Rows of `data` that are valid; None: all.
    is_dropped
        Whether admitted readers left no slot: the frame is counted, and not published.
    """

    cdef Writer writer
    cdef object timeout_s
    cdef object frame_id_
    cdef uint64_t timestamp_ns_
    cdef public object n_rows
    cdef object encoding_
    cdef object flex_
    cdef int flex_encoding
    cdef int64_t flex_size  # -1: no parameters were filled in
    cdef bint has_data
    cdef readonly bint is_dropped
    cdef bint is_used
    cdef object given  # the array that `data` was last

    def __init__(self):
        raise TypeError("use producer.publish()")

    def __enter__(self):
        if self.is_used:
            raise errors.PublishError(
                f"this publication of channel {self.writer._block.segment.name!r} was used.\n"
                "  Call publish() for each frame."
            )
        self.writer._begin(self.timeout_s)
        self.is_used = True
        return self

    def __exit__(self, kind, error, traceback):
        cdef Writer writer = self.writer
        cdef uint32_t zones = 0
        if self.has_data:
            zones |= PHB_ZONE_STRUCTURED
        if self.flex_size >= 0:
            zones |= PHB_ZONE_FLEX
        if kind is not None or zones == 0:
            self.is_dropped = False
            writer._block.abort()
            return
        try:
            self.is_dropped = not writer._end(
                zones, self._valid_bytes(), max(self.flex_size, 0), self.flex_encoding,
                self.frame_id_, self.timestamp_ns_,
            )
        except BaseException:
            self.is_dropped = False
            writer._block.abort()
            raise

    @property
    def data(self):
        """The frame: a writable array in shared memory, valid inside the block."""
        self.given = self.writer._take_data()
        self.has_data = True
        self.is_dropped = self.writer._is_dropped
        return self.given

    @data.setter
    def data(self, value):
        # Lets `slot.data += image` and `slot.data = image` do what they say.
        if not (self.has_data and value is self.given):
            self.copy_from(np.asarray(value))

    @property
    def frame_id(self):
        return self.frame_id_

    @frame_id.setter
    def frame_id(self, value):
        self.frame_id_ = None if value is None else checked_number("frame_id", value)

    @property
    def timestamp_ns(self):
        return self.timestamp_ns_

    @timestamp_ns.setter
    def timestamp_ns(self, value):
        self.timestamp_ns_ = checked_number("timestamp_ns", value)

    @property
    def encoding(self):
        return self.writer._encoding if self.encoding_ is None else self.encoding_

    @encoding.setter
    def encoding(self, value):
        if value not in _ENCODINGS:
            raise errors.CodecError(
                f"encoding={value!r} is none that a reader knows.\n  Use pyhub.Encoding."
            )
        self.encoding_ = value

    @property
    def flex(self):
        """The parameters that belong to the frame; None carries the last ones on."""
        return self.flex_

    @flex.setter
    def flex(self, parameters):
        self.copy_packed(self.writer._encode(parameters, self.encoding))
        self.flex_ = parameters

    def copy_from(self, array):
        """Fill the frame from `array`, which may have fewer rows than the channel."""
        cdef Writer writer = self.writer
        cdef uint64_t size = writer._layout.size_of(array)
        if array.flags.c_contiguous:
            if not writer._copy_data(array):
                self.is_dropped = True
        else:  # numpy knows how to walk it
            view = self.data
            np.copyto(view[: array.shape[0]] if array.shape else view, array)
        self.has_data = True
        whole = size == writer._block.db.constants.structured_buffer_capacity
        self.n_rows = None if whole else array.shape[0]

    def copy_packed(self, bytes packed not None):
        """Fill the flex zone with an object that is encoded already."""
        self.flex_size = self.writer._copy_flex(packed)
        self.flex_encoding = self.encoding

    cdef uint64_t _valid_bytes(self) except? 0:
        cdef DataBlock block = self.writer._block
        if self.n_rows is None or not self.has_data:
            return block.db.constants.structured_buffer_capacity
        n_rows = operator.index(self.n_rows)  # numpy's own would wrap around
        if not block.full_shape or not 0 <= n_rows <= block.full_shape[0]:
            raise errors.CapacityError(
                f"n_rows={n_rows}: a frame of channel {block.segment.name!r} has shape "
                f"{block.full_shape}."
            )
        if n_rows == block.full_shape[0]:
            return block.db.constants.structured_buffer_capacity
        return n_rows * (block.db.constants.structured_buffer_capacity
                         // <uint64_t>block.full_shape[0])


def checked_number(str what, value):
    """`value` as an integer that a header can hold."""
    number = operator.index(value)
    if not 0 <= number < 1 << 64:
        raise errors.LayoutError(f"{what}={value} is no {_MEANING[what]}, in 64 bits.")
    return number


_MEANING = {
    "frame_id": "number of a frame.\n  Count from 0",
    "timestamp_ns": "time.\n  Give ns since 1970, from 0",
}


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
