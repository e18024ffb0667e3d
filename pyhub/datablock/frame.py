"""What a reader gets: a frame of its own, or a view into the producer's memory."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pyhub._reading import FrameRecord
from pyhub.codec import decode
from pyhub.errors import Overrun

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Frame", "LiveView"]


class Frame(FrameRecord):
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

    __slots__ = ()

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
            self._flex = {} if self.packed is None else decode(self.packed, self.encoding)
        return self._flex

    def __reduce__(self) -> tuple[Any, ...]:
        # What is copied, or pickled, is a frame of its own, and whole.
        data = self.data.copy()
        if self.channel is not None and not self.is_in_place():
            raise self._overrun()
        facts = (
            data, self.frame_id, self.timestamp_ns, self.version, self.flex_version,
            self.encoding, self.packed,
        )  # fmt: skip
        told = {name: getattr(self, name) for name in _TOLD}
        return _copied, (facts, told)

    def _overrun(self) -> Overrun:
        return Overrun(
            f"frame {self.frame_id} of channel {self.channel!r} was overwritten while it was "
            "copied.\n"
            "  Use read(), which retries, or give the channel more slots."
        )

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.frame_id}: {self.data.dtype} {self.data.shape}, "
            f"version {self.version}, {self.n_lost} lost before it>"
        )


# What a reader is told beside the frame's own facts.
_TOLD = ("n_lost", "has_new_data", "has_new_flex", "is_restart")


def _copied(facts: tuple[Any, ...], told: dict[str, Any]) -> Frame:
    frame = Frame(*facts)
    for name, value in told.items():
        setattr(frame, name, value)
    return frame


class LiveView(Frame):
    """A frame where it lies, without a copy; for `with` blocks.

    Nothing keeps the producer from writing over it: look at the data, then
    ask `is_valid`. Only what was computed before a True holds.

    Attributes
    ----------
    data
        Read-only array on the shared memory.
    frame_id, timestamp_ns, version, flex and the others
        As for `Frame`; `flex` is a copy and always belongs to the frame.
    """

    __slots__ = ()

    # Whether the frame still lies there, untouched by the producer.
    is_valid = FrameRecord.is_in_place

    def copy(self) -> npt.NDArray[Any]:
        """Return the data as an array of the caller's own.

        Raises
        ------
        Overrun
            The producer wrote over it in the meantime.
        """
        copied = np.array(self.data)
        if not self.is_valid():
            raise self._overrun()
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
