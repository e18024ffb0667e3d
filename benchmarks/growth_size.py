"""How does the cost of a hand-over grow with the size of a frame?

Copies stand beside `numpy.copyto` between the same kind of mappings; in place,
one word of a frame is touched, whatever its size.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from growth_timing import Answer, Effort, Row, hand_over, medians, rounds, timed

import pyhub

__all__ = ["measure_sizes", "size_text"]

Words = npt.NDArray[np.uint64]

_UNITS = {1 << 30: "GiB", 1 << 20: "MiB", 10**6: "MB", 1 << 10: "KiB", 1: "B"}
_MOST_SLOTS = 64
_RING_BYTES = 1 << 20  # as many slots as fit, so that small frames stay in the cache
_FEWEST_ROUNDS = 11
_SPARE = 1.25  # of the memory needed
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE


def measure_sizes(effort: Effort) -> Answer:
    """Measure every size for which there is memory."""
    answer = Answer(
        "size",
        "Size of a frame",
        "µs a call, medians. `put` and `read(out=)` copy; `numpy` is `copyto` between the same "
        "kind of mappings, in turns with them; the ratio is the median of the rounds' ratios. "
        "`publish` and `look` are in place, one word touched. Pages are mapped beforehand; rings "
        f"are 1 MiB, but 2 to {_MOST_SLOTS} slots.",
        "frame",
        {
            "put": "put", "copy_in": "numpy", "put_ratio": "ratio",
            "read": "read", "copy_out": "numpy", "read_ratio": "ratio",
            "publish": "publish", "look": "look", "hand_over": "both in turns",
        },
    )  # fmt: skip
    for size in effort.sizes:
        # Two rings, the frame that goes in and two that come out.
        needed, available = (2 * _n_slots(size) + 3) * size * _SPARE, _available_bytes()
        if needed > available:
            answer.left_out.append(
                f"{size_text(size)}: takes {needed / 2**30:.1f} GiB of memory, "
                f"{available / 2**30:.1f} are free"
            )
            continue
        values = _copies(size, effort.seconds) | _in_place(size, effort.seconds)
        micro = {key: v if key.endswith("ratio") else v / 1000 for key, v in values.items()}
        answer.rows.append(Row(size, size_text(size), micro))
    return answer


def size_text(n_bytes: int) -> str:
    """Return the size in its largest whole unit."""
    unit = next(each for each in _UNITS if n_bytes % each == 0)
    return f"{n_bytes // unit} {_UNITS[unit]}"


def _n_slots(size: int) -> int:
    return max(2, min(_MOST_SLOTS, _RING_BYTES // size))


def _available_bytes() -> int:
    """Return what both the machine and its shared memory have left."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    here = shutil.disk_usage(os.environ["PYHUB_SHM_DIR"]).free
    return min(here, int(facts["MemAvailable"].split()[0]) * 1024)


@contextmanager
def _channel(
    size: int, n_slots: int
) -> Iterator[tuple[pyhub.DataBlockProducer, pyhub.DataBlockConsumer]]:
    with (
        pyhub.DataBlockProducer.create(
            "size", dtype="u8", shape=size // 8, slots=n_slots, prefault=True
        ) as producer,
        pyhub.DataBlockConsumer.attach("size", policy="every", prefault=True) as consumer,
    ):
        yield producer, consumer


@contextmanager
def _plain_ring(size: int, n_slots: int) -> Iterator[tuple[list[Words], list[Words]]]:
    """Give the slots of a file beside the segments, as a writer and as a reader maps them."""
    with tempfile.TemporaryFile(dir=os.environ["PYHUB_SHM_DIR"]) as file:
        os.posix_fallocate(file.fileno(), 0, n_slots * size)
        rings = []
        for protection in (_READ | _WRITE, _READ):
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            pages = mmap.mmap(file.fileno(), n_slots * size, flags=flags, prot=protection)
            rings.append(list(np.ndarray((n_slots, size // 8), np.uint64, pages)))
        yield rings[0], rings[1]


def _copies(size: int, seconds: float) -> dict[str, float]:
    """Copy as many frames in as there are slots, then out, beside numpy doing so."""
    n = _n_slots(size)
    image = np.arange(size // 8, dtype=np.uint64)
    # Two, for the other's would still be in the cache.
    out, plain_out = np.zeros_like(image), np.zeros_like(image)
    samples: dict[str, list[float]] = {k: [] for k in ("put", "read", "copy_in", "copy_out")}
    with _channel(size, n) as (producer, consumer), _plain_ring(size, n) as (written, seen):
        put, read = partial(producer.put, image), partial(consumer.read, 0, out=out)
        copies_in = [partial(np.copyto, slot, image) for slot in written]
        copies_out = [partial(np.copyto, plain_out, slot) for slot in seen]

        def ours() -> None:
            samples["put"].append(timed(repeat(put, n), n))
            samples["read"].append(timed(repeat(read, n), n))

        def theirs() -> None:
            samples["copy_in"].append(timed(copies_in, n))
            samples["copy_out"].append(timed(copies_out, n))

        n_rounds = 0
        for number in rounds(seconds, _FEWEST_ROUNDS):
            image[0] = image[-1] = number + 1
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                side()
            n_rounds = number + 1
            assert consumer.n_read == n_rounds * n, "a frame was not read"
            assert consumer.n_lost == 0
            for copied in (out, plain_out):
                assert copied[0] == copied[-1] == number + 1, "the frame is not the one sent"
        assert np.array_equal(out, image)
        assert np.array_equal(plain_out, image)
        assert producer.header().structured_buffer_version == n_rounds * n
    kept = {key: values[1:] for key, values in samples.items()}
    result = medians(kept)
    for ours_key, theirs_key in (("put", "copy_in"), ("read", "copy_out")):
        ratios = [a / b for a, b in zip(kept[ours_key], kept[theirs_key], strict=True)]
        result[f"{ours_key}_ratio"] = statistics.median(ratios)
    return result


def _in_place(size: int, seconds: float) -> dict[str, float]:
    """Hand frames over of which one word is written and read."""
    step = 0
    with _channel(size, _n_slots(size)) as (producer, consumer):

        def publish() -> None:
            nonlocal step
            step += 1
            with producer.publish() as slot:
                slot.data[0] = step

        def look() -> None:
            with consumer.look(0) as frame:
                assert frame.data.item(0) == step

        result = hand_over(consumer, publish, look, seconds)
        assert producer.header().structured_buffer_version == step
        assert consumer.n_read + consumer.n_lost == step, "a frame was not counted"
    return result
