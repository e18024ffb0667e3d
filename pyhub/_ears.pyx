# cython: language_level=3, embedsignature=False, binding=False
# binding: methods that are plain are called sooner; nobody asks for their signatures.
"""Who listens to a descriptor for all threads of a program, and what they wait for by it.

As in `_handover`, each method that does not sleep or call somebody is one step.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport close as close_descriptor
from posix.unistd cimport getpid, pid_t

from pyhub._deadlines cimport end_of, left_until, ms_until
from pyhub._handover cimport Bell, Lock, Wake

__all__ = ["Answer", "Ears"]

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


cdef class Ears:
    """Who listens to a descriptor: its owner, a thread that rests; or one that stands in for it.

    Whoever waits for what comes best listens itself: it is there one change of
    threads earlier. The owner sleeps on, and listens again once nobody stands in.
    """

    cdef int _epoll
    cdef Wake _wake  # the owner's
    cdef Wake _nudge  # of who stands in
    cdef int _descriptor
    cdef unsigned long _stand_in  # which thread that is; 0: none
    cdef int _depth
    cdef uint64_t n_nudges
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
        cdef int ms = ms_until(end_of(timeout_s))
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
                if not line.try_take():
                    line.wait_for_change(left_until(deadline))
                    continue
                try:
                    receive()
                finally:
                    line.give()
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
        cdef int ms = ms_until(end_of(timeout_s))
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
