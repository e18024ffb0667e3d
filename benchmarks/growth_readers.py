"""How does the cost of a publish grow with the readers of a channel?

Processor time of the thread that publishes, so that what the readers do with
the same cores counts as little as it can.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from growth_timing import Answer, Effort, Row

import pyhub

__all__ = ["measure_readers"]

_ANSWER_S = 60.0
_PACE_S = 1 / 200
_BATCH = 1000  # publishes, of readers that are at rest
_KINDS = ("plain", "drop_oldest", "futex")


def measure_readers(effort: Effort) -> Answer:
    """Measure every number of readers of every kind, in passes up and down."""
    answer = Answer(
        "readers",
        "Readers of a channel",
        "Processor time of the producer's thread for a `put` of 64 B, µs, and its median ratio to "
        "no readers in the same pass. Readers are processes. `plain`, and `drop_oldest` (admitted: "
        "the producer asks each): a frame every 50 ms, the producer in batches. `futex`: asleep "
        f"until the next frame, at a paced {1 / _PACE_S:.0f} Hz, each publish with one wake-up "
        "call for all of them. Medians.",
        "readers",
        {
            f"{kind}{part}": heading
            for kind in _KINDS
            for part, heading in (("", kind), ("_ratio", "ratio"))
        },
    )
    passes: dict[str, list[dict[int, float]]] = {kind: [] for kind in _KINDS}
    with ExitStack() as stack, _crowd(max(effort.readers)) as crowd:  # who goes first
        channels = {kind: stack.enter_context(_Channel(kind)) for kind in _KINDS}
        for number in range(effort.n_passes):
            for kind, channel in channels.items():
                counts = sorted(effort.readers, reverse=bool(number % 2))
                passes[kind].append(_pass(channel, counts, crowd, effort.seconds))
    for n in effort.readers:
        values = {}
        for kind, times in passes.items():
            values[kind] = statistics.median(each[n] for each in times) / 1000
            values[f"{kind}_ratio"] = statistics.median(each[n] / each[0] for each in times)
        answer.rows.append(Row(n, f"{n}", values))
    return answer


class _Channel:
    """A channel, and how its publishes are timed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.batch = 1 if kind == "futex" else _BATCH
        self._n_frames = 0
        self._image = np.zeros(8, np.uint64)
        self._producer = pyhub.DataBlockProducer.create(kind, dtype="u8", shape=8, slots=4)
        self._put = partial(self._producer.put, self._image)
        self._publish()

    def __enter__(self) -> _Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()

    @property
    def newest(self) -> int:
        """The number of the newest frame."""
        return self._n_frames - 1

    def time_ns(self, seconds: float) -> float:
        """Return the processor time of a publish, for readers as they are now."""
        measure = self._paced if self.kind == "futex" else self._in_batches
        before = self._n_frames
        result = measure(seconds)
        assert self._producer.header().structured_buffer_version == self._n_frames > before
        return result

    def _in_batches(self, seconds: float) -> float:
        end = time.perf_counter() + seconds / 3
        spans = [self._publish() for _ in range(5)][2:]
        while time.perf_counter() < end:
            spans.append(self._publish())
        return statistics.median(spans) / self.batch

    def _paced(self, seconds: float) -> float:
        due = time.monotonic()
        end = due + max(seconds, 20 * _PACE_S)
        spans = []
        while due < end:
            due += _PACE_S
            time.sleep(max(0.0, due - time.monotonic()))
            # What asking this clock takes, as cold as it is now.
            clock = time.thread_time_ns()
            clock -= time.thread_time_ns()
            spans.append(self._publish() + clock)
        return statistics.median(spans[3:])

    def _publish(self) -> int:
        """Publish a batch; return the thread's processor time, ns."""
        self._image[0] = self._n_frames // self.batch
        put = self._put
        start = time.thread_time_ns()
        for _ in repeat(None, self.batch):
            put()
        span = time.thread_time_ns() - start
        self._n_frames += self.batch
        return span


def _pass(
    channel: _Channel, counts: list[int], crowd: list[_Reader], seconds: float
) -> dict[int, float]:
    """Measure all counts, adding or removing readers between them."""
    result: dict[int, float] = {}
    n_here = 0
    for n in [*counts, 0]:
        came, left = crowd[n_here:n], crowd[n:n_here]
        _all(came, lambda reader: reader.ask("attach", channel.kind, channel.batch))
        for facts in _all(left, lambda reader: reader.ask("detach")):
            n_seen = facts["last"] - facts["first"] + 1
            assert facts["last"] == channel.newest, "a reader does not have the newest frame"
            assert facts["n_read"] + facts["n_lost"] == n_seen, "a reader counts wrongly"
            assert facts["n_read"] > 1, "a reader did not read"
        n_here = n
        if n not in result:
            result[n] = channel.time_ns(seconds)
    return result


# --- The processes ---


class _Reader:
    """One process of `growth_reader.py`."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("growth_reader.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, *words: object) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Return the answer."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _ANSWER_S)[0]:
            raise TimeoutError(f"reader {self._process.pid} did not answer in {_ANSWER_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"reader {self._process.pid} ended; what it said is above")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def _crowd(n: int) -> Iterator[list[_Reader]]:
    """Start the processes; they cost nothing until they are asked to read."""
    with ExitStack() as stack:
        crowd: list[_Reader] = []
        for _ in range(n):
            reader = _Reader()
            stack.callback(reader.end)
            crowd.append(reader)
            if len(crowd) % (os.cpu_count() or 1) == 0:
                crowd[-1].hear()  # not all of them start at once
        for index, reader in enumerate(crowd):
            if (index + 1) % (os.cpu_count() or 1):
                reader.hear()
        yield crowd


def _all(readers: list[_Reader], ask: Callable[[_Reader], None]) -> list[dict[str, Any]]:
    """Ask all, then hear all."""
    for reader in readers:
        ask(reader)
    return [reader.hear() for reader in readers]
