"""What do pyhub's types and limits add to bare MessagePack?

The reference packs what bare MessagePack can: for numpy values the plain
numbers and lists that a user would turn them into by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from pairs import Pair
from pytest_benchmark.fixture import BenchmarkFixture

from pyhub.codec import decode, encode

# What a detector's frame carries.
TYPICAL: dict[str, Any] = {
    "frame": 123456,
    "exposure_s": 0.01,
    "energy_keV": 12.0,
    "angle_deg": 17.25,
    "detector": "area-1",
    "beam_center": [514.2, 255.9],
    "n_saturated": 0,
    "is_dark": False,
    "temperature_degC": None,
    "scan": {"id": "2024-0017", "point": 42, "motors": {"x": 1.25, "y": -3.5}},
}

# The same kind of thing as it comes from numpy.
WITH_NUMPY: dict[str, Any] = {
    "energy_keV": np.float64(12.0),
    "n_saturated": np.int32(3),
    "roi_sums": np.arange(16, dtype=np.float64),
}
BY_HAND: dict[str, Any] = {
    "energy_keV": 12.0,
    "n_saturated": 3,
    "roi_sums": [float(i) for i in range(16)],
}

PARAMETERS = {"typical": (TYPICAL, TYPICAL), "numpy": (WITH_NUMPY, BY_HAND)}


@contextmanager
def encoding(parameters: str) -> Iterator[Pair]:
    """Write parameters as the bytes of a flex zone."""
    ours, plain = PARAMETERS[parameters]
    packer = msgpack.Packer()

    def check() -> None:
        _assert_same(decode(encode(ours)), ours)
        assert msgpack.unpackb(packer.pack(plain)) == plain

    yield Pair(lambda: encode(ours), lambda: packer.pack(plain), check)


@contextmanager
def decoding(parameters: str) -> Iterator[Pair]:
    """Read parameters from the bytes of a flex zone."""
    ours, plain = PARAMETERS[parameters]
    packed, plain_packed = encode(ours), msgpack.packb(plain)

    def check() -> None:
        _assert_same(decode(packed), ours)
        assert msgpack.unpackb(plain_packed) == plain

    yield Pair(lambda: decode(packed), lambda: msgpack.unpackb(plain_packed), check)


def _assert_same(came: dict[str, Any], sent: dict[str, Any]) -> None:
    assert list(came) == list(sent)
    for name, value in sent.items():
        assert type(came[name]) is type(value), name
        assert np.array_equal(came[name], value), name


sides = pytest.mark.parametrize("side", ["pyhub", "msgpack"])


@pytest.mark.parametrize("parameters", PARAMETERS)
@sides
def bench_encode(benchmark: BenchmarkFixture, parameters: str, side: str) -> None:
    """What does it cost to write a frame's parameters?"""
    benchmark.group = f"encode parameters, {parameters}"
    with encoding(parameters) as pair:
        benchmark(pair.pyhub if side == "pyhub" else pair.reference)
        pair.check()


@pytest.mark.parametrize("parameters", PARAMETERS)
@sides
def bench_decode(benchmark: BenchmarkFixture, parameters: str, side: str) -> None:
    """What does it cost to check and read a frame's parameters?"""
    benchmark.group = f"decode parameters, {parameters}"
    with decoding(parameters) as pair:
        benchmark(pair.pyhub if side == "pyhub" else pair.reference)
        pair.check()
