"""One reader of `growth_readers.py`, in a process of its own, at rest most of the time.

Commands come line by line on stdin, each is answered by a line of JSON:

    attach KIND BATCH    begin to read that channel; of frame i the first word is i // BATCH
    detach               read the newest frame, say what was read, and leave

The end of stdin ends the program, and so does a watchdog.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

import pyhub

_LONGEST_S = 900
_REST_S = 0.05
_LISTEN_EVERY = 20  # frames, of a reader that sleeps until each


class _Reading:
    """What one attachment was given."""

    def __init__(self, kind: str, batch: int) -> None:
        is_admitted = kind == "drop_oldest"
        self.sleeps = kind == "futex"
        self._batch = batch
        self._consumer = pyhub.DataBlockConsumer.attach(
            kind,
            policy="drop_oldest" if is_admitted else "latest",
            reader=f"reader-{os.getpid()}" if is_admitted else None,
            wait="futex",
        )
        self.first = self.last = -1
        self.take(0)

    def take(self, timeout_s: float) -> bool:
        """Read a frame and check it; False: there is none."""
        try:
            frame = self._consumer.read(timeout_s)
        except pyhub.WaitTimeout:
            return False
        if frame.frame_id <= self.last or frame.data[0] != frame.frame_id // self._batch:
            raise AssertionError(f"frame {frame.frame_id} holds {frame.data[0]}, after {self.last}")
        self.first = frame.frame_id if self.first < 0 else self.first
        self.last = frame.frame_id
        return True

    def end(self) -> dict[str, int]:
        """Read what is left, leave, and return the counts."""
        while self.take(0):
            pass
        self._consumer.close()
        return {
            "first": self.first,
            "last": self.last,
            "n_read": self._consumer.n_read,
            "n_lost": self._consumer.n_lost,
        }


def main() -> None:
    """Do as stdin says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends us
    signal.alarm(_LONGEST_S)
    reading: _Reading | None = None
    _answer({"pid": os.getpid()})
    while True:
        if reading is not None and reading.sleeps:
            for _ in range(_LISTEN_EVERY):
                if not reading.take(_REST_S):
                    break
            wait_s: float | None = 0.0
        else:
            if reading is not None:
                reading.take(0)
            wait_s = None if reading is None else _REST_S
        if not select.select([sys.stdin], [], [], wait_s)[0]:
            continue
        # Each command is answered before the next comes, so none is left in a buffer.
        words = sys.stdin.readline().split()
        if not words:
            return
        if words[0] == "attach":
            reading = _Reading(words[1], int(words[2]))
            _answer({})
        elif reading is not None:
            _answer(reading.end())
            reading = None


def _answer(facts: dict[str, int]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
