"""The consumer's side of a DataBlock: find it, read frames, outlive its producers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyhub._datablock import EMPTY, OVERRUN, DataBlock
from pyhub.codec import decode
from pyhub.datablock.attachment import Attachment
from pyhub.datablock.frame import Frame, LiveView
from pyhub.datablock.header import Header, read_header
from pyhub.datablock.view import slot_view
from pyhub.datablock.waiting import Waiter, WordWaiter
from pyhub.errors import (
    ChannelClosed,
    LayoutError,
    Overrun,
    ProducerDied,
    PyhubError,
    WaitTimeout,
)

__all__ = ["DataBlockConsumer"]

_log = logging.getLogger("pyhub.datablock")

# A sleeping consumer looks this often whether its producer still lives.
_SLICE_S = 0.05
# With no producer there, this often for the next one's segment: a file that
# appears, for which nobody can notify.
_AWAY_NAP_S = 0.01

# One way of picking the frame to read: a version, or None for the newest.
_Take: TypeAlias = Callable[["npt.NDArray[Any] | None"], "Frame | None"]


class DataBlockConsumer:
    """Reads the frames of a channel; never locks, never slows the producer.

    A consumer outlives its producers. When one comes back under the same name,
    with the same or another shape, reading goes on with the new segment, and
    the first frame of it says `is_restart`. When none is there, a wait ends at
    its deadline with `ProducerDied` or `ChannelClosed`, at once if it has no
    deadline; the next call waits for the next producer.

    One consumer serves one thread; `close` may be called from any.
    """

    def __init__(
        self, name: str, *, owner_uid: int | None = None, waiter: Waiter | None = None
    ) -> None:
        self.name = name
        self._attachment = Attachment(name, owner_uid)
        self._waiter: Waiter = waiter or WordWaiter()
        self._is_closed = False
        self._on_close: Callable[[], None] | None = None
        self._on_attach: Callable[[str], None] | None = None  # given the segment's id
        self._came_first = False
        self._cursor = 0  # version of the last frame given out
        self._flex_cursor = 0  # version of the last parameters given out
        self._looked_at = 0  # commit at the last look that was not a read
        self._is_restart = False  # the next frame is the first of another producer
        self._looked_at = -1  # publish counter at the last look
        self.n_read = 0
        self.n_lost = 0

    # --- Life ---

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        owner_uid: int | None = None,
        timeout_s: float | None = 0.0,
        waiter: Waiter | None = None,
    ) -> DataBlockConsumer:
        """Return a consumer of the channel `name`.

        Parameters
        ----------
        name
            The channel's name.
        owner_uid
            User whose channel it is; default: this process's.
        timeout_s
            How long to wait for its producer; None: for ever.
        waiter
            What wakes it; the hub's client supplies one.

        Raises
        ------
        SegmentNotFound
            The channel did not appear in time.
        AbiMismatch, SegmentDamaged, SegmentStale, AccessDenied
            What has that name cannot be read.
        """
        consumer = cls(name, owner_uid=owner_uid, waiter=waiter)
        consumer.wait_for_producer(timeout_s)
        return consumer

    def wait_for_producer(self, timeout_s: float | None) -> None:
        """Attach to the channel, waiting for its producer if need be.

        A consumer that had to wait is given the producer's frames from the
        first on; one that comes later begins with the newest.

        Raises
        ------
        SegmentNotFound, SegmentStale
            The channel did not appear in time.
        """
        deadline = _deadline(timeout_s)
        while not self._renew():
            self._check_open()  # ends the wait when this consumer is closed
            self._came_first = True
            if time.monotonic() >= deadline:
                raise self._attachment.absence(timeout_s)
            time.sleep(_AWAY_NAP_S)

    def close(self) -> None:
        """Stop reading; a call that waits in another thread ends with `ChannelClosed`.

        Arrays that were given out stay valid. May be called twice.
        """
        if not self._is_closed:
            self._is_closed = True
            self._waiter.close()
            on_close, self._on_close = self._on_close, None
            if on_close is not None:
                on_close()

    @property
    def is_closed(self) -> bool:
        """Whether this consumer was closed."""
        return self._is_closed

    def __enter__(self) -> DataBlockConsumer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- Facts ---

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the channel's frames, as of the present producer."""
        return self._attachment.layout.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the channel's largest frame, as of the present producer."""
        return self._attachment.layout.shape

    @property
    def n_restarts(self) -> int:
        """How often the producer came back with another segment."""
        return self._attachment.n_restarts

    def header(self) -> Header:
        """Return what the channel's header says now. Never waits."""
        return read_header(self._looked())

    @property
    def lag_frames(self) -> int:
        """Frames published that this reader was not given yet."""
        return self._attached().snapshot()[4] - self._cursor

    @property
    def notification_socket(self) -> Any:
        """The ZeroMQ SUB socket of the channel's notifications, to poll.

        Raises
        ------
        PyhubError
            The consumer was made without a hub.
        """
        return self._waiter.socket

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something was published.

        It is ZeroMQ's, which reports changes only: after it fired, read until
        `WaitTimeout` with ``timeout_s=0`` before waiting on it again.
        """
        return self._waiter.fileno()

    # --- Reading ---

    def read(self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None) -> Frame:
        """Copy the newest complete frame that this reader was not given yet.

        A publish of parameters alone counts: it gives the same frame again,
        with the new parameters (`has_new_data` is False).

        Parameters
        ----------
        timeout_s
            How long to wait for something new; 0: do not wait, None: for ever.
        out
            Array of the channel's dtype and full shape to copy into, instead
            of a new one.

        Returns
        -------
        Frame
            Never torn; `n_lost` counts the frames that were passed over.

        Raises
        ------
        WaitTimeout
            Nothing new came, and the producer lives.
        ProducerDied, ChannelClosed
            Nothing new came, and the producer is gone.
        """
        return self._next(self._take_newest, timeout_s, out)

    async def aread(
        self, timeout_s: float | None = 1.0, *, out: npt.NDArray[Any] | None = None
    ) -> Frame:
        """Do what `read` does, without holding up the event loop."""
        deadline = _deadline(timeout_s)
        is_quiet = False
        while True:
            block = self._attached()
            seen = block.commit
            frame = self._take_newest(out)
            if frame is not None:
                return frame
            slice_s = min(_SLICE_S, max(deadline - time.monotonic(), 0.0))
            if is_quiet or block.segment.is_closed or slice_s == 0.0:
                self._look_after(block, seen, deadline, timeout_s, timeout_s is not None)
            if block.segment.is_closed:
                await asyncio.sleep(min(slice_s, _AWAY_NAP_S))
            else:
                await self._waiter.wait_async(block, seen, slice_s)
            is_quiet = block.commit == seen

    def frames(self, timeout_s: float | None = None, *, follow: bool = False) -> Iterator[Frame]:
        """Return every frame in order, with exact counts of those that were lost.

        Starts with the newest frame, or with the one after the last that this
        reader was given. A channel of parameters only gives each newest object.

        Parameters
        ----------
        timeout_s
            How long to wait for each frame; None: for ever.
        follow
            Wait for the next producer when this one leaves. Otherwise the loop
            ends when the channel is closed, unless the next one is there by then.

        Raises
        ------
        ProducerDied
            The producer died and no other one came (with `follow`: in `timeout_s`).
        WaitTimeout
            No frame came in `timeout_s`.
        """
        while True:
            try:
                yield self._next(self._take_in_order, timeout_s, None, is_patient=False)
            except ProducerDied as error:
                if not follow or self._is_closed:
                    raise
                _log.warning("%s", error)
                self._wait_for_return(error, timeout_s)
            except ChannelClosed as error:
                if self._is_closed or not follow:
                    return
                self._wait_for_return(error, timeout_s)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def latest(self, timeout_s: float | None = 1.0) -> LiveView:
        """Return the newest frame where it lies, without copying it.

        Waits only if nothing has been published yet. Does not count as read.

        Raises
        ------
        WaitTimeout
            Nothing was published in time.
        ProducerDied, ChannelClosed
            Nothing was published, and the producer is gone.
        Overrun
            The producer writes faster than its frames can be looked at: give
            the channel more slots.
        """
        deadline = _deadline(timeout_s)
        while True:
            block = self._looked()
            seen = block.commit
            status, _, version, frame_id, stamp, size, slot, flex_version, encoding, packed = (
                block.read(None, None)
            )
            if status == 0 and (size is not None or version == 0):
                break
            is_late = time.monotonic() >= deadline
            if is_late or timeout_s is None:
                away = self._attachment.departure()
                if away is not None:
                    raise away
            if is_late:
                if status == EMPTY:
                    raise self._timeout(timeout_s)
                raise Overrun(
                    f"channel {self.name!r}: the newest frame is being overwritten all the time.\n"
                    "  Give the channel more slots when it is created (slots=4)."
                )
            self._sleep(block, seen, deadline)
        if size is None:
            data = np.empty(0, self._attachment.layout.dtype)
        else:
            data = slot_view(block, self._attachment.layout, slot, size)
        frame = Frame(data, frame_id, stamp, version, flex_version, encoding, packed)
        return LiveView(block, frame, slot)

    # --- The zones, without waiting ---

    def get_structured_data(self) -> npt.NDArray[Any] | None:
        """Return the newest frame where it lies, read-only; None: none yet.

        Safe after a notification; whether it was overwritten since, only
        `latest` can tell.
        """
        block = self._looked()
        status, _, _, _, _, size, slot, *_ = block.read(None, None)
        if status != 0 or size is None:
            return None
        return slot_view(block, self._attachment.layout, slot, size)

    def get_flexible_zone_data(self) -> dict[str, Any] | None:
        """Return the newest parameters; None: none yet."""
        status, *_, encoding, packed = self._looked().read(None, None)
        return None if status != 0 or packed is None else decode(packed, encoding)

    # --- How a frame is found ---

    def _next(
        self,
        take: _Take,
        timeout_s: float | None,
        out: npt.NDArray[Any] | None,
        *,
        is_patient: bool = True,
    ) -> Frame:
        """Wait until `take` finds a frame; if patient, of the next producer, too."""
        deadline = None
        is_quiet = False
        while True:
            block = self._attached()
            seen = block.commit
            frame = take(out)
            if frame is not None:
                return frame  # no clock is read when there is something to read
            if deadline is None:
                deadline = _deadline(timeout_s)
            # Costs system calls: only when a slice of sleep brought nothing.
            if is_quiet or block.segment.is_closed or time.monotonic() >= deadline:
                self._look_after(
                    block, seen, deadline, timeout_s, is_patient and timeout_s is not None
                )
            self._sleep(block, seen, deadline)
            is_quiet = block.commit == seen

    def _look_after(
        self,
        block: DataBlock,
        seen: int,
        deadline: float,
        timeout_s: float | None,
        is_patient: bool,
    ) -> None:
        """Go over to the next producer, or raise if the wait is over."""
        away = self._attachment.departure()
        if away is None:
            if time.monotonic() >= deadline:
                self._waiter.wait(block, seen, 0.0)  # makes its descriptor quiet
                if block.commit == seen:
                    raise self._timeout(timeout_s)
        # What it published before it left comes first.
        elif (
            block.commit == seen
            and not self._renew()
            and (not is_patient or time.monotonic() >= deadline)
        ):
            raise away

    def _take_newest(self, out: npt.NDArray[Any] | None) -> Frame | None:
        block = self._attached()
        _, _, flex_version, _, version, _, _, _ = block.snapshot()
        if version == self._cursor and flex_version == self._flex_cursor:
            return None
        return self._copy(block, None, out)[1]

    def _take_in_order(self, out: npt.NDArray[Any] | None) -> Frame | None:
        block = self._attached()
        if block.structured_buffer_capacity == 0:
            return self._take_newest(out)
        wanted = self._cursor + 1
        while True:
            _, _, _, _, newest, _, n_filled, _ = block.snapshot()
            if newest == self._cursor:
                return None
            status, frame = self._copy(block, wanted, out)
            if status != OVERRUN:
                return frame
            # Everything older than the ring is lost. The oldest slot is the
            # next to be overwritten, so begin with the one after it.
            wanted = max(newest - n_filled + (2 if n_filled > 2 else 1), wanted + 1)

    def _copy(
        self, block: DataBlock, wanted: int | None, out: npt.NDArray[Any] | None
    ) -> tuple[int, Frame | None]:
        """Copy frame `wanted`, or the newest, and count what was passed over."""
        layout = self._attachment.layout
        data = np.empty(layout.shape, layout.dtype) if out is None else self._checked(out)
        status, _, version, frame_id, stamp, size, _, flex_version, encoding, packed = block.read(
            wanted, data
        )
        if status != 0:
            return status, None
        if size is None:
            data = np.empty(0, layout.dtype)
        elif size != layout.frame_bytes and layout.shape:
            data = data[: layout.shape_of(size)[0]]
        frame = Frame(data, frame_id, stamp, version, flex_version, encoding, packed)
        frame.has_new_data = version != self._cursor
        frame.has_new_flex = flex_version != self._flex_cursor
        frame.n_lost = version - self._cursor - 1 if frame.has_new_data else 0
        frame.is_restart, self._is_restart = self._is_restart, False
        self._cursor = version
        self._flex_cursor = flex_version
        self.n_lost += frame.n_lost
        self.n_read += 1
        return status, frame

    def _checked(self, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        layout = self._attachment.layout
        if out.dtype != layout.dtype or out.shape != layout.shape or not out.flags.c_contiguous:
            raise LayoutError(
                f"out is {out.dtype} {out.shape}, the frames of channel {self.name!r} are "
                f"{layout.dtype} {layout.shape}.\n"
                f"  Use numpy.empty({layout.shape}, {str(layout.dtype)!r}), C-contiguous."
            )
        return out

    # --- Producers come and go ---

    def _check_open(self) -> None:
        if self._is_closed:
            raise ChannelClosed(
                f"this consumer of channel {self.name!r} was closed.\n  Attach again."
            )

    def _attached(self) -> DataBlock:
        self._check_open()
        if self._attachment.block is None:
            raise PyhubError(
                f"this consumer of channel {self.name!r} is not attached.\n"
                "  Call wait_for_producer first."
            )
        return self._attachment.block

    def _looked(self) -> DataBlock:
        """Return the block to look at: the next producer's, once this one is gone.

        Asks for that one only if nothing was published since the last look, and
        not while there are frames that this reader has still to be given.
        """
        block = self._attached()
        if block.commit == self._looked_at or block.segment.is_closed:
            is_reader = self.n_read > 0 or self._came_first
            if not (is_reader and self.lag_frames) and self._renew():
                block = self._attached()
        self._looked_at = block.commit
        return block

    def _renew(self) -> bool:
        """Go on with the segment that has the name now; False if there is no other."""
        is_first = self._attachment.block is None
        if not self._attachment.renew():
            return False
        block = self._attached()
        _, _, _, _, newest, _, n_filled, _ = block.snapshot()
        # From the first frame on; but a late reader begins with the newest.
        is_late = is_first and not self._came_first
        self._cursor = newest - min(n_filled, 1) if is_late else 0
        self._flex_cursor = 0
        self._is_restart = not is_first
        if self._on_attach is not None:
            self._on_attach(block.segment_id.hex())
        return True

    def _wait_for_return(self, away: ChannelClosed, timeout_s: float | None) -> None:
        deadline = _deadline(timeout_s)
        while not self._is_closed and not self._renew():
            if time.monotonic() >= deadline:
                raise away
            time.sleep(_AWAY_NAP_S)

    def _sleep(self, block: DataBlock, seen: int, deadline: float) -> None:
        """Sleep until something may have changed, at most one slice."""
        slice_s = min(_SLICE_S, max(deadline - time.monotonic(), 0.0))
        if block.segment.is_closed:
            time.sleep(min(slice_s, _AWAY_NAP_S))
        else:
            self._waiter.wait(block, seen, slice_s)

    def _timeout(self, timeout_s: float | None) -> WaitTimeout:
        block = self._attached()
        state = f"pid {block.segment.owner_pid}" + (
            ", publishing right now" if block.is_writing else ""
        )
        return WaitTimeout(
            f"channel {self.name!r}: nothing new in {timeout_s} s; its producer lives ({state}).\n"
            "  It may be idle or stopped: see when it last published with pyhub info "
            f"{self.name}"
        )


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
