"""multiprocessing.shared_memory: a ring of slots, and two semaphores a receiver.

What one writes by hand with the standard library: in place, nothing lost. The
semaphores can only be inherited, and a receiver that dies stops the sender.
"""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from link import Place, Way, Words, depth, stamp

__all__ = ["WAYS"]


def _share(context: Any, n_words: int, n_receivers: int) -> list[tuple[Any, Any]]:
    """Make (filled, free) for each receiver."""
    n_slots = depth(n_words)
    return [(context.Semaphore(0), context.Semaphore(n_slots)) for _ in range(n_receivers)]


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        n_slots = depth(n_words)
        self._semaphores = place.shared[:n_receivers]
        self._memory = SharedMemory(place.name, create=True, size=n_slots * n_words * 8)
        self._slots = _slots(self._memory, n_slots, n_words)
        self._next = 0
        place.announce("created")

    def send(self, number: int) -> None:
        for _, free in self._semaphores:
            free.acquire()
        stamp(self._slots[self._next], number)
        self._next = (self._next + 1) % len(self._slots)
        for filled, _ in self._semaphores:
            filled.release()

    def close(self) -> None:
        self._slots.clear()
        self._memory.close()
        self._memory.unlink()


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        place.find()
        n_slots = depth(n_words)
        self._filled, self._free = place.shared[index]
        # Attaching registers the memory with a resource tracker, which would
        # unlink it when the receiver ends (Python issue 82300). Processes that
        # one parent started share its tracker, so here that does no harm; between
        # programs started by hand it would. track=False (Python 3.13) avoids it.
        self._memory = SharedMemory(place.name)
        self._slots = _slots(self._memory, n_slots, n_words)
        self._next = 0
        self._holds = False

    def receive(self, timeout_s: float) -> Words | None:
        if self._holds:
            self._free.release()
            self._holds = False
        if not self._filled.acquire(timeout=timeout_s):
            return None
        self._holds = True
        words = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        return words

    def close(self) -> None:
        self._slots.clear()
        self._memory.close()


def _slots(memory: SharedMemory, n_slots: int, n_words: int) -> list[Words]:
    return [
        np.frombuffer(memory.buf, np.uint64, n_words, index * n_words * 8)
        for index in range(n_slots)
    ]


WAYS = {
    "shared_memory, semaphores": Way(
        "shared_memory, semaphores",
        _Sender,
        _Receiver,
        in_place=True,
        waits="sleeps",
        remark="a ring written by hand; survives the death of nobody",
        share=_share,
    )
}
