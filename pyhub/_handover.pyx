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

from pyhub._abi cimport phb_futex_wait, phb_futex_wake, phb_monotonic_ns

from pyhub.errors import ForkedHandle

__all__ = [
    "Answer", "Bell", "Ears", "Lock", "Wake", "deadline_after", "keep_newest", "left_until", "take",
]

cdef extern from "sys/eventfd.h" nogil:
    int eventfd(unsigned int initval, int flags)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long nfds, int timeout)
    enum:
        POLLIN

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EINTR

cdef int64_t _LONGEST_NS = 3_600_000_000_000  # one sleep; then it is looked again
cdef double _LONGEST_S = 1e9  # as messages have it, too (`protocol.Seconds`)


cdef int64_t _until(double timeout_s) noexcept:
    """Return when a wait ends, ns."""
    if not timeout_s < _LONGEST_S:
        timeout_s = _LONGEST_S
    return phb_monotonic_ns() + <int64_t>(1e9 * timeout_s)


cdef int _ms_until(int64_t end) noexcept:
    cdef int64_t left = end - phb_monotonic_ns()
    if left <= 0:
        return 0
    return <int>((left if left < _LONGEST_NS else _LONGEST_NS) // 1_000_000 + 1)


@cython.auto_pickle(False)
cdef class Bell:
    """Counts its strokes: who has seen `n_strokes` can sleep until the next one."""

    cdef readonly uint32_t n_strokes  # how often it was rung
    cdef readonly uint32_t n_waiting  # how many wait now; for tests

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
        cdef int64_t end = _until(timeout_s)
        cdef pid_t pid = getpid()
        cdef int64_t left
        cdef bint is_quiet
        self.n_waiting += 1
        try:
            while self.n_strokes == seen:
                left = end - phb_monotonic_ns()
                if left <= 0:
                    return False
                left = left if left < _LONGEST_NS else _LONGEST_NS
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

    cdef readonly int fd

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


cdef class Answer:
    """What somebody waits for: a value, or an error instead; the first that is given.

    Parameters
    ----------
    ears
        Whose listener may be the one that waits: it is told as well.
    """

    cdef Bell _bell
    cdef Ears _ears
    cdef readonly bint is_done  # whether it was given
    cdef readonly object error  # that was given; None: a value was, or nothing yet
    cdef object _value
    cdef list _callbacks
    cdef object __weakref__

    def __cinit__(self, Ears ears=None):
        self._bell = Bell()
        self._ears = ears
        self._callbacks = []

    def set(self, value):
        """Give a value; whether nothing was given before."""
        return self._give(value, None)

    def fail(self, error):
        """Give an error; whether nothing was given before."""
        return self._give(None, error)

    cdef bint _give(self, value, error) except -1:
        if self.is_done:
            return False
        self._value = value
        self.error = error
        self.is_done = True
        self._bell.ring()
        if self._ears is not None:
            self._ears.nudge()
        while self._callbacks:
            self._callbacks.pop()()
        return True

    cpdef bint is_awaited(self) noexcept:
        """Whether it was not given yet."""
        return not self.is_done

    cpdef bint wait(self, double timeout_s) except -1:
        """Sleep until it is given, at most so long; whether it is."""
        return self.is_done or self._bell.wait(0, timeout_s)

    def result(self):
        """Return the value that was given, or raise the error; None before."""
        if self.error is not None:
            raise self.error
        return self._value

    def on_done(self, callback):
        """Have `callback` called when it is given, by whoever gives it; or now, if it is."""
        if not self.is_done:
            self._callbacks.append(callback)
        else:
            callback()

    def off_done(self, callback):
        """Have it called no more, if it was not yet."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    @property
    def is_called_for(self):
        """Whether somebody is to be called: then it is not for a thread that may be interrupted."""
        return bool(self._callbacks)


cdef class Lock:
    """A lock that knows whose it is; its holder may take it again."""

    cdef Bell _bell
    cdef unsigned long _holder
    cdef int _depth
    cdef pid_t _pid

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
            self._bell.wait(self._bell.n_strokes, _LONGEST_S)
        self._take(me)

    def __exit__(self, *_):
        self._give()

    cdef void _take(self, unsigned long thread) noexcept:
        self._holder = thread
        self._depth += 1

    cdef void _give(self):
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
        if self._lock._holder == 0:
            self._lock._take(PyThread_get_thread_ident())
            self._is_taken = True
        return self._is_taken

    def __exit__(self, *_):
        if self._is_taken:
            self._is_taken = False
            self._lock._give()


cdef class Ears:
    """Who listens to a descriptor: its owner, a thread that rests; or one that stands in for it.

    Whoever waits for what comes best listens itself: it is there one change of
    threads earlier. The owner sleeps on, and listens again once nobody stands in.
    """

    cdef int _epoll
    cdef Wake _wake  # the owner's
    cdef Wake _nudge  # the listener's
    cdef int _descriptor
    cdef unsigned long _stand_in  # who stands in
    cdef int _depth
    cdef uint64_t n_nudges  # of who stands in
    cdef bint _is_closed
    cdef pid_t _pid

    def __cinit__(self):
        cdef epoll_event event
        self._pid = getpid()
        self._descriptor = self._epoll = -1
        self._wake = Wake()
        self._nudge = Wake()
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        event.events = EPOLLIN
        event.data.fd = self._wake.fd
        if self._epoll < 0 or epoll_ctl(self._epoll, EPOLL_CTL_ADD, self._wake.fd, &event):
            raise OSError(errno, "epoll")

    def __dealloc__(self):
        if self._epoll >= 0:
            close_descriptor(self._epoll)

    # --- For the owner ---

    def open(self, int descriptor):
        """Listen to `descriptor` from now on."""
        self._descriptor = descriptor
        if self._control(EPOLL_CTL_ADD):
            raise OSError(errno, "epoll_ctl")
        self.nudge()  # to wait for this one

    def shut(self):
        """Listen to it no more: it is about to be closed. Whoever stood in has to look."""
        self._control(EPOLL_CTL_DEL)
        self._descriptor = -1
        self.nudge()

    def rest(self, double timeout_s):
        """Sleep until something comes to the owner's ears, or it is called; at most so long."""
        cdef epoll_event events[2]
        cdef int epoll = self._epoll
        cdef int ms = _ms_until(_until(timeout_s))
        with nogil:
            epoll_wait(epoll, events, 2, ms)
        self._wake.quiet()

    def close(self):
        """Let the descriptors go. May be called twice.

        Who stands in may be about to sleep on one by its number, which must not be
        another file's: it is woken, and closes that one itself.
        """
        self.shut()
        self._is_closed = True
        self._wake.close()
        if self._stand_in:
            self._nudge.wake()
        else:
            self._nudge.close()
        cdef int epoll = self._epoll
        self._epoll = -1
        if epoll >= 0:
            close_descriptor(epoll)

    # --- For others ---

    def call(self):
        """Have the owner look."""
        self._wake.wake()

    cpdef void nudge(self):
        """Have whoever stands in look again: there may be something it does not hear of."""
        self.n_nudges += 1
        if self._stand_in and self._stand_in != PyThread_get_thread_ident():
            self._nudge.wake()

    def listen_while(self, is_needed, receive, Lock line not None, double deadline):
        """Stand in, and have `receive` called when something comes, as long as that is needed.

        At most until `deadline` (s, of the monotonic clock); in a fork's child, not at
        all. `receive` is called with the line taken; what comes while another thread
        has it, that one takes. It may be called early.

        Returns
        -------
        bool
            Whether this thread could: nobody else stood in, and there was something to hear.
        """
        cdef uint64_t seen
        cdef double left_s
        if not self._begin():
            return False
        try:
            while self._descriptor >= 0:
                seen = self.n_nudges
                # `is_needed` may be compiled: then nobody else looks for signals.
                PyErr_CheckSignals()
                if not is_needed():
                    break
                left_s = left_until(deadline)
                # A fork's child would take what is its parent's. No handler runs from here on.
                if left_s == 0 or getpid() != self._pid:
                    break
                # What came before, was taken by whoever sent or received last.
                if not self._wait(seen, left_s):
                    continue
                if line._holder:
                    line._bell.wait(line._bell.n_strokes, left_until(deadline))
                    continue
                line._take(PyThread_get_thread_ident())
                try:
                    receive()
                finally:
                    line._give()
        finally:
            self._end()
        return True

    cdef bint _begin(self) noexcept:
        cdef unsigned long me = PyThread_get_thread_ident()
        if (self._stand_in and self._stand_in != me) or self._descriptor < 0 or self._is_closed:
            return False
        if getpid() != self._pid:  # its parent listens, by the same descriptors
            return False
        self._depth += 1
        if self._stand_in == 0:
            self._stand_in = me
            self._control(EPOLL_CTL_MOD)
        return True

    cdef void _end(self):
        self._depth -= 1
        if self._depth == 0 and getpid() == self._pid:
            self._stand_in = 0
            self._control(EPOLL_CTL_MOD)
            if self._is_closed:
                self._nudge.close()

    cdef bint _wait(self, uint64_t seen, double timeout_s) except -1:
        """Sleep until something comes, or there was a nudge after `seen`; or shorter.

        Whether it was no signal that came.
        """
        if self.n_nudges != seen:
            return True
        cdef pollfd ways[2]
        cdef int ms = _ms_until(_until(timeout_s))
        cdef int n_ready
        ways[0].fd = self._nudge.fd
        ways[1].fd = self._descriptor
        ways[0].events = ways[1].events = POLLIN
        with nogil:
            n_ready = poll(ways, 2, ms)
        if n_ready > 0 and ways[0].revents:
            self._nudge.quiet()
        return n_ready >= 0 or errno != EINTR

    cdef int _control(self, int operation) noexcept:
        cdef epoll_event event
        if self._descriptor < 0 or self._epoll < 0:
            return 0
        event.events = 0 if self._stand_in else EPOLLIN
        event.data.fd = self._descriptor
        return epoll_ctl(self._epoll, operation, self._descriptor, &event)


def deadline_after(timeout_s):
    """Return when a wait of `timeout_s` ends, in monotonic time (s); None: never, infinity.

    Raises
    ------
    ValueError
        It is no time: negative, or not a number.
    """
    cdef double seconds
    if timeout_s is None:
        return INFINITY
    try:
        seconds = timeout_s + 0.0  # a text is no time, though float() takes it
    except OverflowError:  # an integer beyond all floats
        seconds = INFINITY if timeout_s > 0 else -INFINITY
    if not seconds >= 0:  # NaN neither
        raise ValueError(
            f"timeout_s={timeout_s!r} is no time to wait.\n"
            "  Use seconds, 0 for not at all, or None for as long as it takes."
        )
    return 1e-9 * phb_monotonic_ns() + seconds


cpdef double left_until(double deadline) noexcept:
    """Return the seconds that are left: not below 0, and finite."""
    cdef double left_s = deadline - 1e-9 * phb_monotonic_ns()
    return 0.0 if left_s <= 0 else left_s if left_s < _LONGEST_S else _LONGEST_S


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
