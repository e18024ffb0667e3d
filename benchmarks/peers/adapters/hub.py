"""pyhub itself, with each way of waiting.

Most are plain readers, which the producer neither knows nor waits for: what
they are too slow for they lose, and count. The producer waits for those that
"block": nothing is lost, also when a reader dies.
"""

from __future__ import annotations

import os
from typing import Any

from link import Place, Way, Words, depth, prepared, stamp

import pyhub

__all__ = ["WAYS"]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._producer = pyhub.DataBlockProducer.create(
            place.name, dtype="u8", shape=(n_words,), slots=depth(n_words)
        )
        place.announce("created")

    def send(self, number: int) -> None:
        with self._producer.publish() as slot:
            stamp(slot.data, number)

    def close(self) -> None:
        self._producer.close()


class _CopyingSender(_Sender):
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        super().__init__(place, n_words, n_receivers)
        self._words = prepared(n_words)

    def send(self, number: int) -> None:
        stamp(self._words, number)
        self._producer.put(self._words)


class _HubSender(_CopyingSender):
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        os.environ["PYHUB_RUNTIME_DIR"] = place.directory
        self._hub = pyhub.MessageHub()
        self._producer = self._hub.create_datablock_producer(
            place.name, dtype="u8", shape=(n_words,), slots=depth(n_words)
        )
        self._words = prepared(n_words)
        place.announce("created")

    def close(self) -> None:
        self._hub.close()


class _Receiver:
    wait = "spin"
    _frame: Any = None

    def __init__(self, place: Place, n_words: int, index: int) -> None:
        place.find()
        self._consumer = self.open(place)

    def open(self, place: Place) -> pyhub.DataBlockConsumer:
        return pyhub.DataBlockConsumer.attach(
            place.name, wait=self.wait, policy="every", timeout_s=15
        )

    def receive(self, timeout_s: float) -> Words | None:
        try:
            self._frame = self._consumer.look(timeout_s)
        except pyhub.WaitTimeout:
            return None
        return self._frame.data

    def is_whole(self) -> bool:
        return self._frame.is_valid()

    def close(self) -> None:
        self._consumer.close()


class _FutexReceiver(_Receiver):
    wait = "futex"


class _AdaptiveReceiver(_Receiver):
    wait = "adaptive"


class _CopyingReceiver(_FutexReceiver):
    def receive(self, timeout_s: float) -> Words | None:
        try:
            return self._consumer.read(timeout_s).data
        except pyhub.WaitTimeout:
            return None

    def is_whole(self) -> bool:
        return True


class _BlockingReceiver(_Receiver):
    def is_whole(self) -> bool:
        return True

    def open(self, place: Place) -> pyhub.DataBlockConsumer:
        return pyhub.DataBlockConsumer.attach(
            place.name, wait=self.wait, policy="block", timeout_s=15
        )

    def receive(self, timeout_s: float) -> Words | None:
        if self._frame is not None:
            self._frame.release()
            self._frame = None
        try:
            self._frame = self._consumer.pin(timeout_s)
        except pyhub.WaitTimeout:
            return None
        return self._frame.data


class _BlockingFutexReceiver(_BlockingReceiver):
    wait = "futex"


class _HubReceiver(_CopyingReceiver):
    def open(self, place: Place) -> pyhub.DataBlockConsumer:
        os.environ["PYHUB_RUNTIME_DIR"] = place.directory
        self._hub = pyhub.MessageHub()
        return self._hub.find_datablock_consumer(place.name, policy="every", timeout_s=15)

    def close(self) -> None:
        self._hub.close()


WAYS = {
    way.name: way
    for way in (
        Way("pyhub, spin", _Sender, _Receiver, in_place=True, waits="polls"),
        Way("pyhub, adaptive", _Sender, _AdaptiveReceiver, in_place=True, waits="sleeps"),
        Way("pyhub, futex", _Sender, _FutexReceiver, in_place=True, waits="sleeps"),
        Way("pyhub, spin, block", _Sender, _BlockingReceiver, in_place=True, waits="polls"),
        Way("pyhub, futex, block", _Sender, _BlockingFutexReceiver, in_place=True, waits="sleeps"),
        Way("pyhub, futex, copy", _CopyingSender, _CopyingReceiver, in_place=False, waits="sleeps"),
        Way("pyhub, notification", _HubSender, _HubReceiver, in_place=False, waits="sleeps"),
    )
}
