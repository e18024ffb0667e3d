"""What a reader gets: a frame of its own, or a view into the producer's memory."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhub._datablock import DataBlock
from pyhub.codec import decode
from pyhub.errors import Overrun

__all__ = ["Frame", "LiveView"]


class Frame:
    """A frame and the parameters that belong to it, owned by the reader.

    Attributes
    ----------
    data
        Array of the channel's dtype and shape (fewer rows if the producer
        published fewer). Empty if only parameters were ever published.
    frame_id
        The producer's number for the frame.
    timestamp, timestamp_ns
        When it was published: seconds (float) and nanoseconds (int) since 1970.
    n_lost
        Frames published between the last one that this reader was given and
        this one; it will not get them any more.
    version, flex_version
        Counters of the channel's frames and parameters (from 1; 0: none yet).
    has_new_data, has_new_flex
        Whether the frame, its parameters, are others than this reader was
        given last.
    is_restart
        The first frame of a producer that came back under the same name, with
        the same or another dtype and shape.
    """

    __slots__ = (
        "_encoding", "_flex", "_packed", "data", "flex_version", "frame_id", "has_new_data",
        "has_new_flex", "is_restart", "n_lost", "timestamp_ns", "version",
    )  # fmt: skip

    def __init__(
        self,
        data: npt.NDArray[Any],
        frame_id: int,
        timestamp_ns: int,
        version: int,
        flex_version: int,
        encoding: int,
        packed: bytes | None,
    ) -> None:
        self.data = data
        self.frame_id = frame_id
        self.timestamp_ns = timestamp_ns
        self.version = version
        self.flex_version = flex_version
        self._encoding = encoding
        self._packed = packed
        self._flex: dict[str, Any] | None = None
        self.n_lost = 0
        self.has_new_data = True
        self.has_new_flex = True
        self.is_restart = False

    @property
    def flex(self) -> dict[str, Any]:
        """The parameters; empty if none were published yet.

        Decoded when first asked for.

        Raises
        ------
        CodecError
            The producer put something else into its flex zone.
        """
        if self._flex is None:
            self._flex = {} if self._packed is None else decode(self._packed, self._encoding)
        return self._flex

    @property
    def timestamp(self) -> float:
        """When the frame was published: seconds since 1970."""
        return self.timestamp_ns * 1e-9

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.frame_id}: {self.data.dtype} {self.data.shape}, "
            f"version {self.version}, {self.n_lost} lost before it>"
        )


class LiveView:
    """The newest frame where it lies, without a copy; for `with` blocks.

    Nothing keeps the producer from writing over it: look at the data, then
    ask `is_valid`. Only what was computed before a True holds.

    Attributes
    ----------
    data
        Read-only array on the shared memory.
    frame_id, timestamp_ns, version, flex
        As for `Frame`; `flex` is a copy and always belongs to the frame.
    """

    def __init__(self, block: DataBlock, frame: Frame, slot: int, position: int) -> None:
        self._block = block
        self._frame = frame
        self._slot = slot
        self._position = position
        self.data = frame.data
        self.frame_id = frame.frame_id
        self.timestamp_ns = frame.timestamp_ns
        self.version = frame.version

    @property
    def flex(self) -> dict[str, Any]:
        """The parameters that belong to the frame."""
        return self._frame.flex

    @property
    def timestamp(self) -> float:
        """When the frame was published: seconds since 1970."""
        return self._frame.timestamp

    def is_valid(self) -> bool:
        """Whether the frame still lies there, untouched by the producer."""
        return self._block.is_valid(self._slot, self._position)

    def copy(self) -> npt.NDArray[Any]:
        """Return the data as an array of the caller's own.

        Raises
        ------
        Overrun
            The producer wrote over it in the meantime.
        """
        copied = np.array(self.data)
        if not self.is_valid():
            raise Overrun(
                f"frame {self.frame_id} of channel {self._block.segment.name!r} was overwritten "
                "while it was copied.\n"
                "  Use read(), which retries, or give the channel more slots."
            )
        return copied

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
