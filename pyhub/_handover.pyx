# cython: language_level=3, embedsignature=False, binding=False
# binding: methods that are plain are called sooner; nobody asks for their signatures.
"""What threads of one program hand to each other.

Each method that does not sleep or call somebody is one step: no other thread
comes in between, and no signal handler, as those run between two instructions
of Python. So the main thread may be interrupted anywhere, by a handler that
uses or ends the very same things, and leaves nothing locked that another thread
waits for. (Before Python 3.12 what allocates may have the garbage collector run
finalizers; none of what is changed here is half done at those points.)
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.unistd cimport close as close_descriptor
from posix.unistd cimport getpid, pid_t, read, write

from pyhub._abi cimport phb_futex_wait, phb_futex_wake
from pyhub._deadlines cimport end_of, ns_until

from pyhub.errors import ForkedHandle

__all__ = ["Bell", "Lock", "Wake", "keep_newest", "take"]

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int initval, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "errno.h" nogil:
    int errno


@cython.auto_pickle(False)
cdef class Bell:
    """Counts its strokes: who has seen `n_strokes` can sleep until the next one."""

    cpdef void ring(self):
        """Wake all who wait."""
        self.n_strokes += 1
        if self.n_waiting:
            phb_futex_wake(&self.n_strokes)

    cpdef bint wait(self, uint32_t seen, double timeout_s) except -1:
        """Sleep until it was rung after `seen`, at most so long; whether it was.

        In the child of a fork by a signal's handler it ends early: there, that it
        was not rung does not say that the time is over.
        """
        cdef int64_t end = end_of(timeout_s)
        cdef pid_t pid = getpid()
        cdef int64_t left
        cdef bint is_quiet
        self.n_waiting += 1
        try:
            while self.n_strokes == seen:
                left = ns_until(end)
                if left == 0:
                    return False
                with nogil:
                    is_quiet = phb_futex_wait(&self.n_strokes, seen, left)
                if not is_quiet:
                    PyErr_CheckSignals()
                    if getpid() != pid:
                        return self.n_strokes != seen
            return True
        finally:
            self.n_waiting -= 1


cdef class Wake:
    """A descriptor that is readable from `wake` until `quiet`."""

    def __cinit__(self):
        self.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.fd < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        self.close()

    cpdef void wake(self):
        """Make it readable; nothing once it was closed."""
        cdef uint64_t one = 1
        if self.fd >= 0:
            write(self.fd, &one, sizeof(one))

    cpdef void quiet(self):
        """Make it unreadable."""
        cdef uint64_t count
        if self.fd >= 0:
            read(self.fd, &count, sizeof(count))

    cpdef void close(self):
        """Let the descriptor go. May be called twice."""
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            close_descriptor(fd)


cdef class Lock:
    """A lock that knows whose it is; its holder may take it again."""

    def __cinit__(self):
        self._bell = Bell()
        self._pid = getpid()

    @property
    def is_mine(self):
        """Whether this thread has it: if in a signal's handler, what it interrupted does."""
        return self._holder == PyThread_get_thread_ident()

    def __enter__(self):
        cdef unsigned long me = PyThread_get_thread_ident()
        while self._holder and self._holder != me:
            if getpid() != self._pid:
                raise ForkedHandle.of("a lock that another thread has")
            self.wait_for_change(INFINITY)
        self._holder = me
        self._depth += 1

    def __exit__(self, *_):
        self.give()

    cdef bint try_take(self) noexcept:
        if self._holder:
            return False
        self._holder = PyThread_get_thread_ident()
        self._depth = 1
        return True

    cdef bint wait_for_change(self, double timeout_s) except -1:
        return self._bell.wait(self._bell.n_strokes, timeout_s)

    cdef void give(self):
        self._depth -= 1
        if self._depth == 0:
            self._holder = 0
            self._bell.ring()

    def attempt(self):
        """Return a context that takes this lock if nobody has it, this thread neither.

        It says whether it did.
        """
        return _Attempt.__new__(_Attempt, self)


cdef class _Attempt:
    cdef Lock _lock
    cdef bint _is_taken

    def __cinit__(self, Lock lock):
        self._lock = lock

    def __enter__(self):
        self._is_taken = self._is_taken or self._lock.try_take()
        return self._is_taken

    def __exit__(self, *_):
        if self._is_taken:
            self._is_taken = False
            self._lock.give()


def take(items, Py_ssize_t n_items):
    """Return the first items of a deque, at most so many, taken out of it."""
    taken = []
    while items and len(taken) < n_items:
        taken.append(items.popleft())
    return taken


def keep_newest(items):
    """Keep of a deque's items the last one of each `key`, in their order; how many went."""
    cdef Py_ssize_t n_before = len(items)
    newest = {}
    for item in items:
        newest.pop(item.key, None)
        newest[item.key] = item
    items.clear()
    items.extend(newest.values())
    return n_before - len(items)
