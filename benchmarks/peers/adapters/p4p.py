"""p4p: an NTNDArray from a PVAccess server, by a monitor. EPICS, over loopback TCP.

A monitor whose queue is full overwrites its newest entry and says nothing: the
queue is made large, and what is lost is seen by the numbers. The entry that is
overwritten seems to be one with other monitors', who then get the new frame twice.
"""

from __future__ import annotations

import json
import queue
from typing import Any

from link import Place, Way, Words, depth, prepared, stamp
from p4p import Value
from p4p.client.thread import Context
from p4p.nt import NTNDArray
from p4p.server import Server
from p4p.server.thread import SharedPV
from p4p.util import ThreadedWorkQueue

__all__ = ["WAYS"]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._words = prepared(n_words)
        self._type = NTNDArray.buildType()
        # Values are built here rather than by NTNDArray().wrap, which copies twice.
        self._pv = SharedPV(initial=self._value())
        # Isolated: on loopback, with ports of its own.
        self._server = Server(providers=[{place.name: self._pv}], isolate=True)
        place.announce(json.dumps(self._server.conf()))

    def send(self, number: int) -> None:
        stamp(self._words, number)
        self._pv.post(self._value())

    def close(self) -> None:
        self._server.stop()

    def _value(self) -> Value:
        n_words = len(self._words)
        dimension = {"size": n_words, "offset": 0, "fullSize": n_words, "binning": 1}
        return Value(
            self._type,
            {
                "value": ("ulongValue", self._words),
                "dimension": [dimension],
                "uncompressedSize": self._words.nbytes,
                "uniqueId": int(self._words[1]) & 0x7FFFFFFF,
            },
        )


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # nt=False: the Value as it came, whose array is not copied again.
        self._context = Context("pva", conf=json.loads(place.find()), useenv=False, nt=False)
        # One worker: the context's own are four, and updates overtake each other.
        self._worker = ThreadedWorkQueue(name=place.name, workers=1, daemon=True).start()
        request = f"record[queueSize={depth(n_words)}]field()"
        self._monitor = self._context.monitor(
            place.name, self._queue.put, request=request, queue=self._worker
        )

    def receive(self, timeout_s: float) -> Words | None:
        try:
            words: Words = self._queue.get(timeout=timeout_s).value
        except queue.Empty:
            return None
        # The first is what the server began with: not a frame.
        return words if words[0] else self.receive(timeout_s)

    def close(self) -> None:
        self._monitor.close()
        self._worker.stop()
        self._context.close()


WAYS = {
    "p4p": Way(
        "p4p",
        _Sender,
        _Receiver,
        in_place=False,
        waits="sleeps",
        remark="NTNDArray, PVAccess; loses silently when its queue is full, and repeats",
        may_repeat=True,
    )
}
