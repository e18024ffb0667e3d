"""pyzmq: a PUB and a SUB socket, what most laboratories write by themselves.

The socket option ZMQ_XPUB_NODROP makes PUB wait at its high-water mark instead
of dropping; it is on but for one way, which shows what PUB does by default.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import zmq
from link import Place, Way, Words, depth, prepared, stamp

__all__ = ["WAYS"]


class _Sender:
    transport: ClassVar[str] = "ipc"
    copies: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        n_queued = depth(n_words)
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.sndhwm = n_queued
        self._socket.setsockopt(zmq.XPUB_NODROP, self.waits)
        if self.transport == "ipc":
            address = f"ipc://{place.path('.ipc')}"
            self._socket.bind(address)
        else:
            self._socket.bind("tcp://127.0.0.1:*")
            address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        place.announce(address)
        # Without a copy an array belongs to libzmq until it is sent, which is
        # the case, with NODROP, when the queue has moved on by its length; one
        # more is being sent, and one is being filled.
        n_arrays = 1 if self.copies else n_queued + 2
        self._arrays = [prepared(n_words) for _ in range(n_arrays)]
        self._next = 0

    def send(self, number: int) -> None:
        words = self._arrays[self._next]
        self._next = (self._next + 1) % len(self._arrays)
        stamp(words, number)
        self._socket.send(words, copy=self.copies, track=False)

    def close(self) -> None:
        self._context.destroy()


class _Receiver:
    copies: ClassVar[bool] = True

    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = depth(n_words)
        self._socket.subscribe(b"")
        self._socket.connect(place.find())
        self._timeout_s = -1.0

    def receive(self, timeout_s: float) -> Words | None:
        if timeout_s != self._timeout_s:
            self._socket.rcvtimeo = int(timeout_s * 1000)
            self._timeout_s = timeout_s
        try:
            if self.copies:
                return np.frombuffer(self._socket.recv(), np.uint64)
            return np.frombuffer(self._socket.recv(copy=False, track=False).buffer, np.uint64)
        except zmq.Again:
            return None

    def close(self) -> None:
        self._context.destroy(linger=0)


class _TcpSender(_Sender):
    transport = "tcp"


class _NoCopySender(_Sender):
    copies = False


class _TcpNoCopySender(_Sender):
    transport = "tcp"
    copies = False


class _DroppingSender(_Sender):
    waits = False


class _NoCopyReceiver(_Receiver):
    copies = False


_NO_COPY = "copy=False at both ends; the kernel still copies twice"

WAYS = {
    way.name: way
    for way in (
        Way("pyzmq ipc, copy", _Sender, _Receiver, False, "sleeps", remark="PUB with NODROP"),
        Way("pyzmq ipc", _NoCopySender, _NoCopyReceiver, False, "sleeps", remark=_NO_COPY),
        Way("pyzmq tcp, copy", _TcpSender, _Receiver, False, "sleeps", remark="PUB with NODROP"),
        Way("pyzmq tcp", _TcpNoCopySender, _NoCopyReceiver, False, "sleeps", remark=_NO_COPY),
        Way(
            "pyzmq ipc, copy, drops",
            _DroppingSender,
            _Receiver,
            False,
            "sleeps",
            remark="PUB as it is by default: drops at the high-water mark",
        ),
    )
}
