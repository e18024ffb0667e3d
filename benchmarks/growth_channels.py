"""How does the cost of a hand-over grow with the channels of a process?"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from growth_timing import Answer, Effort, Row, medians, rounds, shm_kib, timed

import pyhub

__all__ = ["measure_channels"]

_SLOTS = 4
_DESCRIPTORS = 4  # at most, of a channel's producer and consumer together
_SPARE_DESCRIPTORS = 64
_LIVES = 50  # of a channel, at least, to see what creating and attaching takes
_LONGEST_S = 60.0
_FEWEST_FOR_MEMORY = 10  # which is had by the page, from what was used before if it can be


def measure_channels(effort: Effort) -> Answer:
    """Measure every number of channels that the process may have open."""
    answer = Answer(
        "channels",
        "Channels of a process",
        f"Frames of 64 B, {_SLOTS} slots, one producer and one consumer of each channel, in one "
        "process, all channels in turn. `put`, `look`, `create`, `attach`: µs a call; of a channel "
        "with both: KiB of shared memory, KiB of a fresh process's own with page "
        "tables, descriptors. Medians.",
        "channels",
        {
            "put": "put", "look": "look", "create": "create", "attach": "attach",
            "shm_kib": "shared, KiB", "own_kib": "own, KiB", "descriptors": "descriptors",
        },
    )  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for n in effort.channels:
        needed = n * _DESCRIPTORS + _SPARE_DESCRIPTORS
        if hard != resource.RLIM_INFINITY and needed > hard:
            answer.left_out.append(f"{n} channels: may take {needed} descriptors; {hard} allowed")
            continue
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
        try:
            answer.rows.append(Row(n, f"{n}", _measure(n, effort)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return answer


def _measure(n: int, effort: Effort) -> dict[str, float]:
    samples: dict[str, list[float]] = {k: [] for k in ("create", "attach", "put", "look")}
    for _ in range(max(1, _LIVES // n)):  # at once, as those of many channels are
        with ExitStack() as stack:
            _open(n, samples, stack)
    before = shm_kib(), _n_descriptors()
    with ExitStack() as stack:
        producers, consumers = _open(n, {"create": [], "attach": []}, stack)
        after = shm_kib(), _n_descriptors()
        _hand_overs(producers, consumers, effort.seconds, samples)
    shm, descriptors = ((b - a) / n for a, b in zip(before, after, strict=True))
    values = {key: value / 1000 for key, value in medians(samples).items()}
    values |= {"shm_kib": shm, "descriptors": descriptors}
    if n >= _FEWEST_FOR_MEMORY:
        values["own_kib"] = _own_kib_in_child(n)
    return values


def _open(
    n: int, samples: dict[str, list[float]], stack: ExitStack
) -> tuple[list[pyhub.DataBlockProducer], list[pyhub.DataBlockConsumer]]:
    producers, consumers = [], []
    for number in range(n):
        start = time.perf_counter_ns()
        producer = pyhub.DataBlockProducer.create(f"c{number}", dtype="u8", shape=8, slots=_SLOTS)
        samples["create"].append(time.perf_counter_ns() - start)
        producers.append(stack.enter_context(producer))
    for number in range(n):
        start = time.perf_counter_ns()
        consumer = pyhub.DataBlockConsumer.attach(f"c{number}", policy="every")
        samples["attach"].append(time.perf_counter_ns() - start)
        consumers.append(stack.enter_context(consumer))
    return producers, consumers


def _hand_overs(
    producers: list[pyhub.DataBlockProducer],
    consumers: list[pyhub.DataBlockConsumer],
    seconds: float,
    samples: dict[str, list[float]],
) -> None:
    """Fill all rings in turn, then empty them in turn."""
    images = [np.full(8, number, np.uint64) for number in range(len(producers))]
    puts = [
        partial(producer.put, image) for producer, image in zip(producers, images, strict=True)
    ] * _SLOTS
    looks = [partial(consumer.look, 0) for consumer in consumers] * _SLOTS
    n_rounds = 0
    for number in rounds(seconds, 5):
        put, look = timed(puts, len(puts)), timed(looks, len(looks))
        if number >= 2:  # before that, code and pages are new
            samples["put"].append(put)
            samples["look"].append(look)
        n_rounds = number + 1
    for number, (producer, consumer) in enumerate(zip(producers, consumers, strict=True)):
        n_frames = n_rounds * _SLOTS
        assert (consumer.n_read, consumer.n_lost) == (n_frames, 0), "a frame was not read"
        producer.put(images[number])
        frame = consumer.read(0)
        assert frame.frame_id == n_frames
        assert (frame.data == number).all(), "the frame is another channel's"


def _own_kib_in_child(n: int) -> float:
    """Return what each of `n` channels takes of a process that did nothing else before."""
    command = [sys.executable, __file__, str(n)]
    child = subprocess.run(command, stdout=subprocess.PIPE, timeout=_LONGEST_S, check=True)
    return float(child.stdout)


def _print_own_kib(n: int) -> None:
    """Be that process."""
    for count in (1, n):  # the first loads all that one channel needs
        before = _own_kib()
        with ExitStack() as stack:
            samples: dict[str, list[float]] = {"create": [], "attach": []}
            for producer, consumer in zip(*_open(count, samples, stack), strict=True):
                producer.put(np.zeros(8, np.uint64))
                consumer.look(0)
            after = _own_kib()
    print((after - before) / n)


def _own_kib() -> float:
    """Return the memory that this process shares with nobody, with its page tables."""
    total = 0.0
    for path, key in (("smaps_rollup", "Anonymous:"), ("status", "VmPTE:")):
        lines = Path("/proc/self", path).read_text().splitlines()
        total += next(float(line.split()[1]) for line in lines if line.startswith(key))
    return total


def _n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    _print_own_kib(int(sys.argv[1]))
