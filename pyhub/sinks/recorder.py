"""Recording a channel: every frame, in order, with what is missing marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyhub.datablock import DataBlockConsumer
from pyhub.errors import ChannelClosed
from pyhub.sinks.nexus import NexusFile

__all__ = ["Recording", "record"]


@dataclass(frozen=True)
class Recording:
    """What a recording came to."""

    n_frames: int
    n_missing: int
    is_complete: bool
    reason: str


def record(
    consumer: DataBlockConsumer,
    path: str,
    *,
    n_frames: int | None = None,
    compression: str = "gzip",
    overwrite: bool = False,
    on_frame: Callable[[int, int], None] | None = None,
) -> Recording:
    """Write the channel's frames into a new NeXus file until enough have come.

    Ends after `n_frames`, when the channel is closed, when its producer dies,
    when it comes back with another dtype or shape, or with Ctrl-C. The file is
    finished in every case; it is marked as partial if `n_frames` were asked
    for and fewer came, or if the producer died.

    Parameters
    ----------
    on_frame
        Called with the frames received and those missing so far.

    Raises
    ------
    OSError
        The disk is full or failed; what was written stays as ``.partial``.
    """
    frames = consumer.frames()
    reason = ""
    has_died = False
    with NexusFile(
        path,
        dtype=consumer.dtype,
        frame_shape=consumer.shape,
        title=consumer.name,
        detector=consumer.name,
        compression=compression,
        overwrite=overwrite,
    ) as file:
        layout = file.layout
        try:
            while n_frames is None or file.n_frames < n_frames:
                frame = next(frames, None)
                if frame is None:
                    reason = "the channel was closed"
                    break
                if (consumer.dtype, consumer.shape) != (layout.dtype, layout.shape):
                    reason = (
                        f"the producer came back with {consumer.dtype} {consumer.shape}; "
                        "record that as a file of its own"
                    )
                    has_died = True
                    break
                file.append(
                    frame.data,
                    frame_id=frame.frame_id,
                    timestamp_ns=frame.timestamp_ns,
                    flex=frame.flex,
                    n_lost=frame.n_lost,
                )
                if on_frame is not None:
                    on_frame(file.n_frames, file.n_missing)
        except KeyboardInterrupt:
            reason = "stopped by the user"
        except ChannelClosed as error:
            reason, has_died = str(error).splitlines()[0], True
        is_complete = not has_died and (n_frames is None or file.n_frames >= n_frames)
        if not is_complete and n_frames is not None:
            reason = f"{reason} after {file.n_frames} of {n_frames} frames"
        file.finish(is_complete, reason)
        return Recording(file.n_frames, file.n_missing, is_complete, reason)
