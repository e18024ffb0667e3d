"""pvapy: an NTNDArray from a PVAccess server, by a monitor with a queue. EPICS again.

Loss is as silent as with p4p, and made visible in the same way.
"""

from __future__ import annotations

import os
import socket

import pvaccess
from link import Place, Way, Words, depth, prepared, stamp

__all__ = ["WAYS"]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._words = prepared(n_words)
        self._name = place.name
        port = _free_udp_port()
        os.environ.update(
            EPICS_PVAS_INTF_ADDR_LIST="127.0.0.1",
            EPICS_PVAS_SERVER_PORT="0",
            EPICS_PVAS_BROADCAST_PORT=str(port),
            EPICS_PVAS_AUTO_BEACON_ADDR_LIST="NO",
            EPICS_PVAS_BEACON_ADDR_LIST="127.0.0.1",
        )
        self._server = pvaccess.PvaServer(self._name, self._image())
        place.announce(str(port))

    def send(self, number: int) -> None:
        stamp(self._words, number)
        self._server.updateUnchecked(self._name, self._image())

    def close(self) -> None:
        self._server.stop()

    def _image(self) -> pvaccess.NtNdArray:
        # Anew each time: the server keeps references to what it was given.
        image = pvaccess.NtNdArray()
        image["value"] = {"ulongValue": self._words}
        image["uniqueId"] = int(self._words[1]) & 0x7FFFFFFF
        return image


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        os.environ.update(
            EPICS_PVA_ADDR_LIST="127.0.0.1",
            EPICS_PVA_AUTO_ADDR_LIST="NO",
            EPICS_PVA_INTF_ADDR_LIST="127.0.0.1",
            EPICS_PVA_BROADCAST_PORT=place.find(),
        )
        self._queue = pvaccess.PvObjectQueue(depth(n_words))
        self._channel = pvaccess.Channel(place.name)
        self._channel.qMonitor(self._queue, f"record[queueSize={depth(n_words)}]field()")

    def receive(self, timeout_s: float) -> Words | None:
        try:
            words: Words = self._queue.get(timeout_s)["value"][0]["ulongValue"]
        except pvaccess.QueueEmpty:
            return None
        # The first is what the server began with: not a frame.
        return words if words[0] else self.receive(timeout_s)

    def close(self) -> None:
        self._channel.stopMonitor()


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


WAYS = {
    "pvapy": Way(
        "pvapy",
        _Sender,
        _Receiver,
        in_place=False,
        waits="sleeps",
        remark="NTNDArray, PVAccess; loses silently when its queue is full",
    )
}
