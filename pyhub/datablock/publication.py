"""What `with producer.publish() as slot` gives: one slot, while it is filled."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyhub.codec import Encoding, encode
from pyhub.datablock.notice import ZoneUpdateInfo
from pyhub.datablock.publisher import Publisher
from pyhub.errors import CapacityError

__all__ = ["Publication"]


class Publication:
    """The slot that a `publish` block fills.

    Attributes
    ----------
    frame_id
        Your own number for the frame; None: counted from 0.
    timestamp_ns
        Wall clock, ns since 1970; 0: the moment of publishing.
    encoding
        How `flex` is written. Set it before `flex`.
    n_rows
        Rows of `data` that are valid; None: all.
    """

    __slots__ = (
        "_flex", "_flex_encoding", "_flex_size", "_has_data", "_is_dropped", "_producer",
        "_timeout_s", "encoding", "frame_id", "n_rows", "timestamp_ns",
    )  # fmt: skip

    def __init__(self, producer: Publisher, timeout_s: float | None) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self._flex: dict[str, Any] | None = None
        self._flex_encoding = Encoding.MSGPACK
        self._flex_size = -1
        self._has_data = False
        self._is_dropped = False
        self.frame_id: int | None = None
        self.timestamp_ns = 0
        self.encoding = Encoding.MSGPACK
        self.n_rows: int | None = None

    def __enter__(self) -> Publication:
        try:
            self._producer.begin_publish(timeout_s=self._timeout_s)
            return self
        except KeyboardInterrupt:
            self._producer.abort_publish()  # it may have come after the lock
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        producer = self._producer
        if kind is not None or (not self._has_data and self._flex_size < 0):
            self._is_dropped = False
            producer.abort_publish()
            return
        try:
            producer.end_publish(
                ZoneUpdateInfo(
                    flex_zone=self._flex_size >= 0,
                    structured_buffer=self._has_data,
                    flex_zone_size=max(self._flex_size, 0),
                    structured_buffer_size=self._valid_bytes(),
                    encoding=self._flex_encoding,
                    frame_id=self.frame_id,
                    timestamp_ns=self.timestamp_ns,
                )
            )
        except BaseException:
            self._is_dropped = False
            producer.abort_publish()
            raise

    @property
    def is_dropped(self) -> bool:
        """Whether admitted readers left no slot: the frame is counted, and not published."""
        return self._is_dropped

    @property
    def data(self) -> npt.NDArray[Any]:
        """The frame: a writable array in shared memory, valid inside the block."""
        self._has_data = True
        buffer = self._producer.get_structured_data_buffer()
        self._is_dropped = self._producer._is_dropped
        return buffer

    @data.setter
    def data(self, value: npt.ArrayLike) -> None:
        # Lets `slot.data += image` and `slot.data = image` do what they say.
        if not (self._has_data and value is self._producer.get_structured_data_buffer()):
            self.copy_from(np.asarray(value))

    @property
    def flex(self) -> dict[str, Any] | None:
        """The parameters that belong to the frame; None carries the last ones on."""
        return self._flex

    @flex.setter
    def flex(self, parameters: dict[str, Any]) -> None:
        self.copy_packed(encode(parameters, self.encoding))
        self._flex = parameters

    def copy_from(self, array: npt.NDArray[Any]) -> None:
        """Fill the frame from `array`, which may have fewer rows than the channel."""
        producer = self._producer
        size = producer._layout.size_of(array)
        if array.flags.c_contiguous:
            # What found no slot stays so, also if one comes free.
            if producer._is_dropped or not producer._block.write_data(array):
                self._is_dropped = producer._is_dropped = True
        else:  # numpy knows how to walk it
            view = self.data
            np.copyto(view[: array.shape[0]] if array.shape else view, array)
        self._has_data = True
        self.n_rows = None if size == producer._layout.frame_bytes else array.shape[0]

    def copy_packed(self, packed: bytes) -> None:
        """Fill the flex zone with an object that is encoded already."""
        self._flex_size = self._producer._block.write_flex(packed)
        self._flex_encoding = self.encoding

    def _valid_bytes(self) -> int | None:
        if self.n_rows is None or not self._has_data:
            return None
        layout = self._producer._layout
        if not layout.shape or not 0 <= self.n_rows <= layout.shape[0]:
            raise CapacityError(
                f"n_rows={self.n_rows}: a frame of channel {self._producer.name!r} has shape "
                f"{layout.shape}."
            )
        return self.n_rows * layout.row_bytes
