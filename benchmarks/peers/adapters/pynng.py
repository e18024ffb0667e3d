"""pynng: a Pub0 and a Sub0 socket over ipc. Pub0 drops when its queue is full."""

from __future__ import annotations

import numpy as np
import pynng
from link import Place, Way, Words, depth, prepared, stamp

__all__ = ["WAYS"]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        address = f"ipc://{place.path('.nng')}"
        self._socket = pynng.Pub0(listen=address, send_buffer_size=depth(n_words))
        place.announce(address)
        self._words = prepared(n_words)

    def send(self, number: int) -> None:
        stamp(self._words, number)
        self._socket.send(self._words.tobytes())  # it takes nothing but bytes

    def close(self) -> None:
        self._socket.close()


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._socket = pynng.Sub0(
            dial=place.find(),
            topics=b"",
            recv_buffer_size=depth(n_words),
            recv_max_size=0,  # no limit; 1 MiB by default
        )
        self._timeout_s = -1.0

    def receive(self, timeout_s: float) -> Words | None:
        if timeout_s != self._timeout_s:
            self._socket.recv_timeout = int(timeout_s * 1000)
            self._timeout_s = timeout_s
        try:
            return np.frombuffer(self._socket.recv(), np.uint64)
        except pynng.Timeout:
            return None

    def close(self) -> None:
        self._socket.close()


WAYS = {
    "pynng ipc": Way(
        "pynng ipc",
        _Sender,
        _Receiver,
        in_place=False,
        waits="sleeps",
        remark="Pub0 knows no back-pressure: it drops",
    )
}
