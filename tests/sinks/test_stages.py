"""What the stages make of a channel, and that they end when their consumer is closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyhub
from pyhub.sinks.stages import N_BINS, publish_azimuthal, publish_progress


@contextlib.contextmanager
def stage(
    work: Callable[[Any, Any], None], producer: Any, **layout: Any
) -> Iterator[pyhub.DataBlockConsumer]:
    """Run `work` in a thread; gives a reader of what it publishes."""
    with (
        pyhub.DataBlockConsumer.attach(producer.name) as source,
        pyhub.DataBlockProducer.create("out", **layout) as out,
        pyhub.DataBlockConsumer.attach("out") as reader,
    ):

        def run() -> None:
            with contextlib.suppress(pyhub.ChannelClosed):
                work(source, out)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield reader
        finally:
            source.close()
            thread.join(20)
            assert not thread.is_alive()


AZIMUTHAL = {"dtype": np.float32, "shape": (N_BINS,), "slots": 64}


def test_every_frame_gives_a_profile_and_some_carry_figures() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(50, 60), slots=64) as producer,
        stage(publish_azimuthal, producer, **AZIMUTHAL) as reader,
    ):
        profiles = reader.frames(20)
        for k in range(20):
            producer.put(np.full((50, 60), 7, "u2"))
            profile = next(profiles)
            assert profile.frame_id == k
            there = np.isfinite(profile.data)
            assert np.allclose(profile.data[there], 7)
            assert there.sum() > 100
        assert profile.flex["n_frames"] >= 1
        assert profile.flex["n_lost"] == 0


def test_the_mean_runs_towards_what_the_frames_are_now() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="f4", shape=(30, 30), slots=64) as producer,
        stage(publish_azimuthal, producer, **AZIMUTHAL) as reader,
    ):
        profiles = reader.frames(20)
        means = []
        for value in [0.0] + [10.0] * 30:
            producer.put(np.full((30, 30), value, "f4"))
            means.append(float(np.nanmax(next(profiles).data)))
    assert means[0] == 0.0
    assert means[1] == pytest.approx(1.0)
    assert means == sorted(means)
    assert 9.0 < means[-1] < 10.0


def test_frames_that_are_no_pictures_are_passed_over() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(9, 9), slots=8) as producer,
        stage(publish_azimuthal, producer, **AZIMUTHAL) as reader,
    ):
        producer.put(np.empty((0, 9), "u2"))
        producer.put(np.full((4, 9), 5, "u2"))
        frame = next(reader.frames(20))
        assert frame.frame_id == 0
        assert np.nanmax(frame.data) == 5


def test_progress_says_what_the_newest_frame_is() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(4, 5)) as producer,
        stage(publish_progress, producer) as reader,
    ):
        producer.put(np.full((4, 5), 3, "u2"), frame_id=11)
        flex = reader.read(timeout_s=20).flex
    assert (flex["frame_id"], flex["pixel_sum"], flex["pixel_max"]) == (11, 60.0, 3.0)
    assert (flex["n_frames"], flex["n_lost"], flex["lag_frames"]) == (1, 0, 0)


def test_the_last_frame_of_a_burst_is_told_too() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(4, 5)) as producer,
        stage(publish_progress, producer) as reader,
    ):
        for k in range(50):
            producer.put(np.full((4, 5), k, "u2"))
        while (flex := reader.read(timeout_s=20).flex)["frame_id"] != 49:
            pass
    assert flex["pixel_max"] == 49
    assert flex["n_frames"] + flex["n_lost"] == 50


def test_progress_goes_on_with_a_producer_of_another_shape() -> None:
    with (
        pyhub.DataBlockProducer.create("cam1", dtype="u2", shape=(4, 5)) as producer,
        stage(publish_progress, producer) as reader,
    ):
        producer.put(np.ones((4, 5), "u2"))
        reader.read(timeout_s=20)
        producer.close()
        with pyhub.DataBlockProducer.create("cam1", dtype="f8", shape=(7, 9)) as again:
            again.put(np.full((7, 9), 0.5), frame_id=1000)
            while (flex := reader.read(timeout_s=20).flex)["frame_id"] != 1000:
                pass
    assert flex["pixel_sum"] == 31.5
