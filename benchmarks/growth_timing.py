"""How the parts of `growth.py` take time, and what they answer."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import pyhub

__all__ = [
    "HAND_OVERS",
    "Answer",
    "Effort",
    "Row",
    "hand_over",
    "medians",
    "rounds",
    "shm_kib",
    "timed",
]

HAND_OVERS = 256  # in one batch


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds of each point, passes over all, and which points."""

    seconds: float
    n_passes: int
    sizes: Sequence[int]
    readers: Sequence[int]
    channels: Sequence[int]
    slots: Sequence[int]


@dataclass(frozen=True)
class Row:
    """One point: what grows, as a number and as text, and medians by measure."""

    at: int
    label: str
    values: dict[str, float]


@dataclass
class Answer:
    """One question's points.

    Attributes
    ----------
    measures
        Key and heading of each column; a row need not have all.
    left_out
        Points that were not measured, and why.
    """

    name: str
    title: str
    caption: str
    grows: str
    measures: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def rounds(seconds: float, fewest: int) -> Iterator[int]:
    """Count rounds for `seconds`, and at least `fewest`."""
    end = time.perf_counter() + seconds
    number = 0
    while number < fewest or time.perf_counter() < end:
        yield number
        number += 1


def timed(calls: Iterable[Callable[[], object]], n: int) -> float:
    """Make the `n` calls; return ns of each, without what asking the clock takes."""
    start = time.perf_counter_ns()
    for call in calls:
        call()
    return (time.perf_counter_ns() - start - _CLOCK_NS) / n


def medians(samples: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each measure's samples."""
    return {measure: statistics.median(values) for measure, values in samples.items() if values}


def shm_kib() -> float:
    """Return the memory of all segments in the shared memory of this run."""
    files = Path(os.environ["PYHUB_SHM_DIR"]).iterdir()
    return sum(path.stat().st_blocks for path in files) / 2


def hand_over(
    consumer: pyhub.DataBlockConsumer,
    publish: Callable[[], object],
    look: Callable[[], object],
    seconds: float,
) -> dict[str, float]:
    """Return the medians of `publish`, of both in turns, and of `look`, in ns.

    `look` is the difference between the two in one round, so that a batch is
    the same for every ring, also for one of a single slot.
    """
    samples: dict[str, list[float]] = {"publish": [], "hand_over": [], "look": []}
    both = [publish, look] * HAND_OVERS
    for number in rounds(seconds, 20):
        alone = timed(repeat(publish, HAND_OVERS), HAND_OVERS)
        while consumer.lag_frames:
            consumer.look(0)
        turns = timed(both, HAND_OVERS)
        if number >= 3:  # before that, code and pages are new
            samples["publish"].append(alone)
            samples["hand_over"].append(turns)
            samples["look"].append(turns - alone)
    return medians(samples)


def _clock_ns() -> float:
    """Return what a batch of no calls takes."""
    spans = []
    for _ in range(2000):
        start = time.perf_counter_ns()
        for _ in ():
            pass
        spans.append(time.perf_counter_ns() - start)
    return statistics.median(spans)


_CLOCK_NS = _clock_ns()
