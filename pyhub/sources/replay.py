"""Publishing a file's frames as a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pyhub.datablock import DataBlockProducer
from pyhub.sources.hdf5 import FrameFile
from pyhub.sources.pace import Pace

__all__ = ["parameters_of", "replay"]


def parameters_of(file: FrameFile, index: int) -> dict[str, Any]:
    """Return what goes into the flex zone with frame `index`.

    The parameters by name, and under ``units`` the units of those that have
    some; a parameter of that very name goes first.
    """
    parameters = file.parameters(index)
    return {"units": file.units} | parameters if file.units else parameters


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
    place in `indices`, so that looping over a file goes on counting. A row of a
    recording whose frame was lost is passed over: its number is missing again.

    Returns
    -------
    int
        How many were published.
    """
    pace = Pace(rate_hz)
    n_published = 0
    for number, index in enumerate(indices):
        pace.wait()
        if file.frame_valid is None or file.frame_valid[index]:
            with producer.publish() as slot:
                file.read_into(index, slot.data)
                if file.frame_rows is not None and file.frame_shape:
                    slot.n_rows = int(file.frame_rows[index])
                slot.flex = parameters_of(file, index)
                slot.frame_id = number
            n_published += 1
        if on_frame is not None:
            on_frame(index)
    return n_published
