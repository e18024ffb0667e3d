"""The floor: a bare ring in Cython, without any safety; see benchmarks/floor.

It makes an array of each frame; the ways that "keep arrays" make one of each
slot, once, which is less than any array that a user could call his own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from link import Place, Way, Words, depth, stamp

__all__ = ["WAYS"]

sys.path.insert(0, str(Path(__file__).parents[2] / "floor"))
from build import load


def _file(place: Place) -> Path:
    return Path("/dev/shm", place.name)


class _Sender:
    keeps_arrays = False

    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        n_slots = depth(n_words)
        descriptor = os.open(_file(place), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(descriptor, 0, 4096 + n_slots * (-(-8 * n_words // 64) * 64))
        self._ring = load().Ring(
            descriptor, n_slots, 8 * n_words, readers=n_receivers, keeps_arrays=self.keeps_arrays
        )
        os.close(descriptor)
        self._file = _file(place)
        place.announce("created")

    def send(self, number: int) -> None:
        stamp(self._ring.begin(), number)
        self._ring.end()

    def close(self) -> None:
        self._file.unlink()


class _KeepingSender(_Sender):
    keeps_arrays = True


class _Receiver:
    sleeps = False
    keeps_arrays = False

    def __init__(self, place: Place, n_words: int, index: int) -> None:
        place.find()
        descriptor = os.open(_file(place), os.O_RDWR)
        self._ring = load().Ring(
            descriptor,
            depth(n_words),
            8 * n_words,
            reader=index,
            sleeps=self.sleeps,
            keeps_arrays=self.keeps_arrays,
        )
        os.close(descriptor)

    def receive(self, timeout_s: float) -> Words | None:
        words: Words | None = self._ring.next(timeout_s)
        return words

    def close(self) -> None:
        pass


class _SleepingReceiver(_Receiver):
    sleeps = True


class _KeepingReceiver(_Receiver):
    keeps_arrays = True


class _KeepingSleepingReceiver(_SleepingReceiver):
    keeps_arrays = True


class _CopyingReceiver(_SleepingReceiver):
    def receive(self, timeout_s: float) -> Words | None:
        words = self._ring.next(timeout_s)
        return None if words is None else np.array(words)


_REMARK = "no safety: a dead reader stops it for ever"
_KEPT = "the least: arrays made once"

WAYS = {
    way.name: way
    for way in (
        Way("floor, spinning", _Sender, _Receiver, True, "polls", 496, _REMARK),
        Way("floor, futex", _Sender, _SleepingReceiver, True, "sleeps", 496, _REMARK),
        Way("floor, futex, copy", _Sender, _CopyingReceiver, False, "sleeps", 496, _REMARK),
        Way("floor, spinning, keeps arrays", _KeepingSender, _KeepingReceiver, True, "polls", 496,
            _KEPT),
        Way("floor, futex, keeps arrays", _KeepingSender, _KeepingSleepingReceiver, True, "sleeps",
            496, _KEPT),
    )
}  # fmt: skip
