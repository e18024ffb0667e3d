# cython: language_level=3, embedsignature=False
"""The mapped file, the lease of this process, and what a status code means.

Module order: errors <- _core <- one module a channel kind.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport (
    EACCES,
    EFBIG,
    EISDIR,
    ELOOP,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENXIO,
    EPERM,
)
from libc.stdint cimport INT64_MAX, uint64_t
from libc.string cimport memcpy

from pyhub._abi cimport (
    PHB_ABI_VERSION,
    PHB_BAD_ABI,
    PHB_BAD_BOOT,
    PHB_BAD_KIND,
    PHB_BAD_MODE,
    PHB_BAD_OWNER,
    PHB_BAD_PIDNS,
    PHB_CAPACITY,
    PHB_CLOSED,
    PHB_DAMAGED,
    PHB_EXISTS,
    PHB_IN_USE,
    PHB_MISUSE,
    PHB_NOT_SEGMENT,
    PHB_OK,
    PHB_SYSTEM,
    PHB_TRUNCATED,
    phb_lease_is_alive,
    phb_lease_own,
    phb_lease_remove_file,
    phb_load32_acquire,
    phb_monotonic_ns,
    phb_segment_companion,
    phb_segment_detach,
    phb_segment_header,
    phb_segment_is_dead,
    phb_segment_is_left,
    phb_segment_is_named,
    phb_segment_prefault,
    phb_segment_remove_dead,
)

import math
import os

from pyhub import errors

cdef extern from "errno.h" nogil:
    int errno

cdef extern from "limits.h" nogil:
    enum:
        PATH_MAX

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept,
                       void (*child)() noexcept)

cdef int _generation = 0


cdef void _count_fork() noexcept nogil:
    global _generation
    _generation += 1


pthread_atfork(NULL, NULL, _count_fork)

ABI_VERSION = PHB_ABI_VERSION


cdef int fork_generation() noexcept nogil:
    """How many forks lie between the first process and this one."""
    return _generation


cdef int64_t deadline_after(object timeout_s) except? -1:
    """The monotonic time, ns, at which a wait of `timeout_s` (None: for ever) ends."""
    if timeout_s is None:
        return INT64_MAX
    cdef double timeout = timeout_s
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout_s={timeout_s!r} must be None, 0 or positive, in seconds")
    if timeout > 1e9:
        return INT64_MAX
    return phb_monotonic_ns() + <int64_t>(timeout * 1e9)


@cython.final
@cython.auto_pickle(False)
cdef class Segment:
    """A mapped segment. The mapping goes with the last view of it.

    Implements the buffer protocol (read-only for readers), so that numpy
    arrays keep it alive. `close` and the end of a handle never unmap.
    """

    def __cinit__(self):
        self.c.base = NULL
        self.c.fd = -1

    def __init__(self):
        raise TypeError("segments come from a channel's create and attach")

    def __dealloc__(self):
        phb_segment_detach(&self.c)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.c.base, self.c.size, not self.c.writable, flags)

    def prefault(self):
        """Have all its pages mapped now, and not when they are first touched."""
        cdef uint64_t at = 0, size, piece = 64 << 20  # a second for some GiB
        cdef int status
        while at < self.c.size:
            size = min(self.c.size - at, piece)
            with nogil:
                status = phb_segment_prefault(&self.c, at, size)
            if status != PHB_OK:
                raise error_for(status, errno, self.name, self.path)
            PyErr_CheckSignals()
            at += size

    def is_named(self):
        """Whether the segment's name still leads to it; a restart gives it to another."""
        return bool(phb_segment_is_named(&self.c, os.fsencode(self.path)))

    @property
    def is_closed(self):
        """Whether the owner closed it."""
        return bool(phb_load32_acquire(&self.c.live.is_closed))

    def is_left(self, leases):
        """Whether all its producers have died, as the lock file `leases` tells."""
        return bool(phb_segment_is_left(self.c.live, os.fsencode(leases)))

    @property
    def owner_pid(self):
        """The owner's process id, for messages only."""
        return phb_load32_acquire(&self.c.live.owner_pid)


def process_lease(path):
    """Return this process's lease, taken in the lock file `path` on first use."""
    cdef uint64_t lease
    cdef int status = phb_lease_own(os.fsencode(path), &lease)
    cdef int error = errno
    if status != PHB_OK:
        raise error_for(status, error, os.path.basename(path), str(path))
    return lease


def lease_is_alive(path, uint64_t lease):
    """Return whether the process that holds `lease` in the lock file `path` lives."""
    return bool(phb_lease_is_alive(os.fsencode(path), lease))


def remove_leases(path):
    """Remove the lock file `path` if no other process holds a lease; whether it went."""
    return phb_lease_remove_file(os.fsencode(path)) == PHB_OK


def remove_dead(path, leases):
    """Remove the segment file `path` if its owner died; return whether it did.

    Raises what an attach would raise for a file that is no whole segment.
    """
    cdef int status = phb_segment_remove_dead(os.fsencode(path), os.fsencode(leases))
    cdef int error = errno
    if status == PHB_IN_USE:
        return False
    if status != PHB_OK:
        raise error_for(status, error, os.path.basename(path), str(path))
    return True


def is_dead(path, leases):
    """Return whether the segment file `path` was left by producers that all died.

    Raises what an attach would raise for a file that is no whole segment.
    """
    cdef phb_segment_header header
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    cdef int status = phb_segment_is_dead(fd, os.fsencode(leases), &header)
    cdef int error = errno
    os.close(fd)
    if status != PHB_OK and status != PHB_IN_USE:
        raise error_for(status, error, os.path.basename(path), str(path))
    return status == PHB_OK


def companion(path):
    """Return the file of the table of readers of the segment file `path`."""
    cdef phb_segment_header header
    cdef char found[PATH_MAX]
    with open(path, "rb", 0) as file:
        head = file.read(sizeof(header))
    if len(head) < <Py_ssize_t>sizeof(header):
        raise error_for(PHB_TRUNCATED, 0, os.path.basename(path), str(path))
    memcpy(&header, <const char *>head, sizeof(header))
    if phb_segment_companion(found, os.fsencode(path), &header) != PHB_OK:
        raise error_for(PHB_SYSTEM, errno, os.path.basename(path), str(path))
    return os.fsdecode(found)


cdef object error_for(int status, int error, str name, str path):
    """The exception that tells a user what `status` means for segment `name`."""
    if status == PHB_SYSTEM:
        return _system_error(error, name, path)
    kind, text = _MEANING[status]
    return kind(text.format(name=name, path=path, abi=PHB_ABI_VERSION))


cdef object _system_error(int error, str name, str path):
    reason = os.strerror(error)
    directory = os.path.dirname(path)
    if error == ENOENT and not os.path.isdir(directory):
        return errors.SegmentNotFound(
            f"there is no directory {directory}, where segments are to be.\n"
            "  Make it, or set PYHUB_SHM_DIR to one in memory (default: /dev/shm)."
        )
    if error == ENOENT:
        return errors.SegmentNotFound(
            f"there is no channel {name!r} (no file {path}).\n"
            "  Start its producer, or look for the right name with: pyhub ls"
        )
    if error in (ENOSPC, ENOMEM, EFBIG):
        return errors.SharedMemoryFull(
            error,
            f"no room for segment {name!r} in {directory}: {reason}.\n"
            "  Use fewer or smaller slots, remove what dead processes left (pyhub clean), or\n"
            "  make it larger (mount -o remount,size=... /dev/shm; docker run --shm-size=...).",
        )
    if error in (EISDIR, ENXIO):  # a directory opened for writing; a socket
        return error_for(PHB_BAD_MODE, error, name, path)
    if error in (EACCES, EPERM, ELOOP):
        return errors.AccessDenied(
            error,
            f"segment {name!r} cannot be opened: {reason} ({path}).\n"
            "  It belongs to another user, or is a link. Use the account that runs the producer.",
        )
    return OSError(error, f"segment {name!r}: {reason}", path)


_MEANING = {
    PHB_CLOSED: (
        errors.ChannelClosed,
        "channel {name!r} was closed by its owner.\n"
        "  Create it again, or wait for its producer to come back.",
    ),
    PHB_CAPACITY: (
        errors.CapacityError,
        "channel {name!r}: the sizes asked for are beyond what a segment can have.\n"
        "  Use between 1 and 65536 slots, and sizes that fit into this machine's memory.",
    ),
    PHB_MISUSE: (
        errors.PublishError,
        "channel {name!r}: a publication must be begun and ended once, by the same thread,\n"
        "  and end_publish may only name zones whose buffer was taken in between.",
    ),
    PHB_EXISTS: (
        errors.SegmentExists,
        "channel {name!r} exists ({path}).\n"
        "  Choose another name, or stop the program that owns it.",
    ),
    PHB_NOT_SEGMENT: (
        errors.SegmentDamaged,
        "{path} is not a pyhub segment.\n"
        "  Something else wrote a file of that name. Remove it: pyhub clean --force {name}",
    ),
    PHB_BAD_ABI: (
        errors.AbiMismatch,
        "segment {name!r} has another binary layout than this pyhub's (layout {abi}, "
        "its libc and byte order).\n"
        "  Producer and consumer run different versions: bring both to the same "
        "(conda update pyhub).",
    ),
    PHB_BAD_KIND: (
        errors.LayoutError,
        "segment {name!r} is not a DataBlock.\n  See what it is with: pyhub ls",
    ),
    PHB_BAD_BOOT: (
        errors.SegmentStale,
        "segment {name!r} was left over from before the last reboot.\n"
        "  Remove it with: pyhub clean; then start its producer.",
    ),
    PHB_BAD_PIDNS: (
        errors.NamespaceMismatch,
        "segment {name!r} was made in another PID namespace; its lock does not work across.\n"
        "  Run both producers in one container, or share the namespace "
        "(docker run --pid=container:...).",
    ),
    PHB_BAD_OWNER: (
        errors.AccessDenied,
        "{path} belongs to another user.\n"
        "  Use the account that runs the producer, or name its user: attach(..., owner_uid=...).",
    ),
    PHB_BAD_MODE: (
        errors.AccessDenied,
        "{path} may be written by others, or is no plain file; it is not trusted.\n"
        "  Remove it (pyhub clean --force {name}) and start the producer again.",
    ),
    PHB_TRUNCATED: (
        errors.SegmentDamaged,
        "segment {name!r} is truncated: {path} is shorter or longer than its header says.\n"
        "  Stop its producer, remove it (pyhub clean --force {name}) and start again.",
    ),
    PHB_DAMAGED: (
        errors.SegmentDamaged,
        "segment {name!r} is damaged: its header contradicts itself ({path}).\n"
        "  Stop its producer, remove it (pyhub clean --force {name}) and start again.",
    ),
}
