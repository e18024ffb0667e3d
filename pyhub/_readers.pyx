# cython: language_level=3, embedsignature=False
"""The table of admitted readers: include/pyhub/readers.h, called from Python."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pyhub._abi cimport (
    PHB_EXISTS,
    PHB_FULL,
    PHB_INTERRUPTED,
    PHB_OK,
    PHB_POLICY_BLOCK,
    PHB_POLICY_DROP_NEWEST,
    PHB_POLICY_DROP_OLDEST,
    PHB_POLICY_EVERY,
    PHB_POLICY_LATEST,
    PHB_READER_NAME_BYTES,
    PHB_READER_PINS,
    PHB_SYSTEM,
    PHB_TIMEOUT,
    phb_datablock_admit,
    phb_datablock_pin,
    phb_datablock_pin_next,
    phb_frame,
    phb_load32,
    phb_load64,
    phb_load64_acquire,
    phb_reader,
    phb_reader_pass,
    phb_reader_place,
    phb_reader_unpin,
    phb_readers,
    phb_readers_attach,
    phb_readers_leave_place,
    phb_readers_n_used,
    phb_segment_detach,
)
from pyhub._core cimport deadline_after, error_for, fork_generation
from pyhub._datablock cimport DataBlock, FlexBuffer, close_buffer, open_buffer
from pyhub._reading cimport Cursor, FrameRecord, make

import os

from pyhub import errors

cdef extern from "errno.h" nogil:
    int errno

LATEST = PHB_POLICY_LATEST
EVERY = PHB_POLICY_EVERY
BLOCK = PHB_POLICY_BLOCK
DROP_NEWEST = PHB_POLICY_DROP_NEWEST
DROP_OLDEST = PHB_POLICY_DROP_OLDEST


cdef str _text(const char *name):
    return name[:PHB_READER_NAME_BYTES].partition(b"\0")[0].decode("utf-8", "replace")


cdef bytes _encoded(str name):
    try:
        return name.encode()
    except UnicodeEncodeError:
        return b""  # which no reader can be called


@cython.final
@cython.auto_pickle(False)
cdef class ReaderTable:
    """The readers that a channel admitted, as this process has the table mapped."""

    cdef phb_readers c
    cdef bytes leases
    cdef str name

    def __cinit__(self):
        self.c.segment.fd = -1

    def __init__(self):
        raise TypeError("use ReaderTable.attach")

    def __dealloc__(self):
        phb_segment_detach(&self.c.segment)

    @staticmethod
    def attach(DataBlock block not None, leases):
        """Map the table of `block`'s channel, writable."""
        cdef ReaderTable self = ReaderTable.__new__(ReaderTable)
        self.leases = os.fsencode(leases)
        self.name = block.segment.name
        cdef int status = phb_readers_attach(&self.c, os.fsencode(block.segment.path),
                                             &block.db.constants.segment, self.leases)
        cdef int error = errno
        if status == PHB_SYSTEM and error == ENOENT:
            raise errors.SegmentNotFound(
                f"channel {self.name!r} has no table of readers any more: its producer closed it, "
                "or somebody removed the file.\n  Start its producer again."
            )
        if status != PHB_OK:
            raise error_for(status, error, f"{self.name} (table of readers)", block.segment.path)
        return self

    @property
    def n_places(self):
        return self.c.constants.n_places

    @property
    def patience_s(self):
        """How long a publish waits for readers that block."""
        return self.c.constants.patience_ns * 1e-9

    def let_sleep(self, Cursor cursor not None):
        """Let `cursor` sleep while it waits: here it says that it does (sync.h)."""
        cursor.waiting.awaited = &self.c.control.awaited
        cursor.table = self

    def rows(self):
        """Every reader: (name, pid, lease, policy, cursor, n_read, n_lost, max_lag,
        n_pinned, stalled_ns, n_dropped)."""
        cdef const phb_reader_place *place
        cdef uint32_t i, j, n_pinned
        cdef uint64_t lease
        found = []
        for i in range(phb_readers_n_used(&self.c)):
            place = &self.c.places[i]
            lease = phb_load64_acquire(&place.lease)
            if lease == 0:
                continue
            n_pinned = 0
            for j in range(<uint32_t>PHB_READER_PINS):
                n_pinned += phb_load32(&place.pin[j]) != 0
            found.append((
                _text(place.name),
                phb_load32(&place.pid), lease, phb_load32(&place.policy),
                phb_load64(&place.cursor), phb_load64(&place.n_read), phb_load64(&place.n_lost),
                phb_load64(&place.max_lag), n_pinned, phb_load64(&place.stalled_ns),
                phb_load64(&place.n_dropped),
            ))
        return found


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear  # its end still needs the table
cdef class Admission:
    """One reader's place in a channel's table. Used by one thread at a time."""

    cdef phb_reader c
    cdef readonly ReaderTable table
    cdef DataBlock block
    cdef int generation
    cdef bint has_place

    def __init__(self):
        raise TypeError("use Admission.admit")

    def __dealloc__(self):
        self.leave()

    @staticmethod
    def admit(Cursor cursor not None, ReaderTable table not None, str name, uint32_t policy,
              bint from_first, uint64_t lease, timeout_s):
        """Take a place under `name`; `cursor` begins where the place does.

        Raises `AdmissionRefused` if a living reader has that name, or if no
        place is free. Waits for others that come or go.
        """
        cdef Admission self = Admission.__new__(Admission)
        cdef DataBlock block = cursor.block
        cdef bytes c_name = _encoded(name)
        cdef const char *name_chars = c_name
        cdef int64_t deadline = deadline_after(timeout_s)
        cdef int status = PHB_INTERRUPTED
        cdef int error = 0
        if not 0 < len(c_name) < PHB_READER_NAME_BYTES or not name.isprintable():
            raise errors.InvalidName(
                f"{name!r} cannot be the name of a reader.\n"
                f"  Use 1 to {PHB_READER_NAME_BYTES - 1} bytes of UTF-8, all printable."
            )
        self.table = table
        self.block = block
        self.generation = fork_generation()
        block._use()
        while status == PHB_INTERRUPTED:
            with nogil:
                status = phb_datablock_admit(&block.db, &table.c, &self.c, name_chars, policy,
                                             from_first, lease, &cursor.c, deadline)
                error = errno
            self.has_place = status == PHB_OK
            PyErr_CheckSignals()
        if status == PHB_EXISTS:
            raise errors.AdmissionRefused(
                f"channel {table.name!r} has a reader {name!r} already "
                f"(pid {phb_load32(&table.c.places[self.c.at].pid)}).\n"
                "  Choose another name, or stop that program."
            )
        if status == PHB_FULL:
            raise errors.AdmissionRefused(
                f"channel {table.name!r} has no place for reader {name!r}: all "
                f"{table.c.constants.n_places} are taken (see them with pyhub info "
                f"{table.name}).\n"
                "  Stop one of them, or create the channel with more (readers=...)."
            )
        if status == PHB_TIMEOUT:
            raise errors.WaitTimeout(
                f"channel {table.name!r}: another reader comes or goes since more than "
                f"{timeout_s} s; it may be stopped.\n  See the readers with pyhub info "
                f"{table.name}"
            )
        if status != PHB_OK:
            raise error_for(status, error, table.name, block.segment.path)
        return self

    cdef phb_reader *_use(self) except NULL:
        if self.generation != fork_generation() or not self.has_place:
            self.block._use()  # says so, if it was the fork
            raise errors.ChannelClosed(
                f"this reader of channel {self.table.name!r} was closed.\n  Attach again."
            )
        return &self.c

    def pass_(self, Cursor cursor not None, uint64_t lag):
        """Tell producers that all up to the cursor may be overwritten, and its counts."""
        phb_reader_pass(self._use(), cursor.c.position, cursor.n_read, cursor.n_lost, lag)

    def pin(self, Cursor cursor not None, type kind not None, bint in_order, timeout_s=0.0):
        """Keep producers from the newest frame, or from the one after the cursor.

        Returns and waits as Cursor.look does; `_release` lets the frame go.
        """
        cdef phb_reader *reader = self._use()
        cdef FlexBuffer flex
        cdef phb_frame frame
        cdef FrameRecord record
        cdef Pin hold = Pin.__new__(Pin)
        cdef uint64_t commit
        cdef int64_t deadline = 0
        cdef uint32_t pin = 0
        cdef int status
        cursor.began_ns = 0
        open_buffer(&flex, self.block.db.constants.flex_zone_capacity)
        try:
            while True:
                if cursor._has_news(in_order, &commit):
                    if in_order:
                        status = phb_datablock_pin_next(&self.block.db, reader, &cursor.c,
                                                        flex.at, &frame, &pin)
                    else:
                        status = phb_datablock_pin(&self.block.db, reader, NULL, flex.at, &frame,
                                                   &pin)
                    if status == PHB_OK:
                        break
                    if status == PHB_FULL:
                        raise errors.CapacityError(
                            f"this reader of channel {self.table.name!r} holds {PHB_READER_PINS} "
                            "frames, and no reader can hold more.\n"
                            "  Release one (leave its with block) before the next."
                        )
                    cursor._check(status)
                if not cursor._wait(commit, timeout_s, &deadline):
                    return None
                reader = self._use()
            try:
                record = cursor.given(make(kind), &frame, flex.at, None)
                hold.admission = self
                hold.number = pin
                record._release = hold
                return record
            except BaseException:
                self.unpin(pin)
                raise
        finally:
            close_buffer(&flex)

    def unpin(self, uint32_t pin):
        """Let producers overwrite that frame. After the end, or in a fork's child: nothing."""
        if self.has_place and self.generation == fork_generation() and pin < PHB_READER_PINS:
            phb_reader_unpin(&self.c, pin)

    def leave(self):
        """Give the place up, with all pins. In a fork's child it is the parent's."""
        if self.has_place and self.generation == fork_generation():
            phb_readers_leave_place(&self.table.c, self.c.at)
        self.has_place = False


@cython.final
@cython.auto_pickle(False)
@cython.no_gc_clear  # its end still needs the admission
cdef class Pin:
    """Holds one frame; producers may overwrite it once nobody holds this.

    In C to its end: no signal handler can run in between, and keep it from that.
    """

    cdef Admission admission
    cdef uint32_t number

    def __dealloc__(self):
        if self.admission is not None:
            self.admission.unpin(self.number)
