"""The simulation publishes each of its detector's frames once, in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pyhub
from pyhub.sources.detector import SimulatedDetector
from pyhub.sources.simulation import simulate

SHAPE = (24, 32)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int32"])
def test_frames_and_parameters_are_the_detectors(dtype: str) -> None:
    detector = SimulatedDetector(SHAPE, dtype, seed=3)
    picture = np.empty(SHAPE, dtype)
    with (
        pyhub.DataBlockProducer.create("cam1", dtype=dtype, shape=SHAPE, slots=8) as producer,
        pyhub.DataBlockConsumer.attach("cam1") as consumer,
    ):
        assert simulate(detector, producer, rate_hz=None, n_frames=6) == 6
        producer.close()
        frames = list(consumer)
    assert [frame.frame_id for frame in frames] == list(range(6))
    for frame in frames:
        detector.frame_into(picture, frame.frame_id)
        assert np.array_equal(frame.data, picture)
        assert frame.flex == detector.parameters(frame.frame_id)
        assert frame.flex["frame_number"] == frame.frame_id
        assert {"exposure_s", "energy_keV", "angle_deg"} <= frame.flex.keys()


def test_it_ends_when_it_is_over() -> None:
    detector = SimulatedDetector(SHAPE)
    turns = iter([False, False, False, True])
    with pyhub.DataBlockProducer.create("cam1", dtype="uint16", shape=SHAPE) as producer:
        assert simulate(detector, producer, rate_hz=None, is_over=lambda: next(turns)) == 3
        assert producer.header().structured_buffer_version == 3


def test_it_keeps_its_rate() -> None:
    detector = SimulatedDetector(SHAPE)
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="uint16", shape=SHAPE, slots=16) as producer,
        pyhub.DataBlockConsumer.attach("cam1") as consumer,
    ):
        created = producer.header().created
        simulate(detector, producer, rate_hz=50, n_frames=10)
        stamps = [frame.timestamp for frame in itertools.islice(consumer, 10)]
    assert stamps[-1] - created >= 9 / 50


def test_a_channel_that_was_closed_ends_it() -> None:
    detector = SimulatedDetector(SHAPE)
    producer = pyhub.DataBlockProducer.create("cam1", dtype="uint16", shape=SHAPE)
    producer.close()
    with pytest.raises(pyhub.ChannelClosed):
        simulate(detector, producer, rate_hz=None, n_frames=1)
