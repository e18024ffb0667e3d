"""Zenoh: peer to peer over a Unix socket, with its shared memory and without.

Multicast and gossip are off. The publisher waits on congestion; the
subscriber's callback waits while its queue is full. In the Python binding a
shared buffer can be written in place, but read only by copying it.
"""

from __future__ import annotations

import json
import queue
import time
from typing import Any, ClassVar

import numpy as np
import zenoh
from link import Place, Way, Words, depth, prepared, stamp
from zenoh import shm

__all__ = ["WAYS"]

_KEY = "frames"


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        socket = f"unixsock-stream/{place.path('.sock')}"
        self._session = zenoh.open(_configuration(self.is_shared, listen=[socket]))
        self._publisher = self._session.declare_publisher(
            _KEY,
            congestion_control=zenoh.CongestionControl.BLOCK,
            express=True,
        )
        self._prepare(n_words)
        place.announce(socket)

    is_shared: ClassVar[bool] = False

    def _prepare(self, n_words: int) -> None:
        self._words = prepared(n_words)

    def send(self, number: int) -> None:
        stamp(self._words, number)
        self._publisher.put(self._words.tobytes())

    def close(self) -> None:
        self._session.close()


class _SharedSender(_Sender):
    is_shared = True

    def _prepare(self, n_words: int) -> None:
        self._n_bytes = 8 * n_words
        # The queue of each side, what is on its way, and the rounding of pages.
        n_bytes = (2 * depth(n_words) + 2) * max(self._n_bytes, 4096)
        self._provider = shm.ShmProvider.default_backend(n_bytes)
        self._policy = shm.BlockOn(shm.GarbageCollect())

    def send(self, number: int) -> None:
        buffer = self._provider.alloc(self._n_bytes, self._policy)
        end = self._n_bytes
        mark = number.to_bytes(8, "little")
        buffer[8:16] = mark
        buffer[end - 8 : end] = mark
        buffer[0:8] = time.perf_counter_ns().to_bytes(8, "little")
        self._publisher.put(buffer)


class _Receiver:
    is_shared: ClassVar[bool] = False

    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._depth = depth(n_words)
        self._queue: queue.SimpleQueue[zenoh.Sample] = queue.SimpleQueue()
        endpoint = place.find()
        self._session = zenoh.open(_configuration(self.is_shared, connect=[endpoint]))
        self._subscriber = self._session.declare_subscriber(_KEY, self._take)

    def receive(self, timeout_s: float) -> Words | None:
        try:
            sample = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return np.frombuffer(sample.payload.to_bytes(), np.uint64)

    def close(self) -> None:
        # Else the callback might wait for room for ever, and the session for it.
        self._depth = 1 << 62
        self._session.close()

    def _take(self, sample: zenoh.Sample) -> None:
        while self._queue.qsize() >= self._depth:
            time.sleep(0.0005)
        self._queue.put(sample)


class _SharedReceiver(_Receiver):
    is_shared = True


def _configuration(is_shared: bool, **endpoints: list[str]) -> Any:
    configuration = zenoh.Config()
    for key, value in {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": is_shared,
        "listen/endpoints": endpoints.get("listen", []),
        "connect/endpoints": endpoints.get("connect", []),
    }.items():
        configuration.insert_json5(key, json.dumps(value))
    return configuration


WAYS = {
    way.name: way
    for way in (
        Way(
            "zenoh, shared memory",
            _SharedSender,
            _SharedReceiver,
            False,
            "sleeps",
            remark="written in place; the binding reads by copying only",
        ),
        Way("zenoh", _Sender, _Receiver, False, "sleeps", remark="over a Unix socket"),
    )
}
