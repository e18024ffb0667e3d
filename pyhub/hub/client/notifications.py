"""A channel's notifications: one PUB socket at the producer, SUB at consumers.

They go straight from process to process, over a socket in the runtime
directory, which nobody else can enter. A notification is a hint: who misses
one finds out from the header (docs/decisions/0008).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import zmq

from pyhub._datablock import DataBlock
from pyhub.datablock import Notification
from pyhub.datablock.waiting import watch_word
from pyhub.errors import ForkedHandle
from pyhub.hub.protocol import decode_notification, encode_notification

__all__ = ["NotificationListener", "NotificationPublisher", "NotificationSocket"]

# The same message by Socket.send_multipart takes six times the instructions: it
# also serves other kinds of socket, tracking, and memoryviews.
_send = zmq.backend.Socket.send
_NOW = int(zmq.NOBLOCK)
_MORE = int(zmq.SNDMORE | zmq.NOBLOCK)

Context = zmq.Context[zmq.Socket[bytes]]


class NotificationPublisher:
    """What a producer calls after each publish: sends one message.

    Any thread may call it and close it, a signal handler and a finalizer too.
    """

    def __init__(self, context: Context, endpoint: str, topic: str) -> None:
        self._topic = topic.encode()
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a producer's threads take turns
        self._is_closed = False
        self._socket = context.socket(zmq.PUB)
        try:
            self._socket.linger = 100  # ms: the last notice of a producer that ends
            # A subscription to more than a topic can be is no subscriber's: its
            # end would overflow libzmq's stack (libzmq #4671).
            self._socket.maxmsgsize = 1024
            self._socket.bind(endpoint)
        except BaseException:
            self._socket.close()
            raise
        self._file = Path(endpoint.removeprefix("ipc://"))

    def __call__(self, notification: Notification) -> None:
        """Tell subscribers of a publish. Never waits: who is slow loses hints."""
        payload = encode_notification(notification)
        with self._lock:
            if self._is_closed:
                return
            try:
                _send(self._socket, self._topic, _MORE)
                _send(self._socket, payload, _NOW)
            except zmq.ZMQError:
                # A signal handler may have closed it just now.
                if not self._is_closed:
                    raise

    @property
    def is_closed(self) -> bool:
        """Whether its socket was let go."""
        return self._is_closed

    def close(self) -> None:
        """Let the endpoint go; in a fork's child it is the parent's."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._socket.close()
                # libzmq leaves the file. The channel is still ours here: nobody
                # else can have bound it.
                self._file.unlink(missing_ok=True)


class NotificationSocket(zmq.Socket[bytes]):
    """A SUB socket on a channel's notifications, for `zmq.Poller`.

    Messages are two frames, the channel's name and a payload; `receive`
    decodes one.
    """

    def receive(self, flags: int = 0) -> Notification:
        """Return the next notification; blocks unless `zmq.NOBLOCK`."""
        _, payload = self.recv_multipart(flags)
        return decode_notification(payload)

    def __call__(self) -> NotificationSocket:
        """Return itself: ``consumer.notification_socket()`` is the seed's spelling."""
        return self


class NotificationListener:
    """Wakes a consumer when its channel's producer says so.

    One thread waits; any other may close it, and so may a signal handler that
    interrupted the wait.
    """

    def __init__(self, context: Context, endpoint: str, topic: str) -> None:
        self._pid = os.getpid()
        # ZeroMQ's sockets may not be closed while another thread is in them.
        self._lock = threading.RLock()
        self._is_waiting = False
        self._is_closed = False
        self._socket = NotificationSocket(context, zmq.SUB)
        try:
            self._socket.linger = 0
            self._socket.rcvhwm = 1000
            self._socket.reconnect_ivl = 20  # ms: a producer that restarts
            self._socket.reconnect_ivl_max = 500
            self._socket.subscribe(topic.encode())
            self._socket.connect(endpoint)
        except BaseException:
            self._socket.close()
            raise
        # Subscribing takes a moment, and a producer without a hub never
        # speaks: until it was heard, the commit word is watched instead.
        self._heard: DataBlock | None = None
        # A further producer, without a hub, publishes without a word: then the
        # commit word is watched for as long as this segment lasts.
        self._silent: DataBlock | None = None
        # Once may be a hint that is late, or lost: twice running is silence.
        self._doubted: DataBlock | None = None
        self._descriptor = -1

    def wait(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Sleep until a notification comes, at most `timeout_s`."""
        with self._using():
            if self._is_closed or self._drain(block) or block.commit != seen:
                return
            if self._hears(block):
                if timeout_s > 0 and not self._socket.poll(int(timeout_s * 1000) + 1):
                    self._note_silence(block, seen)
                return
        block.wait(seen, timeout_s)

    async def wait_async(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Do the same without holding up the event loop."""
        with self._using():
            if self._is_closed or self._drain(block) or block.commit != seen:
                return
            if self._descriptor < 0:
                # One of our own: the user's loop may watch ZeroMQ's itself.
                self._descriptor = os.dup(self._socket.fileno())
            descriptor = self._descriptor
        if not self._hears(block):
            await watch_word(block, seen, timeout_s)
            return
        import asyncio  # whoever calls this has it already

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(descriptor, woken.set)
        try:
            # ZeroMQ's descriptor tells of changes only: look once more.
            with self._using():
                if self._is_closed or self._drain(block):
                    return
            try:
                async with asyncio.timeout(timeout_s):
                    await woken.wait()
            except TimeoutError:
                self._note_silence(block, seen)
        finally:
            loop.remove_reader(descriptor)

    def fileno(self) -> int:
        """Return ZeroMQ's descriptor: readable when something changed."""
        self._check()
        return self._socket.fileno()

    @property
    def socket(self) -> NotificationSocket:
        """The SUB socket."""
        self._check()
        return self._socket

    @property
    def is_closed(self) -> bool:
        """Whether its socket was let go."""
        return self._socket.closed

    def close(self) -> None:
        """Unsubscribe; in a fork's child it is the parent's."""
        if self._pid != os.getpid():
            return
        self._is_closed = True
        with self._lock:
            if not self._is_waiting:  # else this interrupts the wait, which closes it
                self._let_go()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        self._check()
        with self._lock:
            self._is_waiting = True
            try:
                yield
            except zmq.ContextTerminated:
                # A signal handler closed this and its hub: who reads finds out.
                if not self._is_closed:
                    raise
            finally:
                self._is_waiting = False
                if self._is_closed:
                    self._let_go()

    def _let_go(self) -> None:
        self._socket.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check(self) -> None:
        # A fork's child would take the parent's wake-ups off the descriptor.
        if self._pid != os.getpid():
            raise ForkedHandle.of("this consumer")

    def _hears(self, block: DataBlock) -> bool:
        """Whether each publish of `block` is told."""
        return self._heard is block and self._silent is not block

    def _note_silence(self, block: DataBlock, seen: int) -> None:
        if block.commit != seen:
            if self._doubted is block:
                self._silent = block
            self._doubted = block

    def _drain(self, block: DataBlock) -> bool:
        """Take all notifications off the socket; whether there was one."""
        was_told = False
        # Asking for the events, unlike a recv that fails, makes the descriptor quiet.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._socket.recv_multipart(zmq.NOBLOCK)
            self._heard = block
            self._doubted = None
            was_told = True
        return was_told
