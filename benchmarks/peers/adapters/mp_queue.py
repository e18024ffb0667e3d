"""multiprocessing.Queue: what the standard library offers first. One a receiver."""

from __future__ import annotations

import queue
from typing import Any

from link import Place, Way, Words, depth, prepared, stamp

__all__ = ["WAYS"]


def _share(context: Any, n_words: int, n_receivers: int) -> list[Any]:
    return [context.Queue(depth(n_words)) for _ in range(n_receivers)]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._queues = place.shared[:n_receivers]
        # A thread pickles an array some time after `put`: by then it must not
        # have been filled anew. The queue holds `depth` of them, and the thread
        # one more.
        self._arrays = [prepared(n_words) for _ in range(depth(n_words) + 2)]
        self._next = 0

    def send(self, number: int) -> None:
        words = self._arrays[self._next]
        self._next = (self._next + 1) % len(self._arrays)
        stamp(words, number)
        for each in self._queues:
            each.put(words)

    def close(self) -> None:
        for each in self._queues:
            each.cancel_join_thread()
            each.close()


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        self._queue = place.shared[index]

    def receive(self, timeout_s: float) -> Words | None:
        try:
            words: Words = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        return words

    def close(self) -> None:
        self._queue.close()


WAYS = {
    "multiprocessing.Queue": Way(
        "multiprocessing.Queue",
        _Sender,
        _Receiver,
        in_place=False,
        waits="sleeps",
        remark="pickles each frame, once a receiver",
        share=_share,
    )
}
