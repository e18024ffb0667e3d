"""ZeroBuffer 1.3: a ring in shared memory for one writer and one reader, in place.

The reader creates the ring. Its size is a multiple of a frame and of the 64
bytes that sizes are rounded to, as the writer cannot go around the end when
less than a frame's header is left there.
"""

from __future__ import annotations

import contextlib
import math
import os

import numpy as np
from link import Place, Way, Words, attempts, depth, stamp
from zerobuffer import BufferConfig, Reader, Writer
from zerobuffer.exceptions import WriterDeadException, ZeroBufferException
from zerobuffer.types import Frame

__all__ = ["WAYS"]

_HEADER_BYTES = 16


class _Sender:
    def __init__(self, place: Place, n_words: int, n_receivers: int) -> None:
        self._n_bytes = 8 * n_words
        place.find()
        for _ in attempts("the reader of ZeroBuffer"):
            with contextlib.suppress(ZeroBufferException):
                self._writer = Writer(place.name)
                return

    def send(self, number: int) -> None:
        with self._writer.get_frame_buffer(self._n_bytes) as buffer:
            stamp(np.frombuffer(buffer, np.uint64), number)
        self._writer.commit_frame()

    def close(self) -> None:
        self._writer.close()


class _Receiver:
    def __init__(self, place: Place, n_words: int, index: int) -> None:
        frame_bytes = _HEADER_BYTES + 8 * n_words
        step = 64 // math.gcd(64, frame_bytes)
        n_frames = math.ceil(depth(n_words) / step) * step
        self._name = place.name
        self._frame: Frame | None = None
        self._reader = Reader(self._name, BufferConfig(1024, n_frames * frame_bytes))
        place.announce("created")

    def receive(self, timeout_s: float) -> Words | None:
        self._give_back()
        try:
            self._frame = self._reader.read_frame(timeout_s)
        except WriterDeadException:
            return None
        return None if self._frame is None else np.frombuffer(self._frame.data, np.uint64)

    def close(self) -> None:
        self._give_back()
        self._reader.close()
        # Version 1.3.0 forgets both semaphores: it lets go of them before it
        # would unlink them. Drop this when a version unlinks them.
        for direction in "wr":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/sem.sem-{direction}-{self._name}")

    def _give_back(self) -> None:
        if self._frame is not None:
            self._frame.dispose()
            self._frame = None


WAYS = {
    "zerobuffer": Way(
        "zerobuffer",
        _Sender,
        _Receiver,
        in_place=True,
        waits="sleeps",
        max_receivers=1,
        remark="one reader only",
    )
}
