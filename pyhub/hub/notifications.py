"""A channel's notifications: one PUB socket at the producer, SUB at consumers.

They go straight from process to process, over a socket in the runtime
directory, which nobody else can enter. A notification is a hint: who misses
one finds out from the header (docs/decisions/0008).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import zmq

from pyhub._datablock import DataBlock
from pyhub.datablock import Notification
from pyhub.datablock.waiting import WordWaiter
from pyhub.hub.protocol import decode_notification, encode_notification

__all__ = ["NotificationListener", "NotificationPublisher", "NotificationSocket"]

Context = zmq.Context[zmq.Socket[bytes]]


class NotificationPublisher:
    """What a producer calls after each publish: sends one message."""

    def __init__(self, context: Context, endpoint: str, topic: str) -> None:
        self._topic = topic.encode()
        self._lock = threading.Lock()  # a producer's threads take turns
        self._socket = context.socket(zmq.PUB)
        self._socket.linger = 100  # ms: the last notice of a producer that ends
        self._socket.bind(endpoint)
        self._file = Path(endpoint.removeprefix("ipc://"))

    def __call__(self, notification: Notification) -> None:
        """Tell subscribers of a publish. Never waits: who is slow loses hints."""
        payload = encode_notification(notification)
        with self._lock:
            if not self._socket.closed:
                self._socket.send_multipart((self._topic, payload), zmq.NOBLOCK)

    def close(self) -> None:
        """Let the endpoint go."""
        with self._lock:
            if not self._socket.closed:
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
    """Wakes a consumer when its channel's producer says so."""

    def __init__(self, context: Context, endpoint: str, topic: str) -> None:
        self._socket = NotificationSocket(context, zmq.SUB)
        self._socket.linger = 0
        self._socket.rcvhwm = 1000
        self._socket.reconnect_ivl = 20  # ms: a producer that restarts
        self._socket.reconnect_ivl_max = 500
        self._socket.subscribe(topic.encode())
        self._socket.connect(endpoint)
        # Subscribing takes a moment, and a producer without a hub never
        # speaks: until it was heard, the commit word is watched instead.
        self._heard: DataBlock | None = None
        self._word = WordWaiter()

    def wait(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Sleep until a notification comes, at most `timeout_s`."""
        if self._drain(block) or block.commit != seen:
            return
        if self._heard is not block:
            self._word.wait(block, seen, timeout_s)
        elif timeout_s > 0:
            self._socket.poll(int(timeout_s * 1000) + 1)

    async def wait_async(self, block: DataBlock, seen: int, timeout_s: float) -> None:
        """Do the same without holding up the event loop."""
        if self._drain(block) or block.commit != seen:
            return
        if self._heard is not block:
            await self._word.wait_async(block, seen, timeout_s)
            return
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(self._socket.fileno(), woken.set)
        try:
            # ZeroMQ's descriptor tells of changes only: look once more.
            if not self._drain(block):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), timeout_s)
        finally:
            loop.remove_reader(self._socket.fileno())

    def fileno(self) -> int:
        """Return ZeroMQ's descriptor: readable when something changed."""
        return self._socket.fileno()

    @property
    def socket(self) -> Any:
        """The SUB socket."""
        return self._socket

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()

    def _drain(self, block: DataBlock) -> bool:
        """Take all notices off the socket; whether there was one."""
        was_told = False
        while self._socket.poll(0):
            self._socket.recv_multipart(zmq.NOBLOCK)
            self._heard = block
            was_told = True
        return was_told
