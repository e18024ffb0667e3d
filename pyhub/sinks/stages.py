"""Consumers that publish what they make of a channel, as channels of their own.

Each puts its own figures (`pyhub.monitor.meter`) into the flex zone of what it
publishes, where a monitor finds them.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhub.datablock import DataBlockConsumer, DataBlockProducer, Frame
from pyhub.errors import ChannelClosed, LayoutError, WaitTimeout
from pyhub.monitor.meter import Meter
from pyhub.sinks.azimuthal import AzimuthalAverage

__all__ = ["N_BINS", "publish_azimuthal", "publish_progress"]

N_BINS = 256
# How much of the running average the newest frame makes up.
_WEIGHT = 0.1
_REPORT_S = 0.1


def publish_azimuthal(consumer: DataBlockConsumer, producer: DataBlockProducer) -> None:
    """Average every frame around the beam and publish the running mean; for ever.

    `producer` has float32 frames of `N_BINS` values, NaN where a ring has no
    pixel. The beam's centre is taken from the frames' parameters
    ``beam_centre_x_px`` and ``beam_centre_y_px``, else the frame's middle.
    """
    meter, average = Meter(), None
    running: npt.NDArray[Any] = np.zeros(N_BINS, np.float32)
    due = 0.0
    for frame in consumer.frames(follow=True):
        if frame.data.ndim != 2 or not frame.data.size:
            continue
        centre = _centre(frame)
        if average is None or average.shape != frame.data.shape:
            average = AzimuthalAverage(
                (frame.data.shape[0], frame.data.shape[1]), centre, n_bins=N_BINS
            )
            running = average.profile(frame.data, centre)
        profile = average.profile(frame.data, centre)
        running = np.where(
            np.isfinite(running), running + _WEIGHT * (profile - running), profile
        ).astype(np.float32)
        meter.note(frame)
        if time.monotonic() >= due:
            due = time.monotonic() + _REPORT_S
            producer.put(running, flex=meter.summary(consumer.lag_frames))
        else:
            producer.put(running)


def publish_progress(consumer: DataBlockConsumer, producer: DataBlockProducer) -> None:
    """Follow the newest frame and publish how well; for ever.

    `producer` has parameters only: the meter's figures, the newest `frame_id`,
    and the sum and maximum of its pixels.
    """
    meter = Meter()
    out = np.empty(consumer.shape, consumer.dtype)
    untold: Frame | None = None  # the newest frame, if nothing of it was published yet
    due = 0.0
    while True:
        try:
            untold = consumer.read(timeout_s=1.0 if untold is None else _REPORT_S, out=out)
            meter.note(untold)
        except WaitTimeout:
            pass
        except ChannelClosed:
            if consumer.is_closed:
                raise
            # The next call waits for the next producer.
        except LayoutError:
            if (out.dtype, out.shape) == (consumer.dtype, consumer.shape):
                raise
            out = np.empty(consumer.shape, consumer.dtype)  # it came back with another
        if untold is not None and time.monotonic() >= due:
            due = time.monotonic() + _REPORT_S
            producer.put(
                flex=meter.summary(consumer.lag_frames)
                | {"frame_id": untold.frame_id}
                | _pixel_figures(untold.data)
            )
            untold = None


def _centre(frame: Frame) -> tuple[float, float]:
    rows, columns = frame.data.shape
    try:
        x_px = float(frame.flex["beam_centre_x_px"])
        y_px = float(frame.flex["beam_centre_y_px"])
    except (KeyError, TypeError, ValueError):  # not there, or not numbers
        return columns / 2, rows / 2
    if not (math.isfinite(x_px) and math.isfinite(y_px)):
        return columns / 2, rows / 2
    return x_px, y_px


def _pixel_figures(data: npt.NDArray[Any]) -> dict[str, Any]:
    if data.dtype.kind not in "biuf" or not data.size:
        return {}
    return {"pixel_sum": float(data.sum(dtype=np.float64)), "pixel_max": float(data.max())}
