"""Publishing a file's frames as a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyhub.datablock import DataBlockProducer
from pyhub.sources.hdf5 import FrameFile
from pyhub.sources.pace import Pace

__all__ = ["replay"]


def replay(
    file: FrameFile,
    producer: DataBlockProducer,
    indices: Iterable[int],
    *,
    rate_hz: float | None = None,
    on_frame: Callable[[int], None] | None = None,
) -> int:
    """Publish the frames `indices` of `file`, each with its parameters.

    A frame is read straight into the channel's memory. Its `frame_id` is its
    number as it is published, so that looping over a file goes on counting.

    Returns
    -------
    int
        How many were published.
    """
    pace = Pace(rate_hz)
    n_published = 0
    for index in indices:
        pace.wait()
        with producer.publish() as slot:
            file.read_into(index, slot.data)
            slot.flex = file.parameters(index)
            slot.frame_id = n_published
        n_published += 1
        if on_frame is not None:
            on_frame(index)
    return n_published
