"""Azimuthal and follow publish their channels, and outlive the producers they read."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest


def newest(consumer: Any, awaiting: Any, claim: Any, what: str) -> Any:
    """Read until `claim(frame)` holds."""
    found = []

    def look() -> bool:
        found[:] = [consumer.read(timeout_s=20)]
        return bool(claim(found[0]))

    awaiting(look, what)
    return found[0]


@pytest.mark.parametrize("command", ["azimuthal", "follow"])
def test_a_stage_goes_on_with_producers_of_other_shapes(
    cli: Any, hub: Any, awaiting: Any, command: str
) -> None:
    stage = cli.start(command, "cam1")
    with hub.create_datablock_producer("cam1", dtype="u2", shape=(40, 50)) as producer:
        assert hub.wait_for_readers("cam1", 1, 20)
        producer.put(np.full((40, 50), 3, "u2"))
        with hub.find_datablock_consumer(f"cam1.{command}", timeout_s=20) as consumer:
            first = newest(consumer, awaiting, lambda frame: frame.flex, "figures")
            assert first.flex["n_frames"] >= 1
            producer.close()
            for dtype, shape in (("f4", (20, 20)), ("f4", (20, 20)), ("u1", (64, 32))):
                with hub.create_datablock_producer("cam1", dtype=dtype, shape=shape) as again:
                    assert hub.wait_for_readers("cam1", 1, 20)
                    n = 0

                    def goes_on(frame: Any, again: Any = again) -> bool:
                        nonlocal n
                        n += 1
                        again.put(np.full(again.shape, 5, again.dtype))
                        if command == "follow":
                            return bool(frame.flex["pixel_sum"] == 5 * again.data_size)
                        return bool(np.nanmax(frame.data) > 4.5)

                    again.data_size = np.prod(again.shape)
                    again.put(np.full(shape, 5, dtype))
                    newest(consumer, awaiting, goes_on, f"frames of {shape}")
            assert stage.code is None, stage
    assert stage.end(signal.SIGINT) == 0
    assert "Traceback" not in stage.err


@pytest.mark.parametrize("command", ["azimuthal", "follow"])
def test_a_stage_waits_for_the_next_producer_when_one_was_killed(
    cli: Any, hub: Any, awaiting: Any, command: str
) -> None:
    first = cli.start("sim", "--shape", "16x24")
    stage = cli.start(command, "cam1")
    with hub.find_datablock_consumer(f"cam1.{command}", timeout_s=20) as consumer:
        consumer.read(timeout_s=20)
        first.end(signal.SIGKILL)
        second = cli.start("sim", "--shape", "32x16")
        second.says("publishing")
        seen = consumer.n_read
        awaiting(lambda: hub.n_readers("cam1") == 1, "its return")
        newest(consumer, awaiting, lambda _: consumer.n_read > seen + 2, "its frames")
        assert stage.end(signal.SIGTERM) == 0, stage
    assert second.end(signal.SIGINT) == 0
    assert "Traceback" not in stage.err


def test_the_azimuthal_average_is_that_of_the_rings(cli: Any, hub: Any, awaiting: Any) -> None:
    stage = cli.start("azimuthal", "cam1")
    rows, columns = np.indices((60, 80))
    radius = np.hypot(columns - 30, rows - 20)
    flex = {"beam_centre_x_px": 30.0, "beam_centre_y_px": 20.0}
    with hub.create_datablock_producer("cam1", dtype="f8", shape=(60, 80)) as producer:
        assert hub.wait_for_readers("cam1", 1, 20)
        producer.put(radius, flex=flex)
        with hub.find_datablock_consumer("cam1.azimuthal", timeout_s=20) as consumer:
            frame = consumer.read(timeout_s=20)
    assert frame.data.dtype == np.float32
    expected = (np.arange(frame.data.size) + 0.5) * radius.max() / frame.data.size
    there = np.isfinite(frame.data)
    assert there.sum() > 100
    assert np.abs(frame.data - expected)[there].max() < 0.5
    assert stage.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    "flex",
    [{"beam_centre_x_px": "left"}, {"beam_centre_x_px": float("nan")}, {"beam_centre_x_px": [1]}],
)
def test_a_beam_centre_that_is_no_number_does_not_end_the_stage(
    cli: Any, hub: Any, flex: dict[str, Any]
) -> None:
    stage = cli.start("azimuthal", "cam1")
    with hub.create_datablock_producer("cam1", dtype="u2", shape=(16, 16)) as producer:
        assert hub.wait_for_readers("cam1", 1, 20)
        producer.put(np.ones((16, 16), "u2"), flex=flex | {"beam_centre_y_px": 8.0})
        with hub.find_datablock_consumer("cam1.azimuthal", timeout_s=20) as consumer:
            assert np.nanmax(consumer.read(timeout_s=20).data) == 1.0
    assert stage.end(signal.SIGINT) == 0, stage


def test_frames_that_cannot_be_averaged_are_a_clear_error(cli: Any, hub: Any) -> None:
    stage = cli.start("azimuthal", "cam1")
    with hub.create_datablock_producer("cam1", dtype="c8", shape=(16, 16)) as producer:
        assert hub.wait_for_readers("cam1", 1, 20)
        producer.put(np.ones((16, 16), "c8"))
        assert stage.end() == 1
    assert "LayoutError: the frame is complex64" in stage.err
    assert "Traceback" not in stage.err


def test_follow_follows_frames_of_every_type(cli: Any, hub: Any, awaiting: Any) -> None:
    stage = cli.start("follow", "cam1")
    with hub.create_datablock_producer("cam1", dtype=[("x", "f4")], shape=(3,)) as producer:
        assert hub.wait_for_readers("cam1", 1, 20)
        producer.put(np.zeros(3, [("x", "f4")]), frame_id=17)
        with hub.find_datablock_consumer("cam1.follow", timeout_s=20) as consumer:
            assert consumer.read(timeout_s=20).flex["frame_id"] == 17
    assert stage.end(signal.SIGINT) == 0, stage
