"""What does it cost to publish a frame and read it, beside numpy doing the same copies?

The references move the same bytes through the same kind of memory, a ring of
shared pages, with no protocol around: no lock, no sequence, no time stamp.
Their frames may be torn, and nobody could find them.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from bench_codec import TYPICAL
from pairs import Pair
from pytest_benchmark.fixture import BenchmarkFixture

import pyhub

Image = npt.NDArray[np.uint16]

# The last is a 4.5-megapixel detector's frame.
SHAPES: dict[str, tuple[int, ...]] = {
    "64 B": (32,),
    "64 KiB": (128, 256),
    "1 MiB": (512, 1024),
    "9 MB": (2070, 2167),
}
SLOTS = 4
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE


@contextmanager
def channel(
    shape: tuple[int, ...],
) -> Iterator[tuple[pyhub.DataBlockProducer, pyhub.DataBlockConsumer, Ring]]:
    """Give a producer, a consumer, and the reference's ring of as many slots."""
    with (
        plain_ring(shape) as plain,
        pyhub.DataBlockProducer.create("bench", dtype="u2", shape=shape, slots=SLOTS) as producer,
        pyhub.DataBlockConsumer.attach("bench") as consumer,
    ):
        for _ in range(SLOTS):
            producer.put(np.ones(shape, np.uint16))
        consumer.read(0)
        yield producer, consumer, plain


class Ring(NamedTuple):
    """The same pages, mapped as a writer's and as a reader's."""

    written: Image
    read: Image


@contextmanager
def plain_ring(shape: tuple[int, ...]) -> Iterator[Ring]:
    """Map a file beside the segments, twice, as producer and consumer map theirs."""
    size = SLOTS * 2 * math.prod(shape)
    with tempfile.TemporaryFile(dir=os.environ["PYHUB_SHM_DIR"]) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        maps = [mmap.mmap(file.fileno(), size, prot=prot) for prot in (_READ | _WRITE, _READ)]
        yield Ring(*(np.ndarray((SLOTS, *shape), np.uint16, pages) for pages in maps))


def picture(shape: tuple[int, ...]) -> Image:
    """Return a frame in which no two neighbours are alike."""
    return np.random.default_rng(1).integers(0, 4096, shape, dtype=np.uint16)


def _check_copies(
    pair: Callable[[], Iterable[Image]],
    image: Image,
    producer: pyhub.DataBlockProducer,
    consumer: pyhub.DataBlockConsumer,
) -> None:
    """Both sides give what is in `image` now, and no frame was skipped."""
    for _ in range(2):
        image += 1
        for copied in pair():
            assert np.array_equal(copied, image), "the frame that came is not the one sent"
    header = producer.header()
    assert consumer.n_lost == SLOTS - 1, "a frame was not read"
    assert consumer.n_read == header.structured_buffer_version - SLOTS + 1


# --- The pairs; ratios.py holds some of them to a budget ---


@contextmanager
def touch_in_place(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Hand a frame over of which one value is written and read."""
    with channel(shape) as (producer, consumer, plain):
        step = 0
        corner = (0,) * len(shape)

        def hand_over() -> None:
            nonlocal step
            step = (step + 1) & 0xFFFF
            with producer.publish() as slot:
                slot.data[corner] = step
            with consumer.latest() as seen:
                assert seen.data[corner] == step
                assert seen.is_valid()

        def plain_hand_over() -> None:
            nonlocal step
            step = (step + 1) & 0xFFFF
            plain.written[step % SLOTS][corner] = step
            assert plain.read[step % SLOTS][corner] == step

        yield Pair(hand_over, plain_hand_over, lambda: None)


@contextmanager
def fill_in_place(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Write every value of a frame, and look at every one, where it lies."""
    with channel(shape) as (producer, consumer, plain):
        step = 0

        def hand_over() -> None:
            nonlocal step
            step = (step + 1) & 0xFFFF
            with producer.publish() as slot:
                slot.data.fill(step)
            with consumer.latest() as seen:
                assert seen.data.max() == step
                assert seen.is_valid()

        def plain_hand_over() -> None:
            nonlocal step
            step = (step + 1) & 0xFFFF
            plain.written[step % SLOTS].fill(step)
            assert plain.read[step % SLOTS].max() == step

        yield Pair(hand_over, plain_hand_over, lambda: None)


@contextmanager
def copy_into_new(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Copy a frame in, and out into an array that is made for it."""
    with channel(shape) as (producer, consumer, plain):
        image = picture(shape)
        step = 0

        def hand_over() -> Image:
            producer.put(image)
            return consumer.read(0).data

        def plain_hand_over() -> Image:
            nonlocal step
            step = (step + 1) % SLOTS
            np.copyto(plain.written[step], image)
            copied = np.empty(shape, np.uint16)
            np.copyto(copied, plain.read[step])
            return copied

        def check() -> None:
            _check_copies(lambda: (hand_over(), plain_hand_over()), image, producer, consumer)

        yield Pair(hand_over, plain_hand_over, check)


@contextmanager
def copy_into_same(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Copy a frame in, and out into an array that is there already."""
    with channel(shape) as (producer, consumer, plain):
        image = picture(shape)
        out, plain_out = np.zeros_like(image), np.zeros_like(image)
        step = 0

        def hand_over() -> Image:
            producer.put(image)
            return consumer.read(0, out=out).data

        def plain_hand_over() -> Image:
            nonlocal step
            step = (step + 1) % SLOTS
            np.copyto(plain.written[step], image)
            np.copyto(plain_out, plain.read[step])
            return plain_out

        def check() -> None:
            _check_copies(lambda: (hand_over(), plain_hand_over()), image, producer, consumer)

        yield Pair(hand_over, plain_hand_over, check)


@contextmanager
def copy_out(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Copy a frame out into an array that is there already: what `read(out=)` adds."""
    with channel(shape) as (producer, consumer, plain):
        image = picture(shape)
        out, plain_out = np.zeros_like(image), np.zeros_like(image)
        for slot in range(SLOTS):
            producer.put(image)
            np.copyto(plain.written[slot], image)
        consumer.read(0, out=out)
        step = 0

        def read() -> Image:
            with producer.publish() as slot:
                slot.data[0, 0] += 1
            return consumer.read(0, out=out).data

        def plain_read() -> Image:
            nonlocal step
            step = (step + 1) % SLOTS
            np.copyto(plain_out, plain.read[step])
            return plain_out

        def check() -> None:
            out.fill(0)
            with producer.publish() as slot:
                slot.data[...] = image
            assert np.array_equal(consumer.read(0, out=out).data, image)
            assert np.array_equal(plain_read(), image)
            assert consumer.n_lost == 2 * SLOTS - 2, "a frame was not read"

        yield Pair(read, plain_read, check)


@contextmanager
def copy_with_parameters(shape: tuple[int, ...]) -> Iterator[Pair]:
    """Copy a frame in and out together with the parameters that belong to it."""
    with channel(shape) as (producer, consumer, plain):
        image = picture(shape)
        packer = msgpack.Packer()
        number = 0

        def hand_over() -> tuple[Image, dict[str, Any]]:
            nonlocal number
            number += 1
            producer.put(image, {**TYPICAL, "frame": number})
            frame = consumer.read(0)
            assert frame.flex["frame"] == number
            return frame.data, frame.flex

        def plain_hand_over() -> tuple[Image, dict[str, Any]]:
            nonlocal number
            number += 1
            np.copyto(plain.written[number % SLOTS], image)
            packed = packer.pack({**TYPICAL, "frame": number})
            copied = np.empty(shape, np.uint16)
            np.copyto(copied, plain.read[number % SLOTS])
            flex: dict[str, Any] = msgpack.unpackb(packed)
            assert flex["frame"] == number
            return copied, flex

        def check() -> None:
            def both() -> list[tuple[Image, dict[str, Any]]]:
                return [hand_over(), plain_hand_over()]

            _check_copies(lambda: [data for data, _ in both()], image, producer, consumer)
            for _, flex in both():
                assert flex == {**TYPICAL, "frame": flex["frame"]}

        yield Pair(hand_over, plain_hand_over, check)


# --- The benchmarks ---

sizes = pytest.mark.parametrize("size", SHAPES)
sides = pytest.mark.parametrize("side", ["pyhub", "numpy"])


def _run(benchmark: BenchmarkFixture, context: AbstractContextManager[Pair], side: str) -> None:
    with context as pair:
        benchmark(pair.pyhub if side == "pyhub" else pair.reference)
        pair.check()


@sizes
@sides
def bench_hand_over_in_place(benchmark: BenchmarkFixture, size: str, side: str) -> None:
    """Is the cost of a hand-over in place the same for every size?"""
    benchmark.group = f"in place, one value, {size}"
    _run(benchmark, touch_in_place(SHAPES[size]), side)


@sizes
@sides
def bench_fill_in_place(benchmark: BenchmarkFixture, size: str, side: str) -> None:
    """What does the channel add to writing and looking at a whole frame in place?"""
    benchmark.group = f"in place, all values, {size}"
    _run(benchmark, fill_in_place(SHAPES[size]), side)


@sizes
@sides
def bench_copy_into_new(benchmark: BenchmarkFixture, size: str, side: str) -> None:
    """What does the channel add to a copy in and a copy out, `put` and `read()`?"""
    benchmark.group = f"put, read, {size}"
    _run(benchmark, copy_into_new(SHAPES[size]), side)


@sizes
@sides
def bench_copy_into_same(benchmark: BenchmarkFixture, size: str, side: str) -> None:
    """The same without new memory: what does the untorn copy of `read(out=)` cost?"""
    benchmark.group = f"put, read(out=), {size}"
    _run(benchmark, copy_into_same(SHAPES[size]), side)


@pytest.mark.parametrize("size", ["64 B", "1 MiB"])
@sides
def bench_copy_with_parameters(benchmark: BenchmarkFixture, size: str, side: str) -> None:
    """What do parameters add that are decoded by the reader?"""
    benchmark.group = f"put, read, with parameters, {size}"
    _run(benchmark, copy_with_parameters(SHAPES[size]), side)
