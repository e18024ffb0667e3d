"""Publishing a simulated detector's frames as a channel."""

from __future__ import annotations

from collections.abc import Callable

from pyhub.datablock import DataBlockProducer
from pyhub.sources.detector import SimulatedDetector
from pyhub.sources.pace import Pace

__all__ = ["simulate"]


def simulate(
    detector: SimulatedDetector,
    producer: DataBlockProducer,
    *,
    rate_hz: float | None = 100.0,
    n_frames: int | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Expose frame after frame into the channel, with the parameters of each.

    Returns how many were published: `n_frames`, or as many as came until
    `is_over`.
    """
    pace = Pace(rate_hz)
    number = 0
    while number != n_frames and not is_over():
        pace.wait()
        with producer.publish() as slot:
            detector.frame_into(slot.data, number)
            slot.flex = detector.parameters(number)
        number += 1
    return number
