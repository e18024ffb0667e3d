"""Publishing step by step: take the lock, take buffers, fill them, publish."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pyhub._core import process_lease
from pyhub._datablock import ZONE_FLEX, ZONE_STRUCTURED, DataBlock
from pyhub._writing import DEFAULT_TIMEOUT_S, Writer
from pyhub.codec import Encoding, encode
from pyhub.datablock.block_layout import block_layout
from pyhub.datablock.header import Header, read_header
from pyhub.datablock.notice import Notification, Notify, ZoneUpdateInfo
from pyhub.errors import ChannelClosed, LayoutError
from pyhub.names import lease_path

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Publisher"]

_log = logging.getLogger("pyhub.datablock")

# A producer that does not own its channel looks this often whether the owner lives.
_LOOK_S = 0.05


class Publisher(Writer):
    """What a producer does with its block; `DataBlockProducer` adds the rest."""

    _encode = staticmethod(encode)
    _encoding = Encoding.MSGPACK

    def __init__(self, block: DataBlock, notify: Notify | None) -> None:
        self.name = block.segment.name
        self._layout = block_layout(block)
        self._looked_at = 0.0

    # --- Facts ---

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the channel's frames."""
        return self._layout.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the channel's largest frame."""
        return self._layout.shape

    @property
    def n_slots(self) -> int:
        """Frames that the ring holds."""
        return self._block.n_slots

    def header(self) -> Header:
        """Return what the channel's header says now. Never waits."""
        return read_header(self._block)

    @property
    def is_closed(self) -> bool:
        """Whether this producer was closed."""
        return self._is_closed

    # --- Publishing, step by step ---

    def begin_publish(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Lock the DataBlock for writing; then take buffers and call `end_publish`.

        Raises
        ------
        WriterStalled
            Another producer held the lock until the deadline.
        PublishError
            This thread has a publication open.
        """
        self._open(timeout_s)

    def get_structured_data_buffer(self) -> npt.NDArray[Any]:
        """Return the next slot as a writable array; valid until `end_publish`.

        What an earlier frame left there is still in it. The frame that the
        slot held is gone for readers from now on. Waits for readers that block,
        as long as the channel's patience. If admitted readers leave no
        slot the array is private, and `end_publish` drops and counts the frame.
        """
        return self._data()

    def get_flexible_zone_buffer(self) -> memoryview:
        """Return the flex zone's bytes, writable; valid until `end_publish`.

        They must hold one MessagePack or JSON map when the publication ends.
        """
        offset = self._take_flex()
        return memoryview(cast(bytes, self._block.segment))[
            offset : offset + self._block.flex_zone_capacity
        ]

    def end_publish(self, update: ZoneUpdateInfo) -> None:
        """Publish the zones that `update` names, unlock, and notify readers once.

        Raises
        ------
        PublishError
            Nothing was begun, or a zone is named whose buffer was not taken.
        CapacityError
            A size is beyond its zone. The publication stays open.
        """
        zones = ZONE_FLEX * update.flex_zone | ZONE_STRUCTURED * update.structured_buffer
        size = update.structured_buffer_size
        if size is None:
            size = self._layout.frame_bytes
        elif not self._layout.is_whole_rows(size):
            raise LayoutError(
                f"structured_buffer_size={size} is not a whole number of rows of "
                f"{self._layout.row_bytes} bytes (dtype {self.dtype}, shape {self.shape})."
            )
        self._publish(
            zones, size, update.flex_zone_size, update.encoding, update.frame_id,
            update.timestamp_ns,
        )  # fmt: skip

    def abort_publish(self) -> None:
        """Give up the open publication of this thread, if there is one."""
        self._block.abort()

    # --- What Writer asks for ---

    def _before_begin(self) -> None:
        if self._is_closed:
            raise ChannelClosed(
                f"this producer of channel {self.name!r} was closed.\n  Create it again."
            )
        self._look_after_owner()

    def _note_recovery(self) -> None:
        _log.warning(
            "channel %r: a producer died while publishing; its frame was rolled back", self.name
        )

    def _tell(
        self, commit: int, flex_version: int, version: int, zones: int, frame_id: int
    ) -> None:
        if self._notify is not None:
            self._notify(Notification(commit, flex_version, version, zones, frame_id))

    def _look_after_owner(self) -> None:
        """As a guest: take the channel over when its owner died, now and then."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        if self._block.segment.is_closed:
            return  # which begin tells
        if not self._block.segment.is_named():
            raise ChannelClosed(
                f"channel {self.name!r} has gone to another segment, or to none; its owner died.\n"
                "  Attach again, or create it."
            )
        self._block.join(process_lease(lease_path()))
