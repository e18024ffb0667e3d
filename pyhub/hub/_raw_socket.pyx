# cython: language_level=3, embedsignature=False, binding=False
"""Messages of a ZeroMQ socket, each sent or received in one step.

pyzmq looks for signals within each call, also after it took a message: a handler
that raises there loses it. Here nothing comes between taking and keeping, and
the GIL is held, so that no two threads are in a socket at once. Nothing waits.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EHOSTUNREACH, EINTR
from libc.stdint cimport uintptr_t
from posix.unistd cimport getpid, pid_t

import zmq
from zmq.backend.cython import _zmq

from pyhub.errors import ForkedHandle

__all__ = ["RawSocket"]

cdef extern from "errno.h" nogil:
    int errno

cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *name)
    enum:
        RTLD_NOW
        RTLD_NOLOAD

cdef enum:  # as libzmq numbers them
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2

# zmq_msg_t: opaque, 64 bytes, aligned as a pointer.
ctypedef struct zmq_msg:
    void *words[8]

cdef int (*zmq_send)(void *, const void *, size_t, int) noexcept
cdef int (*zmq_msg_init)(zmq_msg *) noexcept
cdef int (*zmq_msg_recv)(zmq_msg *, void *, int) noexcept
cdef int (*zmq_msg_close)(zmq_msg *) noexcept
cdef int (*zmq_msg_more)(const zmq_msg *) noexcept
cdef void *(*zmq_msg_data)(zmq_msg *) noexcept
cdef size_t (*zmq_msg_size)(const zmq_msg *) noexcept
cdef const char *(*zmq_msg_gets)(const zmq_msg *, const char *) noexcept


cdef void *_function(void *library, bytes name) except NULL:
    cdef void *found = dlsym(library, name)
    if found == NULL:
        raise ImportError(
            f"the libzmq that pyzmq {zmq.__version__} uses has no {name.decode()} to be found.\n"
            "  Install pyzmq as a wheel, or from conda-forge or Debian."
        )
    return found


cdef void *_library = dlopen(_zmq.__file__.encode(), RTLD_NOW | RTLD_NOLOAD)
zmq_send = <int (*)(void *, const void *, size_t, int) noexcept>_function(_library, b"zmq_send")
zmq_msg_init = <int (*)(zmq_msg *) noexcept>_function(_library, b"zmq_msg_init")
zmq_msg_recv = <int (*)(zmq_msg *, void *, int) noexcept>_function(_library, b"zmq_msg_recv")
zmq_msg_close = <int (*)(zmq_msg *) noexcept>_function(_library, b"zmq_msg_close")
zmq_msg_more = <int (*)(const zmq_msg *) noexcept>_function(_library, b"zmq_msg_more")
zmq_msg_data = <void *(*)(zmq_msg *) noexcept>_function(_library, b"zmq_msg_data")
zmq_msg_size = <size_t (*)(const zmq_msg *) noexcept>_function(_library, b"zmq_msg_size")
zmq_msg_gets = <const char *(*)(const zmq_msg *, const char *) noexcept>_function(
    _library, b"zmq_msg_gets")


cdef class RawSocket:
    """A pyzmq socket, which nobody else uses, nor closes before this is used no more."""

    cdef object _socket
    cdef void *_handle
    cdef pid_t _pid

    def __cinit__(self, socket):
        self._socket = socket
        self._handle = <void *><uintptr_t>socket.underlying
        self._pid = getpid()

    cdef void *_open(self) except NULL:
        if self._handle == NULL:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        return self._handle

    cdef int _check(self) except -1:
        """Raise, unless only a signal came: then it is to be tried again."""
        cdef int error = errno
        if error != EINTR:
            raise zmq.ZMQError(error)
        if getpid() != self._pid:  # libzmq says so for ever there
            raise ForkedHandle.of("this socket")
        return 0

    @property
    def is_closed(self):
        """Whether it was closed."""
        return self._handle == NULL

    def close(self, linger_ms=None):
        """Close it. May be called twice."""
        self._handle = NULL
        self._socket.close(linger_ms)

    def send(self, bytes frame not None):
        """Send a frame; False if there is no room."""
        return self._send(frame, 0)

    def send_to(self, bytes peer not None, bytes frame not None):
        """Have a ROUTER send a frame; False if it has no room, or does not know `peer`."""
        return self._send(peer, ZMQ_SNDMORE) and self._send(frame, 0)

    cdef bint _send(self, bytes part, int flags) except -1:
        cdef const char *content = PyBytes_AS_STRING(part)
        while zmq_send(self._open(), content, PyBytes_GET_SIZE(part), flags | ZMQ_DONTWAIT) < 0:
            if errno == EAGAIN or errno == EHOSTUNREACH:
                return False
            self._check()
        return True

    def gather(self, received):
        """Take all messages, of one frame each, that are there, and append them to `received`."""
        cdef zmq_msg frame
        cdef bytes taken
        while self._receive(&frame):
            try:
                taken = _content(&frame)
            finally:
                zmq_msg_close(&frame)
            received.append(taken)

    def receive_from(self):
        """Return who sent a ROUTER's next message, as whom, its frame, and how many more it had.

        None: there is none. As whom: what the ZAP handler said of the sender.
        """
        cdef zmq_msg frame
        cdef const char *user
        cdef int n_more = 0
        if not self._receive(&frame):
            return None
        try:
            peer = _content(&frame)
        finally:
            zmq_msg_close(&frame)
        if not self._receive(&frame):
            raise zmq.ZMQError(errno)
        try:
            user = zmq_msg_gets(&frame, b"User-Id")
            key = b"" if user == NULL else <bytes>user
            content = _content(&frame)
            while zmq_msg_more(&frame):
                if not self._fill(&frame):
                    raise zmq.ZMQError(errno)
                n_more += 1
        finally:
            zmq_msg_close(&frame)
        return peer, key, content, n_more

    cdef bint _receive(self, zmq_msg *frame) except -1:
        """Take a frame, to be closed; False if there is none."""
        zmq_msg_init(frame)
        if self._fill(frame):
            return True
        zmq_msg_close(frame)
        return False

    cdef bint _fill(self, zmq_msg *frame) except -1:
        """Take the next one in its place; False if there is none."""
        while zmq_msg_recv(frame, self._open(), ZMQ_DONTWAIT) < 0:
            if errno == EAGAIN:
                return False
            self._check()
        return True


cdef bytes _content(zmq_msg *frame):
    return PyBytes_FromStringAndSize(<char *>zmq_msg_data(frame), zmq_msg_size(frame))
